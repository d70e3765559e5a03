//! The scenarios by name: what is pulled, when, over which links, and what goes wrong.

use std::time::Duration;

use super::fault::Fault;
use crate::bench::image::{Image, Shape};

/// How fast the links of a crowd are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    kbit: u32,
}

/// Eight nodes on these links are what two cores carry without being the limit.
pub const RATE: Rate = Rate { kbit: 50_000 };

impl Rate {
    pub fn of_mbit(mbit: u32) -> Rate {
        Rate { kbit: mbit * 1000 }
    }

    pub fn mbit(self) -> u32 {
        self.kbit / 1000
    }

    pub fn bytes_per_s(self) -> f64 {
        f64::from(self.kbit) * 125.0
    }

    /// That of the slow registry and of the thin link.
    pub fn quarter(self) -> Rate {
        Rate { kbit: self.kbit / 4 }
    }

    /// For `tc`: the burst is 10 ms worth, which keeps tbf from losing rate to the timer's grain, but 16 KiB at least.
    pub fn shape(self) -> String {
        let burst = (self.kbit * 10 / 8).max(16 << 10);
        format!("rate {}kbit burst {burst}b latency 50ms", self.kbit)
    }
}

/// A trickle lets a node go this long after the one before.
pub const TRICKLE: Duration = Duration::from_secs(1);

/// One way to start a crowd.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub shape: Shape,
    pub release: Release,
    pub links: Links,
    pub fault: Fault,
    /// As many nodes, whatever the command line says.
    pub nodes: Option<u8>,
    /// The first node has the image before the others pull it.
    pub seeded: bool,
}

/// When nodes start to pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    Together,
    /// A fifth of the nodes at a time, the next when the last have ended.
    Rolling,
    /// One after the other.
    Trickle,
}

/// How links are shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// All alike, both ways.
    Equal,
    /// The registry's has a quarter.
    SlowRegistry,
    /// Two bridges, and between them a quarter of a link; the registry is in the first zone.
    TwoZones,
    Unshaped,
}

const COLD: Scenario = Scenario {
    name: "cold-1",
    shape: Shape::One,
    release: Release::Together,
    links: Links::Equal,
    fault: Fault::None,
    nodes: None,
    seeded: false,
};

/// All scenarios, in the order of the table.
pub const ALL: [Scenario; 20] = [
    COLD,
    Scenario { name: "cold-4", shape: Shape::Four, ..COLD },
    Scenario { name: "rolling", release: Release::Rolling, ..COLD },
    Scenario { name: "trickle", release: Release::Trickle, ..COLD },
    Scenario { name: "small-100", shape: Shape::Hundred, ..COLD },
    Scenario { name: "slow-origin", links: Links::SlowRegistry, ..COLD },
    Scenario { name: "two-zones", links: Links::TwoZones, ..COLD },
    Scenario { name: "origin-killed", fault: Fault::OriginKilled, ..COLD },
    Scenario { name: "corrupt-relay", fault: Fault::CorruptRelay, ..COLD },
    Scenario { name: "corrupt-origin-reader", fault: Fault::CorruptOriginReader, ..COLD },
    Scenario { name: "rotten-store", fault: Fault::RottenStore, ..COLD },
    Scenario { name: "stalled-peer", fault: Fault::StalledPeer, ..COLD },
    Scenario { name: "tracker-killed", fault: Fault::TrackerKilled, ..COLD },
    Scenario { name: "killed-10", fault: Fault::KilledTenth, ..COLD },
    Scenario { name: "others-dead", fault: Fault::OthersDead, ..COLD },
    Scenario { name: "alone", nodes: Some(1), ..COLD },
    Scenario { name: "alone-unshaped", links: Links::Unshaped, nodes: Some(1), ..COLD },
    Scenario { name: "tiny", shape: Shape::Tiny, nodes: Some(1), ..COLD },
    Scenario { name: "pulls-16", shape: Shape::Sixteen, links: Links::Unshaped, nodes: Some(1), ..COLD },
    Scenario { name: "relay", links: Links::Unshaped, nodes: Some(2), seeded: true, ..COLD },
];

impl Scenario {
    /// How many of the nodes pull.
    pub fn pulling(&self, nodes: u8) -> u8 {
        if self.fault == Fault::OthersDead { 1 } else { nodes }
    }

