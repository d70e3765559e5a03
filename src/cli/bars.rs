//! Progress for a person, on standard error; nothing where that is no terminal.

use std::collections::BTreeMap;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::door::admin::BytesBySource;

/// A bar each, by name.
pub(super) struct Bars {
    all: Option<MultiProgress>,
    bars: BTreeMap<String, ProgressBar>,
}

/// How something stands.
pub(super) struct Standing<'a> {
    /// What stands before the bar.
    pub(super) label: String,
    pub(super) total: u64,
    pub(super) bytes: BytesBySource,
    pub(super) state: &'a str,
}

impl Bars {
    pub(super) fn new(quiet: bool) -> Self {
        Self { all: (!quiet).then(MultiProgress::new), bars: BTreeMap::new() }
    }

    pub(super) fn show(&mut self, name: &str, standing: Standing<'_>) {
        let Some(all) = &self.all else { return };
        let Standing { label, total, bytes, state } = standing;
        let bar = self.bars.entry(name.to_owned()).or_insert_with(|| {
            let style =
                ProgressStyle::with_template("{prefix} [{bar:30}] {bytes:>10} of {total_bytes:>10} {msg}")
                    .expect("the template is well-formed, as a test shows");
            all.add(ProgressBar::new(total).with_style(style))
        });
        bar.set_prefix(label);
        bar.set_length(total);
        bar.set_position(bytes.local + bytes.peer + bytes.origin);
        bar.set_message(format!("{state} {}", sources(bytes)));
    }

    /// Writes past the bars.
    pub(super) fn around<R>(&self, write: impl FnOnce() -> R) -> R {
        match &self.all {
            Some(all) => all.suspend(write),
            None => write(),
        }
    }

    pub(super) fn clear(&self) {
        if let Some(all) = &self.all {
            // A terminal that cannot be cleared is not worth a failure.
            let _ = all.clear();
        }
    }
}

/// Where bytes came from, of those sources that gave any.
pub(super) fn sources(bytes: BytesBySource) -> String {
    let named = [("local", bytes.local), ("peers", bytes.peer), ("registry", bytes.origin)];
    let parts = named.iter().filter(|(_, bytes)| *bytes > 0);
    parts.map(|(name, bytes)| format!("{name} {}  ", HumanBytes(*bytes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_can_be_drawn() {
        let mut bars = Bars::new(false);
        let bytes = BytesBySource { local: 0, peer: 4, origin: 2 };
        bars.show("a", Standing { label: "layer".into(), total: 10, bytes, state: "arriving" });
        assert_eq!(bars.bars.values().next().unwrap().position(), 6);
    }
}
