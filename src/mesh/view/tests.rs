//! Stories of a view, with time as a number.

use super::*;
use crate::mesh::Role;

/// A view of `me`, driven by hand.
struct Story {
    view: View,
    start: Instant,
    now: Instant,
}

fn member(name: &str, generation: u64) -> Member {
    at(name, generation, &format!("{name}:7442"))
}

fn at(name: &str, generation: u64, address: &str) -> Member {
    Member { name: name.into(), address: address.into(), zone: None, generation, role: Role::Peer }
}

fn contact(host: &str) -> Contact {
    Contact { address: format!("{host}:7442"), names: vec![host.into()] }
}

impl Story {
    fn new(seeds: &[&str]) -> Self {
        let start = Instant::now();
        let mut story = Self { view: View::new(member("me", 1)), start, now: start };
        story.seeds(seeds);
        story
    }

    fn seeds(&mut self, hosts: &[&str]) {
        let contacts = hosts.iter().map(|host| contact(host)).collect();
        self.apply(Event::Resolved { seed: "dns:all".into(), contacts });
    }

    fn apply(&mut self, event: Event) -> Vec<Change> {
        self.view.apply(event, self.now)
    }

    fn after(&mut self, millis: u64) -> &mut Self {
        self.now += Duration::from_millis(millis);
        self
    }

    fn due(&mut self) -> Vec<Target> {
        self.view.due(self.now, 100).0
    }

