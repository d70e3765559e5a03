//! What one node's call does at another, and how long it takes there and back.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use rand::RngExt;

use super::{CALL_MAX, Fault, ROOM, Sim, WATCH_MAX};
use crate::{
    mesh::swim::{Action, Event, Life, Target},
    wire::mesh as wire,
};

/// What comes to a node.
#[derive(Debug)]
pub(super) enum Message {
    /// It has something to do.
    Wake,
    /// It begins to look for members.
    Start,
    /// What a call of its own came to.
    Outcome(Event),
    Frame {
        from: usize,
        to: Life,
        frame: Bytes,
    },
    /// Is it there?
    Watch {
        from: usize,
        who: Life,
    },
    /// Of a node that it called.
    Answer {
        from: usize,
        frame: Bytes,
    },
    Hello {
        from: usize,
        life: Life,
        target: Target,
    },
    Compare {
        from: usize,
        sums: wire::CompareRequest,
    },
    Parts {
        from: usize,
        parts: wire::CompareResponse,
    },
    Exchange {
        from: usize,
        request: wire::ExchangeRequest,
    },
    Exchanged {
        from: usize,
        answer: wire::ExchangeResponse,
    },
}

impl Sim {
    pub(super) fn greet(&mut self, from: usize, target: Target) {
        let address = match &target {
            Target::Contact(contact) => &contact.address,
            Target::Member(life) => &life.member().address,
        };
        let life = self.nodes[from].swim.me().clone();
        let len = life.to_wire().encoded_len();
        match self.by_address.get(address).copied() {
            Some(to) => self.call(from, to, len, Message::Hello { from, life, target }),
            None => self.put(CALL_MAX, from, Message::Outcome(failed(target, false))),
        }
    }

    pub(super) fn send(&mut self, from: usize, to: &Life, frame: Bytes) {
        let number = self.by_address[&to.member().address];
        self.call(from, number, frame.len(), Message::Frame { from, to: to.clone(), frame });
    }

    pub(super) fn watch(&mut self, from: usize, who: Life) {
        let to = self.by_address[&who.member().address];
        self.call(from, to, 0, Message::Watch { from, who });
    }

    pub(super) fn compare(&mut self, from: usize, with: Life) {
        let sums = self.nodes[from].swim.comparison();
        let to = self.by_address[&with.member().address];
        self.call(from, to, sums.encoded_len(), Message::Compare { from, sums });
    }

    /// A request on its way; lost, or the other side cut off, it is given up after [`CALL_MAX`].
    fn call(&mut self, from: usize, to: usize, len: usize, message: Message) {
        self.figures.called(from, to, len);
        let there = self.nodes[from].part == self.nodes[to].part && !self.is_lost();
        match there {
            true => {
                let delay = self.delay(from, to);
                self.put(delay, to, message);
            }
            false => self.give_up(from, message),
        }
    }

    fn answer(&mut self, from: usize, to: usize, len: usize, message: Message) {
        self.figures.sent(from, len);
        if !self.is_lost() && self.nodes[from].part == self.nodes[to].part {
            let delay = self.delay(from, to);
            self.put(delay, to, message);
        }
    }

    fn is_lost(&mut self) -> bool {
        self.loss > 0.0 && self.rng.random_bool(self.loss)
    }

    fn delay(&mut self, from: usize, to: usize) -> Duration {
        let way = Duration::from_micros(self.rng.random_range(500..1500));
        way + self.nodes[from].slowness + self.nodes[to].slowness
    }

    fn give_up(&mut self, caller: usize, message: Message) {
        let after = if matches!(message, Message::Watch { .. }) { WATCH_MAX } else { CALL_MAX };
        if let Some(event) = lost(message, false) {
            self.put(after, caller, Message::Outcome(event));
        }
    }

    /// What comes to a node that is dead.
    pub(super) fn unheard(&mut self, number: usize, message: Message) {
        match (self.nodes[number].fault, caller(&message)) {
            (Fault::Refusing, _) => self.refuse(message),
            (Fault::Silent | Fault::None, Some(from)) => self.give_up(from, message),
            (Fault::Silent | Fault::None, None) => {}
        }
    }

    /// Nobody listens there, or somebody of another name, as the certificate says before anything is heard.
    pub(super) fn refuse(&mut self, message: Message) {
        if let (Some(from), Some(event)) = (caller(&message), lost(message, true)) {
            self.put(Duration::from_millis(1), from, Message::Outcome(event));
        }
    }

