//! `flotilla status`.

use std::io::Write;

use http_body_util::BodyExt as _;
use hyper::Method;
use indicatif::HumanBytes;

use super::socket;
use crate::{
    daemon::Settings,
    door::admin::{ContainerdLine, MeshLine, Status},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    let body = socket::runtime()?.block_on(async {
        let response = socket::request(settings, Method::GET, "/v1/status").await?;
        anyhow::Ok(response.into_body().collect().await?.to_bytes())
    })?;
    let status: Status = serde_json::from_slice(&body)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &status)?;
        writeln!(out)?;
        return Ok(());
    }
    print(&status, out)
}

fn print(status: &Status, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(out, "node       {} ({})", status.node, status.version)?;
    writeln!(out, "mesh       {}", mesh(&status.mesh))?;
    if let Some(seen) = &status.containerd {
        writeln!(out, "containerd {}", containerd(seen))?;
    }
    writeln!(
        out,
        "store      {} blobs, {}; {} of {} quota",
        status.store.blobs,
        HumanBytes(status.store.bytes),
        HumanBytes(status.store.charged),
        HumanBytes(status.store.quota)
    )?;
    writeln!(
        out,
        "offered    {} blobs of containerd, {}; {} not read yet",
        status.store.offered_blobs,
        HumanBytes(status.store.offered_bytes),
        status.store.offered_unread
    )?;
    writeln!(out, "\n{:<24} {:<12} {:<28} STATE", "MEMBER", "ZONE", "ADDRESS")?;
    for member in &status.members {
        let zone = member.zone.as_deref().unwrap_or("-");
        writeln!(out, "{:<24} {zone:<12} {:<28} {}", member.name, member.address, member.state)?;
    }
    if !status.pulls.is_empty() {
        writeln!(
            out,
            "\n{:<20} {:>10} {:>10} {:>10} {:>10}  {:<10} IMAGE",
            "PULL", "SIZE", "LOCAL", "PEERS", "REGISTRY", "STATE"
        )?;
    }
    for pull in &status.pulls {
        writeln!(
            out,
            "{:<20} {:>10} {:>10} {:>10} {:>10}  {:<10} {}",
            pull.digest.chars().take(19).collect::<String>(),
            HumanBytes(pull.bytes_total).to_string(),
            HumanBytes(pull.bytes.local).to_string(),
            HumanBytes(pull.bytes.peer).to_string(),
            HumanBytes(pull.bytes.origin).to_string(),
            pull.state,
            pull.image.as_deref().unwrap_or("-")
        )?;
    }
    Ok(())
}

fn mesh(line: &MeshLine) -> String {
    let until = line.certificate_until.as_ref().map(|until| format!("certificate until {until}"));
    match (&line.reason, line.open, until) {
        (None, _, Some(until)) => format!("open, {until}"),
        (None, _, None) => "open".to_owned(),
        (Some(_), false, _) if !line.wanted => {
            "none: no certificate and no members in the settings, this node serves itself".to_owned()
        }
        (Some(reason), false, _) => format!("closed: {reason}"),
        (Some(reason), true, _) => format!("open, but its certificate cannot be renewed: {reason}"),
    }
}

fn containerd(line: &ContainerdLine) -> String {
    match (&line.version, &line.reason) {
        (Some(version), _) => format!("{version} answers"),
        (None, Some(reason)) => format!("left alone: {reason}"),
        (None, None) => "not asked yet".to_owned(),
    }
}