    /// The nodes that go together, the first wave first.
    pub fn waves(&self, nodes: u8) -> Vec<Vec<usize>> {
        let all: Vec<usize> = (0..usize::from(self.pulling(nodes))).collect();
        let wave = match self.release {
            Release::Together => all.len(),
            Release::Rolling => all.len().div_ceil(5),
            Release::Trickle => 1,
        };
        all.chunks(wave.max(1)).map(<[usize]>::to_vec).collect()
    }

    /// Seconds that no crowd can beat, from the first release to the last end. `None` where no link is the limit.
    ///
    /// F / B for nodes that go together; once a wave for waves; behind the last release for a trickle; F over the
    /// slow link where there is one, since every byte crosses it.
    pub fn bound_s(&self, image: &Image, nodes: u8) -> Option<f64> {
        let over = |rate: Rate| bytes(image) / rate.bytes_per_s();
        let once = match self.links {
            Links::Equal => over(image.rate),
            Links::SlowRegistry => over(image.rate.quarter()),
            // A lone zone has no thin link to cross.
            Links::TwoZones if nodes > 1 => over(image.rate.quarter()),
            Links::TwoZones => over(image.rate),
            Links::Unshaped => return None,
        };
        let waves = self.waves(nodes).len();
        Some(match self.release {
            Release::Together => once,
            Release::Rolling => once * count(waves),
            Release::Trickle => once + TRICKLE.as_secs_f64() * count(waves.saturating_sub(1)),
        })
    }

    /// What pieces cost beyond the bound: `floor(log2 N)` of them, each sent over one link.
    pub fn optimum_s(&self, image: &Image, nodes: u8) -> Option<f64> {
        let doublings = f64::from(self.pulling(nodes).max(1).ilog2());
        let piece = bytes(image)
            / image.rate.bytes_per_s()
            / count(usize::try_from(image.pieces()).unwrap_or(usize::MAX));
        self.bound_s(image, nodes).map(|bound| bound + doublings * piece)
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of images are far below 2^52")]
fn bytes(image: &Image) -> f64 {
    image.bytes as f64
}

#[expect(clippy::cast_precision_loss, reason = "nodes and pieces are counted by the thousand")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::{ALL, COLD, Image, Links, RATE, Rate, Release, Scenario};
    use crate::bench::image::{Layer, Shape};

    fn image() -> Image {
        let layers = vec![Layer { digest: String::new(), bytes: 4 << 20 }];
        Image { root: "/".into(), shape: Shape::One, rate: RATE, layers, bytes: 62_500_000 }
    }

    #[test]
    fn bounds_are_those_of_the_links() {
        let bound = |scenario: Scenario| scenario.bound_s(&image(), 8);
        assert_eq!(bound(COLD), Some(10.0));
        assert_eq!(bound(Scenario { links: Links::SlowRegistry, ..COLD }), Some(40.0));
        assert_eq!(bound(Scenario { release: Release::Rolling, ..COLD }), Some(40.0));
        assert_eq!(bound(Scenario { release: Release::Trickle, ..COLD }), Some(17.0));
        assert_eq!(bound(Scenario { links: Links::Unshaped, ..COLD }), None);
        // (1 + floor(log2 8) / 64) F / B
        assert_eq!(COLD.optimum_s(&image(), 8), Some(10.0 * (1.0 + 3.0 / 64.0)));
        assert_eq!(COLD.optimum_s(&image(), 1), Some(10.0));
    }

    #[test]
    fn waves_hold_every_node_once() {
        let rolling = Scenario { release: Release::Rolling, ..COLD };
        assert_eq!(rolling.waves(8), [vec![0, 1], vec![2, 3], vec![4, 5], vec![6, 7]]);
        assert_eq!(rolling.waves(3), [[0], [1], [2]]);
        assert_eq!(COLD.waves(3), [[0, 1, 2]]);
        assert_eq!(Scenario { release: Release::Trickle, ..COLD }.waves(2), [[0], [1]]);
    }

    #[test]
    fn tc_reads_rates_and_bursts() {
        assert_eq!(Rate::of_mbit(100).shape(), "rate 100000kbit burst 125000b latency 50ms");
        assert_eq!(RATE.quarter().shape(), "rate 12500kbit burst 16384b latency 50ms");
    }

    #[test]
    fn names_are_each_others_alone() {
        let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        assert!(names.iter().enumerate().all(|(at, name)| !names.iter().skip(at + 1).any(|n| n == name)));
    }
}