    /// Greets whoever is due; `world` says who answers.
    fn greet(&mut self, world: impl Fn(&str) -> Result<Member, (&'static str, bool)>) -> Vec<Change> {
        let mut changes = Vec::new();
        loop {
            let targets = self.due();
            if targets.is_empty() {
                return changes;
            }
            for target in targets {
                let address = match &target {
                    Target::Contact(contact) => contact.address.clone(),
                    Target::Member { member, .. } => member.address.clone(),
                };
                changes.extend(self.apply(match world(&address) {
                    Ok(member) => Event::Answered { target, member, heard: vec![] },
                    Err((reason, is_final)) => Event::Failed { target, reason: reason.into(), is_final },
                }));
            }
            // A miss is asked again at once; its second has passed.
            self.now += Duration::from_millis(1);
        }
    }

    fn live(&self) -> String {
        self.view.live().iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(" ")
    }
}

const REFUSED: Result<Member, (&str, bool)> = Err(("refused", true));
const SILENT: Result<Member, (&str, bool)> = Err(("silent", false));

#[test]
fn a_contact_becomes_a_member_once_it_answers_at_its_own_address() {
    let mut story = Story::new(&["seed"]);
    let changes = story.greet(|address| match address {
        "seed:7442" => Ok(member("a", 5)),
        "a:7442" => REFUSED,
        other => panic!("nobody was to dial {other}"),
    });
    let unreachable = Change::Unreachable { member: member("a", 5), reason: "refused".into() };
    assert_eq!(changes, [unreachable]);
    assert_eq!(story.live(), "me");
    story.after(1000);
    assert_eq!(story.greet(|_| Ok(member("a", 5))), [Change::Joined(member("a", 5))]);
    assert_eq!(story.live(), "a me");
}

#[test]
fn a_list_that_names_ourselves_makes_nobody() {
    let mut story = Story::new(&["me"]);
    assert_eq!(story.greet(|_| Ok(member("me", 1))), []);
    assert_eq!(story.live(), "me");
    story.after(120_000);
    assert_eq!(story.due(), []);
}

#[test]
fn somebody_who_greets_us_is_greeted_back_before_he_counts() {
    let mut story = Story::new(&[]);
    assert_eq!(story.view.called(member("b", 3), story.now), Ok(vec![]));
    assert_eq!(story.live(), "me");
    assert_eq!(story.greet(|_| Ok(member("b", 3))), [Change::Joined(member("b", 3))]);
    assert_eq!(story.view.called(member("b", 3), story.now), Ok(vec![]));
    assert_eq!(story.due(), []);
}

fn with_live_a() -> Story {
    let mut story = Story::new(&["a"]);
    story.greet(|_| Ok(member("a", 5)));
    assert_eq!(story.live(), "a me");
    story
}

#[test]
fn a_refused_connection_is_the_end_at_once_and_three_silent_seconds_are() {
    let mut story = with_live_a();
    let gone = |reason: &str| vec![Change::Unreachable { member: member("a", 5), reason: reason.into() }];
    story.after(900);
    assert_eq!(story.due(), []);
    assert_eq!(story.after(100).greet(|_| REFUSED), gone("refused"));
    assert_eq!(story.live(), "me");

    let mut story = with_live_a();
    for silent in 1..=2 {
        let target = story.after(1000).due().pop().unwrap();
        let missed = Event::Failed { target, reason: "silent".into(), is_final: false };
        assert_eq!(story.apply(missed), [], "miss {silent}");
        assert_eq!(story.live(), "a me");
    }
    // Once more: an answer wipes the misses out.
    assert_eq!(story.greet(|_| Ok(member("a", 5))), []);
    assert_eq!(story.after(1000).greet(|_| SILENT), gone("silent"));
    assert_eq!(story.live(), "me");
}

#[test]
fn who_is_gone_is_asked_less_and_less_and_forgotten_after_an_hour() {
    let mut story = with_live_a();
    story.seeds(&[]);
    story.after(1000).greet(|_| REFUSED);
    let mut waits = Vec::new();
    let mut asked = story.now;
    while story.now < story.start + Duration::from_secs(200) {
        let targets = story.after(100).due();
        for target in targets {
            waits.push(story.now.duration_since(asked).as_secs());
            asked = story.now;
            let again = Event::Failed { target, reason: "refused".into(), is_final: true };
            assert_eq!(story.apply(again), [], "the same reason is told once");
        }
    }
    assert_eq!(waits[..7], [1, 2, 4, 8, 16, 30, 30]);
    story.after(3_600_000);
    let (targets, changes) = story.view.due(story.now, 100);
    assert_eq!((targets, changes), (vec![], vec![Change::Forgotten(member("a", 5))]));
    assert_eq!(story.view.all().len(), 1);
}

#[test]
fn one_who_comes_back_is_greeted_at_once() {
    let mut story = with_live_a();
    story.after(1000).greet(|_| REFUSED);
    let back = story.view.called(member("a", 9), story.now);
    assert_eq!(back, Ok(vec![Change::Replaced { old: member("a", 5), new: member("a", 9) }]));
    assert_eq!(story.greet(|_| Ok(member("a", 9))), [Change::Joined(member("a", 9))]);
    assert_eq!(story.live(), "a me");
}

#[test]
fn a_restart_between_two_greetings_is_seen_even_if_the_clock_ran_backwards() {
    for generation in [9, 2] {
        let mut story = with_live_a();
        let changes = story.after(1000).greet(|_| Ok(member("a", generation)));
        assert_eq!(changes, [Change::Replaced { old: member("a", 5), new: member("a", generation) }]);
        assert_eq!(story.live(), "a me");
    }
}

#[test]
fn what_was_asked_of_the_old_daemon_says_nothing_of_the_new_one() {
    let mut story = with_live_a();
    let target = story.after(1000).due().pop().unwrap();
    story.view.called(member("a", 9), story.now).unwrap();
    story.greet(|_| Ok(member("a", 9)));
    let stale = Event::Failed { target, reason: "refused".into(), is_final: true };
    assert_eq!(story.apply(stale), []);
    assert_eq!(story.live(), "a me");
}

#[test]
fn of_two_nodes_with_one_name_the_newest_stays_and_one_line_says_so() {
    let mut story = with_live_a();
    let older = at("a", 3, "elsewhere:7442");
    let refusal = story.view.called(older.clone(), story.now).unwrap_err();
    assert!(refusal.to_string().contains("another member at a:7442 is also called `a`"));
    story.seeds(&["a", "elsewhere"]);
    let world = |address: &str| match address {
        "a:7442" => Ok(member("a", 5)),
        _ => Ok(at("a", 3, "elsewhere:7442")),
    };
    let conflict =
        Change::Conflict { name: "a".into(), stays: "a:7442".into(), ignored: "elsewhere:7442".into() };
    assert_eq!(story.greet(world), [conflict]);
    assert_eq!(story.after(60_000).greet(world), [], "told once");
    assert_eq!(story.view.live()[0].address, "a:7442");

    let newer = at("a", 8, "elsewhere:7442");
    assert_eq!(
        story.view.called(newer.clone(), story.now),
        Ok(vec![Change::Replaced { old: member("a", 5), new: newer.clone() }])
    );
    assert_eq!(story.greet(|_| Ok(newer.clone())), [Change::Joined(newer.clone())]);
    assert!(matches!(
        story.view.called(at("me", 7, "x:1"), story.now),
        Err(Refusal::NameTaken { stays, .. }) if stays == "me:7442"
    ));
}

#[test]
fn a_doubted_member_is_asked_now() {
    let mut story = with_live_a();
    assert_eq!(story.due(), []);
    story.apply(Event::Doubted { name: "a".into() });
    assert_eq!(story.due(), [Target::Member { member: member("a", 5), alive: true, introduce: false }]);
    // While that greeting is under way, doubt adds no second one.
    story.apply(Event::Doubted { name: "a".into() });
    story.apply(Event::Doubted { name: "stranger".into() });
    assert_eq!(story.due(), []);
}

#[test]
fn a_seed_that_does_not_answer_is_told_once_for_each_reason_and_shown() {
    let mut story = Story::new(&["a"]);
    let silent = |reason: &str| vec![Change::Silent { contact: contact("a"), reason: reason.into() }];
    assert_eq!(story.greet(|_| SILENT), silent("silent"));
    assert_eq!(story.after(1000).greet(|_| SILENT), []);
    assert_eq!(story.after(2000).greet(|_| REFUSED), silent("refused"));
    let shown = story.view.all();
    assert_eq!(shown[0].0.name, "a:7442");
    assert_eq!(shown[0].1, MemberState::Unreachable { reason: "refused".into() });
    story.seeds(&["b"]);
    story.greet(|_| Ok(member("b", 1)));
    assert_eq!(story.view.all().len(), 2, "an address that DNS has dropped is dropped");
}

#[test]
fn the_number_of_members_is_bounded() {
    let mut story = Story::new(&[]);
    for n in 0..MEMBERS_MAX {
        story.view.called(member(&format!("n{n}"), 1), story.now).unwrap();
    }
    assert_eq!(story.view.called(member("late", 1), story.now), Err(Refusal::Full));
    assert_eq!(story.view.due(story.now, 64).0.len(), 64);
    story.seeds(&["late"]);
    let late = Event::Answered {
        target: Target::Contact(contact("late")),
        member: member("late", 1),
        heard: vec![],
    };
    assert_eq!(story.apply(late), [Change::Full]);
}

/// Nodes that reach each other unless they are down; what one says the other hears at once.
struct World {
    nodes: Vec<Option<View>>,
    generation: u64,
    now: Instant,
}

impl World {
    fn new(count: usize) -> Self {
        let mut world = Self { nodes: vec![], generation: 0, now: Instant::now() };
        world.nodes.resize_with(count, || None);
        (0..count).for_each(|n| world.start(n));
        world
    }

