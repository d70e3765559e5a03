//! `flotilla preheat`.

use std::{collections::BTreeMap, io::Write, process::ExitCode};

use anyhow::Context as _;
use hyper::Method;
use indicatif::HumanBytes;

use super::{
    bars::{Bars, Standing, sources},
    socket, word,
};
use crate::{
    daemon::Settings,
    door::admin::{NodeLine, PreheatLine, SummaryLine},
    oci::{Platform, Reference},
    preheat::Selector,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image, as docker and nerdctl take it.
    #[arg(value_parser = word::<Reference>)]
    image: Reference,
    /// Which nodes: names and globs, zone=…, role=…; alternatives between commas, what must hold together joined
    /// by `+` [default: all].
    #[arg(long, value_name = "SELECTOR", value_parser = word::<Selector>)]
    nodes: Option<Selector>,
    /// os/architecture[/variant] [default: each node's own].
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Into each node's own store, which every node has and every client is served from; or into its containerd as
    /// well, through CRI, where kubelet's image garbage collection is in charge of it.
    #[arg(long, value_enum, default_value_t = Into::Store)]
    into: Into,
    /// Print one JSON line at each change of a node, and a summary.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Into {
    Store,
    Containerd,
}

impl Into {
    fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Containerd => "containerd",
        }
    }
}

pub(super) fn run(args: &Args, settings: &Settings, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let SummaryLine { nodes, done, failed: _ } = socket::runtime()?.block_on(follow(args, settings, out))?;
    if !args.json {
        writeln!(out, "{done} of {nodes} nodes have it")?;
    }
    Ok(if done == nodes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Follows the order until every node has ended; a line when a node's state changes, bars where a person looks on.
async fn follow(args: &Args, settings: &Settings, out: &mut impl Write) -> anyhow::Result<SummaryLine> {
    let response = socket::request(settings, Method::POST, &args.path()).await?;
    let mut bars = Bars::new(args.json);
    let mut nodes: BTreeMap<String, NodeLine> = BTreeMap::new();
    let mut summary = None;
    let take = |line: PreheatLine| {
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        }
        match line {
            PreheatLine::Image { digest, nodes, .. } if !args.json => {
                writeln!(out, "{digest} into the {} of {} nodes", args.into.name(), nodes.len())?;
            }
            PreheatLine::Image { .. } => {}
            PreheatLine::Node(node) => {
                bars.show(&node.node, standing(&node));
                let before = nodes.insert(node.node.clone(), node.clone());
                let is_news = before.is_none_or(|before| before.state != node.state);
                if is_news && !args.json {
                    let text = describe(&node);
                    bars.around(|| writeln!(out, "{text}"))?;
                }
            }
            PreheatLine::Summary(line) => summary = Some(line),
        }
        Ok(())
    };
    socket::lines(response, take).await?;
    bars.clear();
    summary.context("the daemon hung up before every node had ended")
}

impl Args {
    fn path(&self) -> String {
        let mut path = format!("/v1/preheat?image={}", socket::in_query(&self.image.to_string()));
        let nodes = self.nodes.as_ref().map(|nodes| ("nodes", nodes.to_string()));
        let platform = self.platform.as_ref().map(|platform| ("platform", platform.to_string()));
        let into = ("into", self.into.name().to_owned());
        for (key, value) in nodes.into_iter().chain(platform).chain([into]) {
            path.push_str(&format!("&{key}={}", socket::in_query(&value)));
        }
        path
    }
}

fn describe(node: &NodeLine) -> String {
    let size = match node.bytes_total {
        0 => String::new(),
        total => HumanBytes(total).to_string(),
    };
    let more = match &node.reason {
        Some(reason) => reason.clone(),
        None => sources(node.bytes),
    };
    format!("{:<24} {:<10} {size:>12}  {more}", node.node, node.state).trim_end().to_owned()
}

fn standing(node: &NodeLine) -> Standing<'_> {
    Standing { label: node.node.clone(), total: node.bytes_total, bytes: node.bytes, state: &node.state }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::admin::BytesBySource;

    fn node(state: &str, reason: Option<&str>) -> NodeLine {
        NodeLine {
            node: "n1".into(),
            zone: None,
            state: state.into(),
            bytes_total: 1 << 20,
            bytes: BytesBySource { local: 0, peer: 1 << 20, origin: 0 },
            reason: reason.map(str::to_owned),
        }
    }

    #[test]
    fn a_line_says_how_a_node_is() {
        let done = describe(&node("done", None));
        assert!(done.starts_with("n1 ") && done.contains("done") && done.contains("peers"), "{done}");
        assert!(describe(&node("failed", Some("no room"))).ends_with("no room"));
    }
}
