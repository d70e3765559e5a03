//! `flotilla pull`.

use std::{collections::BTreeMap, io::Write, process::ExitCode};

use anyhow::bail;
use hyper::Method;
use indicatif::HumanBytes;

use super::{
    bars::{Bars, Standing, sources},
    socket, word,
};
use crate::{
    daemon::Settings,
    door::admin::{LayerLine, PullLine},
    oci::Reference,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image, as docker and nerdctl take it.
    #[arg(value_parser = word::<Reference>)]
    image: Reference,
    /// Print one JSON line a layer.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, settings: &Settings, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let ended = socket::runtime()?.block_on(follow(args, settings))?;
    let failed = ended.iter().filter(|line| line.state != "proven").count();
    for line in &ended {
        print(args, line, out)?;
    }
    if failed > 0 {
        eprintln!("flotilla: {failed} of {} layers are not here", ended.len());
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Follows the pull until every layer has ended; draws bars where a person looks on.
async fn follow(args: &Args, settings: &Settings) -> anyhow::Result<Vec<LayerLine>> {
    let path = format!("/v1/pull?image={}", socket::in_query(&args.image.to_string()));
    let response = socket::request(settings, Method::POST, &path).await?;
    let mut bars = Bars::new(args.json);
    let mut layers = BTreeMap::new();
    let take = |line| match line {
        PullLine::Layer(layer) => {
            bars.show(&layer.digest, standing(&layer));
            layers.insert(layer.digest.clone(), layer);
            Ok(())
        }
        PullLine::Failed { reason } => bail!("{reason}"),
    };
    socket::lines(response, take).await?;
    bars.clear();
    Ok(layers.into_values().collect())
}

fn print(args: &Args, line: &LayerLine, out: &mut impl Write) -> anyhow::Result<()> {
    if args.json {
        let json = serde_json::json!({
            "digest": line.digest,
            "size": line.size,
            "bytes_local": line.bytes.local,
            "bytes_peer": line.bytes.peer,
            "bytes_origin": line.bytes.origin,
            "outcome": line.state,
            "reason": line.reason,
        });
        writeln!(out, "{json}")?;
    } else {
        writeln!(
            out,
            "{}  {:>10}  {}{}",
            short(&line.digest),
            HumanBytes(line.size).to_string(),
            sources(line.bytes),
            line.reason.as_ref().map(|reason| format!("failed: {reason}")).unwrap_or_default()
        )?;
    }
    Ok(())
}

/// The algorithm and twelve digits.
fn short(digest: &str) -> String {
    digest.chars().take(19).collect()
}

fn standing(layer: &LayerLine) -> Standing<'_> {
    Standing { label: short(&layer.digest), total: layer.size, bytes: layer.bytes, state: &layer.state }
}
