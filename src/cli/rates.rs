//! `flotilla rates`.

use std::io::Write;

use http_body_util::BodyExt as _;
use hyper::Method;
use indicatif::HumanBytes;

use super::socket;
use crate::{
    daemon::Settings,
    door::admin::{RateLine, RatesLine},
};

/// Each rate is a size a second such as `50MiB`, `unlimited`, or `settings` for what the settings say at this time.
/// What is set lasts until the daemon ends.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Bytes a second to other members.
    #[arg(long, value_name = "RATE")]
    upload: Option<String>,
    /// Bytes a second from other members.
    #[arg(long, value_name = "RATE")]
    download: Option<String>,
    /// Bytes a second from registries.
    #[arg(long, value_name = "RATE")]
    origin: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    let asked = [("upload", &args.upload), ("download", &args.download), ("origin", &args.origin)];
    let query: Vec<String> = asked
        .into_iter()
        .filter_map(|(flow, rate)| Some(format!("{flow}={}", socket::in_query(rate.as_ref()?))))
        .collect();
    let (method, path) = match query.is_empty() {
        true => (Method::GET, "/v1/rates".to_owned()),
        false => (Method::POST, format!("/v1/rates?{}", query.join("&"))),
    };
    let body = socket::runtime()?.block_on(async {
        let response = socket::request(settings, method, &path).await?;
        anyhow::Ok(response.into_body().collect().await?.to_bytes())
    })?;
    let rates: RatesLine = serde_json::from_slice(&body)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &rates)?;
        writeln!(out)?;
        return Ok(());
    }
    let RatesLine { upload, download, origin } = rates;
    for (flow, RateLine { bytes_per_second, by }) in
        [("upload", upload), ("download", download), ("origin", origin)]
    {
        let rate = bytes_per_second.map_or("unlimited".to_owned(), |rate| format!("{}/s", HumanBytes(rate)));
        writeln!(out, "{flow:<10} {rate:<16} by {by}")?;
    }
    Ok(())
}
