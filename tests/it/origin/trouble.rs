//! Registries that fail, lie, or are no registries.

use std::time::Duration;

use flotilla::{
    oci::Digest,
    origin::{Origin, OriginError, Patience, Settings},
};

use super::{collect, on_loopback, origin, origin_with, patience, pull, team_app, with_blob};
use crate::registry::{Fault, Kind, Registry};

#[tokio::test]
async fn what_passes_is_waited_out() {
    for fault in [Fault::ServerError { times: 3 }, Fault::TooManyRequests { times: 3, retry_after: 0 }] {
        let (registry, digest, bytes) = with_blob(1000).await;
        let origin = origin();
        let located = origin.locate(&[team_app(&registry)], &digest, 1000).await.unwrap();
        registry.switch_on(fault);
        assert_eq!(collect(origin.read(&located, 0..1000).await.unwrap()).await.unwrap(), *bytes);
        assert_eq!(registry.requests(Kind::Blob), 5, "a HEAD, three refusals and the answer");
    }
}

#[tokio::test]
async fn what_does_not_pass_is_given_up_with_its_reason() {
    let (registry, digest, _) = with_blob(1000).await;
    let origin = origin();
    let located = origin.locate(&[team_app(&registry)], &digest, 1000).await.unwrap();
    registry.switch_on(Fault::ServerError { times: u32::MAX });
    let error = origin.read(&located, 0..1000).await.unwrap_err();
    assert_eq!((error.reason(), error.is_final()), ("origin_unavailable", false));
    assert!(error.to_string().ends_with("answered 503: UNAVAILABLE restarting"), "{error}");
    assert_eq!(registry.requests(Kind::Blob), 6, "a HEAD and five rounds");
}

#[tokio::test]
async fn a_long_retry_after_is_left_to_the_caller() {
    let (registry, digest, _) = with_blob(1000).await;
    let origin = origin();
    let located = origin.locate(&[team_app(&registry)], &digest, 1000).await.unwrap();
    registry.switch_on(Fault::TooManyRequests { times: u32::MAX, retry_after: 3600 });
    let error = origin.read(&located, 0..1000).await.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), ("origin_throttled", Some(Duration::from_secs(3600))));
    assert_eq!(registry.requests(Kind::Blob), 2);
}

#[tokio::test]
async fn a_broken_body_is_resumed_from_the_last_byte() {
    let (registry, digest, bytes) = with_blob(500_000).await;
    let registry = registry.with(Fault::Truncate { after: 150_000, times: 3 });
    assert_eq!(pull(&origin(), &registry, &digest, 500_000).await.unwrap(), *bytes);
    let starts: Vec<_> = registry.seen().iter().filter_map(crate::registry::Seen::range_start).collect();
    assert_eq!((starts.len(), starts[0]), (4, 0));
    assert!(starts.is_sorted_by(|a, b| a < b), "{starts:?}");
}

#[tokio::test]
async fn a_broken_body_without_ranges_is_resumed_from_its_start() {
    let (registry, digest, bytes) = with_blob(500_000).await;
    let registry = registry.with(Fault::IgnoreRange).with(Fault::Truncate { after: 150_000, times: 2 });
    assert_eq!(pull(&origin(), &registry, &digest, 500_000).await.unwrap(), *bytes);
}

#[tokio::test]
async fn a_registry_that_always_truncates_is_given_up() {
    let (registry, digest, _) = with_blob(500_000).await;
    let registry = registry.with(Fault::Truncate { after: 1000, times: u32::MAX });
    let error = pull(&origin(), &registry, &digest, 500_000).await.unwrap_err();
    assert_eq!(error.reason(), "origin_truncated");
    assert_eq!(registry.requests(Kind::Blob), 6);
}

#[tokio::test]
async fn a_body_that_stalls_is_asked_for_again() {
    let (registry, digest, bytes) = with_blob(200_000).await;
    let registry = registry.with(Fault::Stall { after: 65_536, times: 1 });
    let stall = Duration::from_secs(1);
    let origin =
        Origin::with_patience(on_loopback(Settings::default()), Patience { stall, ..patience() }).unwrap();
    assert_eq!(pull(&origin, &registry, &digest, 200_000).await.unwrap(), *bytes);
}

#[tokio::test]
async fn a_throttled_registry_is_only_slow() {
    let (registry, digest, bytes) = with_blob(100_000).await;
    let registry = registry.with(Fault::Throttle { bytes_per_second: 2_000_000 });
    let origin = origin_with(Settings { origin_rate: Some(1_000_000), ..Settings::default() });
    assert_eq!(pull(&origin, &registry, &digest, 100_000).await.unwrap(), *bytes);
}

