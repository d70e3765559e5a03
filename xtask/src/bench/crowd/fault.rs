//! What goes wrong, on whom, and when.

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The registry is killed; it comes back when the pulls would long have ended.
    OriginKilled,
    /// A man in the middle with a member's own certificate spoils each piece that it serves.
    CorruptRelay,
    /// A member's way to the registry leads through a proxy that spoils blobs.
    CorruptOriginReader,
    /// A member has the image, and its copy rots on disk before the crowd comes.
    RottenStore,
    /// A member's daemon is stopped, its connections stay.
    StalledPeer,
    /// The member that tracks the largest layer is killed.
    TrackerKilled,
    /// A tenth of the members is killed.
    KilledTenth,
    /// The machines of all but the first are gone in the moment before it pulls.
    OthersDead,
}

/// What a node is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Sound,
    LyingRelay,
    MisledReader,
    Rotten,
    /// Its own pull ends when it may go on, which does not count for the makespan.
    Stopped,
    /// Its own pull ends with it.
    Killed,
}

/// The registry is killed at this share of the bound, which the scenario's name promises.
const ORIGIN_KILLED_AT: f64 = 0.3;

/// And comes back here: whatever the others can give each other they have given.
pub const ORIGIN_BACK_AT: f64 = 1.5;

/// Members are struck here: pieces go in all directions, and nobody has all.
const MEMBERS_STRUCK_AT: f64 = 0.4;

impl Fault {
    /// When it strikes after the release, as a share of the bound; `None` where it is there from the beginning.
    pub fn strikes_at(self) -> Option<f64> {
        match self {
            Fault::None
            | Fault::CorruptRelay
            | Fault::CorruptOriginReader
            | Fault::RottenStore
            | Fault::OthersDead => None,
            Fault::OriginKilled => Some(ORIGIN_KILLED_AT),
            Fault::StalledPeer | Fault::TrackerKilled | Fault::KilledTenth => Some(MEMBERS_STRUCK_AT),
        }
    }

    /// Each node's part; `tracker` is the place of the one that tracks the largest layer.
    pub fn parts(self, nodes: usize, tracker: usize) -> Vec<Part> {
        let but_the_tracker = || (0..nodes).rev().filter(move |node| *node != tracker);
        let (part, struck): (Part, Vec<usize>) = match self {
            Fault::None | Fault::OriginKilled => (Part::Sound, Vec::new()),
            Fault::CorruptRelay => (Part::LyingRelay, but_the_tracker().take(1).collect()),
            Fault::CorruptOriginReader => (Part::MisledReader, but_the_tracker().take(1).collect()),
            Fault::RottenStore => (Part::Rotten, but_the_tracker().take(1).collect()),
            Fault::StalledPeer => (Part::Stopped, but_the_tracker().take(1).collect()),
            Fault::TrackerKilled => (Part::Killed, vec![tracker]),
            Fault::KilledTenth => (Part::Killed, but_the_tracker().take(tenth(nodes)).collect()),
            Fault::OthersDead => (Part::Killed, (1..nodes).collect()),
        };
        (0..nodes).map(|node| if struck.contains(&node) { part } else { Part::Sound }).collect()
    }
}

/// Rounded, and at least one.
fn tenth(nodes: usize) -> usize {
    ((nodes + 5) / 10).max(1)
}

impl Part {
    /// Whether the end of its own pull counts for the makespan.
    pub fn is_waited_for(self) -> bool {
        match self {
            Part::Sound | Part::LyingRelay | Part::MisledReader | Part::Rotten => true,
            Part::Stopped | Part::Killed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Part};

    #[test]
    fn a_fault_strikes_whom_it_names() {
        let struck = |fault: Fault, nodes, tracker| -> Vec<usize> {
            let parts = fault.parts(nodes, tracker);
            assert_eq!(parts.len(), nodes);
            (0..nodes).filter(|node| parts.get(*node) != Some(&Part::Sound)).collect()
        };
        assert_eq!(struck(Fault::TrackerKilled, 8, 3), [3]);
        assert_eq!(struck(Fault::KilledTenth, 8, 3), [7]);
        assert_eq!(struck(Fault::KilledTenth, 16, 15), [13, 14]);
        assert_eq!(struck(Fault::StalledPeer, 3, 2), [1]);
        assert_eq!(struck(Fault::OthersDead, 4, 0), [1, 2, 3]);
        assert!(struck(Fault::OriginKilled, 8, 0).is_empty());
    }
}
