//! What the demo shows and how it judges.

use super::crowd::{Counts, Pulled};
use crate::demo_image::Image;

/// The registry may send this many times the image: each byte once, and manifests and configs that every
/// containerd asks for itself.
const RATIO_MAX: f64 = 1.10;

/// Nodes start within this.
const SPREAD_MAX_MS: u128 = 100;

/// A million bytes, as links are measured.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Who sent how much to whom, and what each node says of its layers.
pub fn table(counts: &Counts, pulled: &Pulled) {
    println!("\nMB received (rows) from (columns), IP packets counted by the kernel:");
    let names: String = counts.nodes.iter().map(|node| format!("{:>10}", node.name)).collect();
    println!(
        "{:<10}{:>10}{names}{:>10}{:>16}{:>16}{:>10}",
        "", "registry", "sum", "layers: peers", "registry", "seconds"
    );
    for (node, time) in counts.nodes.iter().zip(&pulled.each) {
        let cells: String =
            node.received_from.iter().map(|bytes| format!("{:>10.1}", megabytes(*bytes))).collect();
        let sum = megabytes(node.received_from.iter().sum());
        let (peer, origin) = node.by_source.unwrap_or_default();
        let seconds = time.as_ref().map_or("failed".to_owned(), |time| format!("{:.1}", time.as_secs_f64()));
        println!(
            "{:<10}{cells}{sum:>10.1}{:>16.1}{:>16.1}{seconds:>10}",
            node.name,
            megabytes(peer),
            megabytes(origin)
        );
    }
    let sent: String =
        counts.nodes.iter().map(|node| format!("{:>10.1}", megabytes(node.traffic.sent))).collect();
    println!(
        "{:<10}{:>10.1}{sent}   (frames sent, by interface)",
        "sent",
        megabytes(counts.registry_traffic.sent)
    );
}

/// Everything that the verdict rests on.
pub struct Verdict<'a> {
    pub image: &'a Image,
    pub counts: &'a Counts,
    pub pulled: &'a Pulled,
    /// Containers that did not run.
    pub ran: Vec<String>,
    pub direct: &'a (Pulled, Counts),
}

impl Verdict<'_> {
    /// Prints the comparison and what is wrong; whether nothing is.
    pub fn judge(&self) -> bool {
        let (pulled, counts) = self.direct;
        println!(
            "\nwith Flotilla:    {:>6.1} s, the registry sent {:.1} MB of bodies, {:.1} MB over its interface",
            self.pulled.wall.as_secs_f64(),
            megabytes(self.counts.registry_bytes),
            megabytes(self.counts.registry_traffic.sent)
        );
        println!(
            "without Flotilla: {:>6.1} s, the registry sent {:.1} MB of bodies, {:.1} MB over its interface",
            pulled.wall.as_secs_f64(),
            megabytes(counts.registry_bytes),
            megabytes(counts.registry_traffic.sent)
        );
        println!("released within {} ms", self.pulled.spread.as_millis());
        let faults = self.faults();
        for fault in &faults {
            println!("FAILED: {fault}");
        }
        faults.is_empty()
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (node, pull) in self.counts.nodes.iter().zip(&self.pulled.each) {
            if let Err(why) = pull {
                faults.push(format!("{}: the pull failed: {why}", node.name));
            }
            if node.by_source.is_none_or(|(peer, _)| peer == 0) {
                faults.push(format!("{}: got nothing from a peer", node.name));
            }
        }
        faults.extend(self.ran.iter().map(|why| format!("no container ran: {why}")));
        for why in self.direct.0.each.iter().filter_map(|pull| pull.as_ref().err()) {
            faults.push(format!("a pull without Flotilla failed: {why}"));
        }
        let fetched = self.counts.layers_fetched_by_containerd;
        if fetched > 0 {
            faults.push(format!("containerd itself fetched layers: {fetched} requests"));
        }
        if self.ratio() > RATIO_MAX {
            faults.push(format!("the registry sent {:.3} times the image, above {RATIO_MAX}", self.ratio()));
        }
        let spread = self.pulled.spread.as_millis();
        if spread > SPREAD_MAX_MS {
            faults.push(format!("the nodes started within {spread} ms, not within {SPREAD_MAX_MS}"));
        }
        faults
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn ratio(&self) -> f64 {
        self.counts.registry_bytes as f64 / self.image.bytes as f64
    }

    /// The line that programs read.
    pub fn last_line(&self) {
        println!(
            "demo: nodes={} image_bytes={} registry_bytes={} ratio={:.3} wall_s={:.1} direct_wall_s={:.1}",
            self.counts.nodes.len(),
            self.image.bytes,
            self.counts.registry_bytes,
            self.ratio(),
            self.pulled.wall.as_secs_f64(),
            self.direct.0.wall.as_secs_f64()
        );
    }
}