#[tokio::test]
async fn a_body_longer_than_its_descriptor_is_refused() {
    let (registry, digest, bytes) = with_blob(200_000).await;
    let origin = origin();
    let located = origin.locate(&[team_app(&registry)], &digest, 200_000).await.unwrap();
    for fault in [Fault::Longer { by: 1 }, Fault::Endless] {
        registry.heal();
        registry.switch_on(fault);
        let mut body = origin.read(&located, 0..200_000).await.unwrap();
        let mut yielded = 0;
        let error = loop {
            match body.next().await.expect("it does not end well") {
                Ok(chunk) => yielded += chunk.len(),
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), "origin_wrong_length");
        assert!(yielded <= bytes.len());
        assert!(body.next().await.is_none());
    }
    assert!(registry.body_bytes(Kind::Blob) < 20_000_000, "an endless body is not read for long");
}

#[tokio::test]
async fn an_endless_or_wrong_document_is_refused() {
    let (registry, digest, _) = with_blob(5000).await;
    let (origin, repository) = (origin(), team_app(&registry));
    registry.switch_on(Fault::Endless);
    let error = origin.small_blob(&repository, &digest, 5000).await.unwrap_err();
    assert!(matches!(error, OriginError::TooLarge { limit: 5000, .. }), "{error}");
    registry.heal();
    registry.switch_on(Fault::WrongBytes);
    let error = origin.small_blob(&repository, &digest, 5000).await.unwrap_err();
    assert!(matches!(error, OriginError::WrongDigest { .. }), "{error}");
    registry.put_manifest("team/app", Some("v1"), "application/x", "right");
    let reference = format!("{}/team/app:v1", registry.host()).parse().unwrap();
    let error = origin.resolve(&reference).await.unwrap_err();
    assert!(matches!(error, OriginError::WrongDigest { .. }), "the digest that the registry states: {error}");
}

#[tokio::test]
async fn a_web_page_is_no_registry() {
    let (registry, digest, _) = with_blob(1000).await;
    let origin = origin();
    let located = origin.locate(&[team_app(&registry)], &digest, 1000).await.unwrap();
    registry.switch_on(Fault::Html);
    let error = origin.read(&located, 0..1000).await.unwrap_err();
    assert_eq!((error.reason(), error.is_final()), ("origin_html", true));
    let reference = format!("{}/team/app:v1", registry.host()).parse().unwrap();
    assert_eq!(origin.resolve(&reference).await.unwrap_err().reason(), "origin_html");
    assert_eq!(
        origin.locate(&[team_app(&registry)], &digest, 1000).await.unwrap_err().reason(),
        "origin_html"
    );
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let (registry, digest, _) = with_blob(1000).await;
    let origin = origin();
    let located = origin.locate(&[team_app(&registry)], &digest, 1000).await.unwrap();
    registry.switch_on(Fault::RedirectLoop);
    let error = origin.read(&located, 0..1000).await.unwrap_err();
    assert_eq!(error.reason(), "origin_redirects");
    assert_eq!(registry.requests(Kind::Blob), 12, "a HEAD, the question and ten hops");
    let error = origin.locate(&[team_app(&registry)], &digest, 1000).await.unwrap_err();
    assert_eq!(error.reason(), "origin_redirects");
}

#[tokio::test]
async fn a_redirect_to_plain_http_that_nobody_named_is_refused() {
    let (registry, digest, _) = with_blob(1000).await;
    let registry = registry.with(Fault::RedirectBlobs { to: "http://localhost:9".into() });
    let error = pull(&origin(), &registry, &digest, 1000).await.unwrap_err();
    let OriginError::NoOrigin { source: Some(source), .. } = error else { panic!("{error:?}") };
    assert_eq!(source.reason(), "origin_redirects");
}

#[tokio::test]
async fn a_registry_that_is_down_is_no_origin() {
    let (registry, digest, _) = with_blob(1000).await;
    let repository = team_app(&registry);
    drop(registry);
    // The port was ours until now; whoever has it next does not have the blob.
    let error = origin().locate(&[repository], &digest, 1000).await.unwrap_err();
    assert_eq!(error.reason(), "no_origin");
    let nowhere: &[_] = &[];
    let error = origin().locate(nowhere, &digest, 1000).await.unwrap_err();
    assert!(matches!(error, OriginError::NoOrigin { tried: 0, source: None, .. }), "{error}");
}

#[tokio::test]
async fn a_next_that_is_dropped_loses_nothing() {
    let (registry, digest, bytes): (Registry, Digest, _) = with_blob(300_000).await;
    let registry = registry.with(Fault::Truncate { after: 70_000, times: 2 });
    let origin = origin();
    let located = origin.locate(&[team_app(&registry)], &digest, 300_000).await.unwrap();
    let mut body = origin.read(&located, 0..300_000).await.unwrap();
    let mut got = Vec::new();
    loop {
        // Polled once and dropped, then polled to its end.
        let first = futures_util::FutureExt::now_or_never(body.next());
        let next = match first {
            Some(next) => next,
            None => body.next().await,
        };
        match next {
            Some(chunk) => got.extend_from_slice(&chunk.unwrap()),
            None => break,
        }
    }
    assert_eq!(got, *bytes);
}
