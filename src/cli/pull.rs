//! `flotilla pull`.

use std::{collections::BTreeMap, io::Write, process::ExitCode};

use anyhow::bail;
use hyper::Method;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::socket;
use crate::{
    daemon::Settings,
    door::admin::{BytesBySource, LayerLine, PullLine},
    oci::Reference,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image, as docker and nerdctl take it.
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
            bars.show(&layer);
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
            line.digest.chars().take(19).collect::<String>(),
            HumanBytes(line.size).to_string(),
            sources(line.bytes),
            line.reason.as_ref().map(|reason| format!("failed: {reason}")).unwrap_or_default()
        )?;
    }
    Ok(())
}

/// Where bytes came from, of those sources that gave any.
pub(super) fn sources(bytes: BytesBySource) -> String {
    let named = [("local", bytes.local), ("peers", bytes.peer), ("registry", bytes.origin)];
    let parts = named.iter().filter(|(_, bytes)| *bytes > 0);
    parts.map(|(name, bytes)| format!("{name} {}  ", HumanBytes(*bytes))).collect()
}

/// A bar a layer, on standard error; nothing where that is no terminal.
struct Bars {
    all: Option<MultiProgress>,
    bars: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn new(quiet: bool) -> Self {
        Self { all: (!quiet).then(MultiProgress::new), bars: BTreeMap::new() }
    }

    fn show(&mut self, layer: &LayerLine) {
        let Some(all) = &self.all else { return };
        let bar = self.bars.entry(layer.digest.clone()).or_insert_with(|| {
            let style =
                ProgressStyle::with_template("{prefix} [{bar:30}] {bytes:>10} of {total_bytes:>10} {msg}")
                    .expect("the template is well-formed, as a test shows");
            all.add(ProgressBar::new(layer.size).with_style(style))
        });
        bar.set_prefix(layer.digest.chars().take(19).collect::<String>());
        bar.set_position(layer.bytes.local + layer.bytes.peer + layer.bytes.origin);
        bar.set_message(format!("{} {}", layer.state, sources(layer.bytes)));
    }

    fn clear(&self) {
        if let Some(all) = &self.all {
            // A terminal that cannot be cleared is not worth a failure.
            let _ = all.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_can_be_drawn() {
        let mut bars = Bars::new(false);
        bars.show(&LayerLine {
            digest: "sha256:e3b0c44298fc1c149afb".into(),
            size: 10,
            bytes: BytesBySource { local: 0, peer: 4, origin: 2 },
            state: "arriving".into(),
            reason: None,
        });
        assert_eq!(bars.bars.values().next().unwrap().position(), 6);
    }
}