    pub(super) fn hear(&mut self, number: usize, message: Message) {
        let now = self.now;
        match message {
            Message::Wake => {
                let node = &mut self.nodes[number];
                node.wakes_at = None;
                node.swim.poll(ROOM, now);
            }
            Message::Start => self.seed_contacts(number),
            Message::Outcome(event) => self.nodes[number].swim.apply_event(event, now),
            Message::Frame { from, frame, .. } => self.hear_frame(number, from, &frame),
            Message::Answer { from, frame } => {
                let name = self.nodes[from].name.clone();
                self.nodes[number].swim.frame(&name, &frame, now).expect("members send valid frames");
            }
            Message::Watch { from, who } => {
                self.answer(number, from, 0, Message::Outcome(Event::Seen { who }));
            }
            Message::Hello { from, life, target } => self.hear_hello(number, from, life, target),
            Message::Compare { from, sums } => {
                let parts = self.nodes[number].swim.compare(&sums).expect("a valid comparison");
                self.answer(number, from, parts.encoded_len(), Message::Parts { from: number, parts });
            }
            Message::Parts { from, parts } => {
                let request = self.nodes[number].swim.compared(&parts).expect("a valid answer");
                if let Some(request) = request {
                    self.call(
                        number,
                        from,
                        request.encoded_len(),
                        Message::Exchange { from: number, request },
                    );
                }
            }
            Message::Exchange { from, request } => {
                let name = self.nodes[from].name.clone();
                let answer = self.nodes[number].swim.exchange(&name, request, now).expect("a valid exchange");
                self.figures.exchanged += answer.updates.len();
                self.answer(number, from, answer.encoded_len(), Message::Exchanged { from: number, answer });
            }
            Message::Exchanged { from, answer } => {
                let with = self.nodes[from].swim.me().clone();
                self.nodes[number].swim.exchanged(&with, answer, now).expect("a valid answer");
            }
        }
    }

    /// What it has for the caller goes back in the answer.
    fn hear_frame(&mut self, number: usize, from: usize, frame: &Bytes) {
        let name = self.nodes[from].name.clone();
        self.nodes[number].swim.frame(&name, frame, self.now).expect("members send valid frames");
        for action in self.nodes[number].swim.take_actions() {
            if let Action::Send { to, frame } = &action
                && to.name() == name
            {
                let answer = Message::Answer { from: number, frame: frame.clone() };
                self.answer(number, from, frame.len(), answer);
            } else {
                self.act(number, action);
            }
        }
    }

    fn hear_hello(&mut self, number: usize, from: usize, life: Life, target: Target) {
        let now = self.now;
        let answer = self.nodes[number].swim.called(life, now);
        let outcome = match answer {
            Err(refusal) => Event::Failed { target, reason: refusal.to_string(), is_final: true },
            Ok(()) => Event::Answered { target, life: self.nodes[number].swim.me().clone() },
        };
        if self.is_lost() {
            let (Event::Answered { target, .. } | Event::Failed { target, .. }) = outcome else { return };
            self.put(CALL_MAX, from, Message::Outcome(failed(target, false)));
        } else {
            self.figures.sent(number, 80);
            let delay = self.delay(number, from);
            self.put(delay, from, Message::Outcome(outcome));
        }
    }
}

/// Who waits for what becomes of a call.
fn caller(message: &Message) -> Option<usize> {
    let (Message::Frame { from, .. } | Message::Watch { from, .. } | Message::Hello { from, .. }) = message
    else {
        return None;
    };
    Some(*from)
}

/// Whom a call is meant for.
pub(super) fn wanted(message: &Message) -> Option<&str> {
    match message {
        Message::Frame { to, .. } => Some(to.name()),
        Message::Watch { who, .. } => Some(who.name()),
        Message::Hello { target: Target::Member(life), .. } => Some(life.name()),
        Message::Hello { target: Target::Contact(_), .. }
        | Message::Wake
        | Message::Start
        | Message::Outcome(_)
        | Message::Answer { .. }
        | Message::Compare { .. }
        | Message::Parts { .. }
        | Message::Exchange { .. }
        | Message::Exchanged { .. } => None,
    }
}

fn lost(message: Message, is_final: bool) -> Option<Event> {
    match message {
        Message::Frame { to, .. } => Some(Event::Unsent { to, reason: "no answer".to_owned(), is_final }),
        Message::Watch { who, .. } => Some(Event::Missed { who, reason: "no answer".to_owned(), is_final }),
        Message::Hello { target, .. } => Some(failed(target, is_final)),
        Message::Wake
        | Message::Start
        | Message::Outcome(_)
        | Message::Answer { .. }
        | Message::Compare { .. }
        | Message::Parts { .. }
        | Message::Exchange { .. }
        | Message::Exchanged { .. } => None,
    }
}

fn failed(target: Target, is_final: bool) -> Event {
    Event::Failed { target, reason: "no answer".to_owned(), is_final }
}
