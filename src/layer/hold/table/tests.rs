use super::*;
use crate::oci::Algorithm;

const SECOND: Duration = Duration::from_secs(1);

/// A table, and a clock that only the story moves.
struct Story {
    table: Table,
    now: Instant,
}

fn digest(name: &str) -> Digest {
    Digest::of(Algorithm::Sha256, name.as_bytes())
}

fn ref_key(name: &str) -> RefKey {
    RefKey { namespace: "k8s.io".into(), r#ref: format!("layer-{}", digest(name)) }
}

impl Story {
    /// Holds may idle for 10 s and last for 30 s.
    fn new() -> Self {
        let limits = Limits { idle_max: 10 * SECOND, total_max: Some(30 * SECOND) };
        Self { table: Table::new(limits), now: Instant::now() }
    }

    fn ask(&mut self, name: &str, extract_key: &str) -> Asked {
        self.table.ask(&ref_key(name), &digest(name), extract_key, self.now)
    }

    fn hold(&mut self, name: &str, extract_key: &str) {
        assert_eq!(self.ask(name, extract_key), Asked::Open);
        assert_eq!(self.table.opened(&ref_key(name), self.now), None);
    }

    fn gone(&mut self, extract_key: &str) -> Vec<RefKey> {
        self.table.key_gone(extract_key, End::KeyRemoved)
    }

    fn ended(&mut self, name: &str, end: End) {
        self.table.ending(&ref_key(name));
        self.table.ended(&ref_key(name), end, self.now);
    }

    fn expired(&mut self, name: &str, after: Duration) -> Option<End> {
        self.now += after;
        self.table.expired(&ref_key(name), self.now)
    }
}

#[test]
fn one_hold_serves_two_pulls_and_ends_with_the_last() {
    let mut story = Story::new();
    story.hold("a", "first");
    assert_eq!(story.ask("a", "second"), Asked::Holding);
    assert_eq!(story.gone("first"), []);
    assert_eq!(story.gone("unknown"), []);
    assert_eq!(story.gone("second"), [ref_key("a")]);
    assert_eq!(story.gone("second"), []);
}

#[test]
fn a_key_may_be_removed_before_its_ref_is_open() {
    let mut story = Story::new();
    assert_eq!(story.ask("a", "first"), Asked::Open);
    assert_eq!(story.gone("first"), []);
    assert_eq!(story.table.opened(&ref_key("a"), story.now), Some(End::KeyRemoved));
    assert_eq!(story.ask("a", "second"), Asked::Wait);
    story.ended("a", End::KeyRemoved);
    assert_eq!(story.ask("a", "second"), Asked::Open);
}

#[test]
fn a_client_that_comes_back_while_the_ref_is_opened_keeps_it() {
    let mut story = Story::new();
    assert_eq!(story.ask("a", "first"), Asked::Open);
    assert_eq!(story.gone("first"), []);
    assert_eq!(story.ask("a", "second"), Asked::Wait);
    assert_eq!(story.table.opened(&ref_key("a"), story.now), None);
    assert_eq!(story.ask("a", "second"), Asked::Holding);
}

#[test]
fn a_blob_that_comes_while_the_ref_is_opened_ends_the_hold() {
    let mut story = Story::new();
    assert_eq!(story.ask("a", "first"), Asked::Open);
    assert_eq!(story.table.blob_settled("k8s.io", &digest("a"), End::BlobCommitted), []);
    assert_eq!(story.ask("a", "second"), Asked::Wait);
    assert_eq!(story.table.opened(&ref_key("a"), story.now), Some(End::BlobCommitted));
}

#[test]
fn a_blob_ends_holds_of_its_own_namespace_only() {
    let mut story = Story::new();
    story.hold("a", "first");
    story.hold("b", "first");
    let elsewhere = RefKey { namespace: "default".into(), ..ref_key("a") };
    assert_eq!(story.table.ask(&elsewhere, &digest("a"), "other", story.now), Asked::Open);
    assert_eq!(story.table.opened(&elsewhere, story.now), None);
    assert_eq!(story.table.blob_settled("k8s.io", &digest("a"), End::BlobCommitted), [ref_key("a")]);
    assert_eq!(story.table.blob_settled("default", &digest("a"), End::BlobCommitted), [elsewhere]);
}

#[test]
fn between_two_layers_of_a_pull_its_holds_stay() {
    let mut story = Story::new();
    story.hold("a", "layer 1");
    story.table.key_settled("layer 1");
    assert_eq!(story.gone("layer 1"), []);
    assert_eq!(story.ask("a", "layer 2"), Asked::Holding);
    assert_eq!(story.gone("layer 2"), [ref_key("a")]);
}

#[test]
fn a_pull_between_two_layers_keeps_what_another_gives_up() {
    let mut story = Story::new();
    story.hold("a", "one");
    assert_eq!(story.ask("a", "two"), Asked::Holding);
    story.table.key_settled("one");
    assert_eq!(story.gone("two"), []);
}

#[test]
fn pieces_keep_a_hold_alive_until_its_total() {
    let mut story = Story::new();
    story.hold("a", "key");
    for _ in 0..3 {
        assert_eq!(story.expired("a", 9 * SECOND), None);
        story.table.progress(&digest("a"), story.now);
    }
    let deadline = story.table.deadline(&ref_key("a")).unwrap();
    assert_eq!(deadline - story.now, 3 * SECOND);
    assert_eq!(story.expired("a", 3 * SECOND), Some(End::TotalMax));
}

#[test]
fn without_a_piece_a_hold_idles_out() {
    let mut story = Story::new();
    story.hold("a", "key");
    story.table.progress(&digest("b"), story.now + 5 * SECOND);
    assert_eq!(story.table.deadline(&ref_key("a")), Some(story.now + 10 * SECOND));
    assert_eq!(story.expired("a", 10 * SECOND), Some(End::IdleMax));
}

#[test]
fn newer_versions_hold_as_long_as_pieces_arrive() {
    let mut story = Story::new();
    story.table.set_limits(Limits { idle_max: 10 * SECOND, total_max: None });
    story.hold("a", "key");
    for _ in 0..1000 {
        assert_eq!(story.expired("a", 9 * SECOND), None);
        story.table.progress(&digest("a"), story.now);
    }
    assert_eq!(story.expired("a", 10 * SECOND), Some(End::IdleMax));
}

#[test]
fn a_hold_that_reached_a_limit_is_left_to_containerd_for_a_while() {
    let mut story = Story::new();
    story.hold("a", "layer 1");
    story.ended("a", End::TotalMax);
    assert_eq!(story.ask("a", "layer 2"), Asked::Refused("hold_max"));
    story.now += YIELD_MAX;
    assert_eq!(story.ask("a", "another pull"), Asked::Open);
}

#[test]
fn a_lost_hold_may_be_asked_for_anew() {
    let mut story = Story::new();
    story.hold("a", "key");
    story.ended("a", End::Lost);
    assert_eq!(story.table.deadline(&ref_key("a")), None);
    assert_eq!(story.ask("a", "key of a new pull"), Asked::Open);
}

#[test]
fn what_is_over_leaves_nothing_behind() {
    let mut story = Story::new();
    for name in ["a", "b", "c"] {
        story.hold(name, "key");
    }
    story.ended("a", End::BlobCommitted);
    story.ended("b", End::IdleMax);
    story.table.forget(&ref_key("c"));
    assert!(story.table.pieces.is_empty());
    story.now += YIELD_MAX;
    assert_eq!(story.ask("d", "key"), Asked::Open);
    assert_eq!(story.table.refs.len(), 1);
}

#[test]
fn there_is_a_limit_to_holding() {
    let mut story = Story::new();
    for n in 0..REFS_MAX {
        assert_eq!(story.ask(&n.to_string(), "key"), Asked::Open);
    }
    assert_eq!(story.ask("one more", "key"), Asked::Refused("too_many_holds"));
}