    fn start(&mut self, n: usize) {
        self.generation += 1;
        let mut view = View::new(member(&format!("n{n}"), self.generation));
        let contacts = [contact("n0"), contact("n1")].into();
        view.apply(Event::Resolved { seed: "list".into(), contacts }, self.now);
        self.nodes[n] = Some(view);
    }

    /// `from` greets whoever is at `address`.
    fn call(&mut self, from: usize, address: &str, introduce: bool) -> Option<(Member, Vec<Member>)> {
        let caller = self.nodes[from].as_ref().unwrap().me().clone();
        let called = self.nodes.iter_mut().flatten().find(|view| view.me().address == address)?;
        let caller_name = caller.name.clone();
        called.called(caller, self.now).ok()?;
        let others = if introduce { called.others_than(&caller_name).cloned().collect() } else { vec![] };
        Some((called.me().clone(), others))
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            for n in 0..self.nodes.len() {
                let Some(view) = &mut self.nodes[n] else { continue };
                for target in view.due(self.now, 64).0 {
                    let (address, introduce) = match &target {
                        Target::Contact(contact) => (contact.address.clone(), true),
                        Target::Member { member, introduce, .. } => (member.address.clone(), *introduce),
                    };
                    let event = match self.call(n, &address, introduce) {
                        Some((member, heard)) => Event::Answered { target, member, heard },
                        None => Event::Failed { target, reason: "refused".into(), is_final: true },
                    };
                    self.nodes[n].as_mut().unwrap().apply(event, self.now);
                }
            }
            self.now += Duration::from_millis(500);
        }
    }

    /// Whom each node that is up sees.
    fn seen(&self) -> Vec<String> {
        self.nodes.iter().flatten().map(|view| listed(view.live())).collect()
    }

    fn up(&self) -> String {
        listed(self.nodes.iter().flatten().map(View::me))
    }
}

fn listed<'a>(members: impl IntoIterator<Item = &'a Member>) -> String {
    members.into_iter().map(|member| format!("{}#{} ", member.name, member.generation)).collect()
}

#[test]
fn all_meet_all_although_each_was_given_two_addresses() {
    let mut world = World::new(9);
    world.run(3);
    assert_eq!(world.seen(), vec![world.up(); 9]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn after_any_deaths_and_restarts_all_agree_again(
        story in proptest::collection::vec((0usize..6, proptest::bool::ANY, 0u64..40), 0..20)
    ) {
        let mut world = World::new(6);
        for (n, up, seconds) in story {
            if up { world.start(n) } else { world.nodes[n] = None }
            world.run(seconds);
        }
        // One of the two addresses that everybody knows has to be somebody's.
        world.start(0);
        // Who was unreachable for long is asked every 30 s.
        world.run(65);
        proptest::prop_assert_eq!(world.seen(), vec![world.up(); world.nodes.iter().flatten().count()]);
    }
}
