//! Rates by schedule and by an operator's word, at a daemon without containerd.

use std::time::Duration;

use serde_json::Value;

use crate::{
    lab::process::output,
    mirror::{Alone, noise},
    registry::Registry,
};

/// Ends a test that would hang.
const GUARD: Duration = Duration::from_secs(60);
/// At the schedule's rate it would take minutes.
const LEN: usize = 4 << 20;

fn rates(alone: &Alone, arguments: &[&str]) -> [(Value, String); 3] {
    let said = output(alone.flotilla.command(&[&["rates", "--json"], arguments].concat())).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    ["upload", "download", "origin"].map(|flow| {
        let by = said[flow]["by"].as_str().unwrap().to_owned();
        (said[flow]["bytes_per_second"].clone(), by)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_the_schedule_holds_back_goes_when_the_operator_says_so() {
    let registry = Registry::start().await;
    let bytes = noise(LEN, 1);
    let name = registry.put_blob("team/app", bytes.clone());
    let alone = Alone::start(|settings| {
        settings.text("mesh", "upload_rate", "9MiB");
        settings.list("rates", "schedule", &["daily 00:00-24:00 origin=16KiB".to_owned()]);
    });
    let by = |rate: Value, by: &str| (rate, by.to_owned());
    let upload = by((9_u64 << 20).into(), "settings");
    let unlimited = by(Value::Null, "settings");
    let scheduled = by((16_u64 << 10).into(), "schedule");
    assert_eq!(rates(&alone, &[]), [upload.clone(), unlimited.clone(), scheduled.clone()]);

    let path = format!("/v2/team/app/blobs/{name}?ns={}", registry.host());
    let mut pull = std::pin::pin!(alone.get(&path));
    let early = tokio::time::timeout(Duration::from_secs(2), &mut pull).await;
    assert!(early.is_err(), "the schedule holds nothing back");
    let said = rates(&alone, &["--origin", "unlimited", "--download", "1GiB"]);
    assert_eq!(said, [upload, by((1_u64 << 30).into(), "operator"), by(Value::Null, "operator")]);
    let got = tokio::time::timeout(GUARD, pull).await.expect("the operator's word counts");
    assert!(got.whole && got.bytes == bytes);

    let said = rates(&alone, &["--origin", "settings", "--download", "settings"]);
    assert_eq!(said[1..], [unlimited, scheduled]);
    let error = output(alone.flotilla.command(&["rates", "--upload", "fast"])).unwrap_err().to_string();
    let wants = "`fast` is no rate: a size a second such as `50MiB`, or `unlimited`";
    assert!(error.contains(wants), "{error}");
    let error = output(alone.flotilla.command(&["rates", "--upload", "100"])).unwrap_err().to_string();
    assert!(error.contains("`100` is below 16KiB a second: is a unit missing?"), "{error}");
}
