//! Regular expressions of filters: the part of Go's syntax that needs no flags.
//!
//! ```text
//! x  .  [a-z]  [^a-z]  \d \D \w \W \s \S  \.     one character
//! xy  x|y  (x)  (?:x)  x*  x+  x?  x{2}  x{2,}  x{2,3}, each also lazy: x*? is the same to a yes or no
//! ^  $  \A  \z                                   the text's ends
//! ```
//!
//! A pattern becomes a program of steps, and a text is matched by holding the set of steps that it can be at
//! (Thompson 1968): time is at most steps times characters, whatever the pattern.

use std::{iter::Peekable, str::Chars};

/// Go refuses more repetitions as well.
const REPEAT_MAX: u32 = 1000;

/// `(a{1000}){1000}` is short and its program is not.
const STEPS_MAX: usize = 10_000;

/// Groups in groups; the parser's stack grows with each.
const DEPTH_MAX: usize = 50;

/// Matches anywhere in a text unless it is anchored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    One(Class),
    Start,
    End,
    /// Goes on at both.
    Fork(usize, usize),
    Jump(usize),
    Matched,
}

/// A set of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Class {
    ranges: Vec<(char, char)>,
    negated: bool,
}

#[derive(Clone, Debug)]
enum Node {
    Step(Step),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

impl Pattern {
    pub(super) fn new(pattern: &str) -> Result<Self, &'static str> {
        let mut parser = Parser { rest: pattern.chars().peekable(), depth: 0 };
        let node = parser.either()?;
        if parser.rest.next().is_some() {
            return Err("the pattern closes a group that it did not open");
        }
        let mut steps = Vec::new();
        compile(&node, &mut steps)?;
        steps.push(Step::Matched);
        Ok(Self { steps })
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let mut here = Vec::new();
        let mut next = Vec::new();
        let mut seen = vec![false; self.steps.len()];
        let mut characters = text.chars();
        let mut at_start = true;
        loop {
            let character = characters.next();
            seen.fill(false);
            // A match may begin at every character.
            here.push(0);
            let mut one_of = Vec::new();
            while let Some(at) = here.pop() {
                if std::mem::replace(&mut seen[at], true) {
                    continue;
                }
                match &self.steps[at] {
                    Step::Matched => return true,
                    Step::One(class) => one_of.push((at, class)),
                    Step::Fork(one, other) => here.extend([*one, *other]),
                    Step::Jump(to) => here.push(*to),
                    Step::Start if at_start => here.push(at + 1),
                    Step::End if character.is_none() => here.push(at + 1),
                    Step::Start | Step::End => {}
                }
            }
            let Some(character) = character else { return false };
            next.extend(one_of.iter().filter(|(_, class)| class.holds(character)).map(|(at, _)| at + 1));
            std::mem::swap(&mut here, &mut next);
            at_start = false;
        }
    }
}

impl Class {
    fn only(character: char) -> Self {
        Self { ranges: vec![(character, character)], negated: false }
    }

    fn holds(&self, character: char) -> bool {
        self.ranges.iter().any(|&(low, high)| (low..=high).contains(&character)) != self.negated
    }

    /// `\d`, `\w`, `\s` as Go has them, ASCII only, and their capitals for everything else.
    fn named(name: char) -> Option<Self> {
        let ranges = match name.to_ascii_lowercase() {
            'd' => vec![('0', '9')],
            'w' => vec![('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
            's' => vec![('\t', '\n'), ('\x0c', '\r'), (' ', ' ')],
            _ => return None,
        };
        Some(Self { ranges, negated: name.is_ascii_uppercase() })
    }
}

fn compile(node: &Node, steps: &mut Vec<Step>) -> Result<(), &'static str> {
    if steps.len() > STEPS_MAX {
        return Err("the pattern is too big");
    }
    match node {
        Node::Step(step) => steps.push(step.clone()),
        Node::Sequence(nodes) => nodes.iter().try_for_each(|node| compile(node, steps))?,
        Node::Either(nodes) => {
            let (last, first) = nodes.split_last().expect("the parser makes no empty choice");
            let mut ends = Vec::new();
            for node in first {
                let fork = reserve(steps);
                compile(node, steps)?;
                ends.push(reserve(steps));
                steps[fork] = Step::Fork(fork + 1, steps.len());
            }
            compile(last, steps)?;
            for end in ends {
                steps[end] = Step::Jump(steps.len());
            }
        }
        Node::Repeat(node, min, max) => {
            for _ in 0..*min {
                compile(node, steps)?;
            }
            match max {
                Some(max) => optional(node, max - min, steps)?,
                None => {
                    let fork = reserve(steps);
                    compile(node, steps)?;
                    steps.push(Step::Jump(fork));
                    steps[fork] = Step::Fork(fork + 1, steps.len());
                }
            }
        }
    }
    Ok(())
}

fn optional(node: &Node, times: u32, steps: &mut Vec<Step>) -> Result<(), &'static str> {
    let mut forks = Vec::new();
    for _ in 0..times {
        forks.push(reserve(steps));
        compile(node, steps)?;
    }
    for fork in forks {
        steps[fork] = Step::Fork(fork + 1, steps.len());
    }
    Ok(())
}

/// Makes room for a step whose target is not known yet.
fn reserve(steps: &mut Vec<Step>) -> usize {
    steps.push(Step::Jump(0));
    steps.len() - 1
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    depth: usize,
}

impl Parser<'_> {
    fn either(&mut self) -> Result<Node, &'static str> {
        let mut choices = vec![self.sequence()?];
        while self.rest.next_if_eq(&'|').is_some() {
            choices.push(self.sequence()?);
        }
        Ok(Node::Either(choices))
    }

    fn sequence(&mut self) -> Result<Node, &'static str> {
        let mut nodes = Vec::new();
        while self.rest.peek().is_some_and(|next| !matches!(next, '|' | ')')) {
            if self.counts().is_some() {
                return Err("nothing to repeat");
            }
            let Some(first) = self.rest.next() else { break };
            let node = self.atom(first)?;
            nodes.push(self.repeated(node)?);
        }
        Ok(Node::Sequence(nodes))
    }

    fn atom(&mut self, first: char) -> Result<Node, &'static str> {
        let class = match first {
            '(' => return self.group(),
            '^' => return Ok(Node::Step(Step::Start)),
            '$' => return Ok(Node::Step(Step::End)),
            '.' => Class { negated: true, ..Class::only('\n') },
            '[' => self.class()?,
            '\\' => match self.rest.peek() {
                Some('A') => return Ok(self.step(Step::Start)),
                Some('z') => return Ok(self.step(Step::End)),
                _ => self.escaped()?,
            },
            literal => Class::only(literal),
        };
        Ok(Node::Step(Step::One(class)))
    }

    fn step(&mut self, step: Step) -> Node {
        self.rest.next();
        Node::Step(step)
    }

    fn group(&mut self) -> Result<Node, &'static str> {
        if self.rest.next_if_eq(&'?').is_some() && self.rest.next() != Some(':') {
            return Err("flags and named groups are not understood");
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("the pattern has too many groups in groups");
        }
        let inside = self.either()?;
        self.depth -= 1;
        self.rest.next_if_eq(&')').map(|_| inside).ok_or("a group is not closed")
    }

    /// What stands behind a backslash.
    fn escaped(&mut self) -> Result<Class, &'static str> {
        let next = self.rest.next().ok_or("the pattern ends in a backslash")?;
        let literal = match next {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'f' => '\x0c',
            'v' => '\x0b',
            'a' => '\x07',
            other if other.is_ascii_punctuation() => other,
            other => return Class::named(other).ok_or("this escape is not understood"),
        };
        Ok(Class::only(literal))
    }

    fn class(&mut self) -> Result<Class, &'static str> {
        const OPEN: &str = "a character class is not closed";
        let negated = self.rest.next_if_eq(&'^').is_some();
        let mut ranges = Vec::new();
        loop {
            let low = match self.rest.next().ok_or(OPEN)? {
                ']' if !ranges.is_empty() => return Ok(Class { ranges, negated }),
                '[' if self.rest.peek() == Some(&':') => return Err("named classes are not understood"),
                '\\' => match self.escaped()? {
                    Class { negated: true, .. } => return Err("a class cannot hold what is not in another"),
                    Class { ranges: named, .. } if named.len() != 1 || named[0].0 != named[0].1 => {
                        ranges.extend(named);
                        continue;
                    }
                    Class { ranges: single, .. } => single[0].0,
                },
                literal => literal,
            };
            let mut ahead = self.rest.clone();
            let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|end| end != ']');
            let high = if is_range { self.range_end()? } else { low };
            if high < low {
                return Err("a range of characters runs backwards");
            }
            ranges.push((low, high));
        }
    }

    fn range_end(&mut self) -> Result<char, &'static str> {
        self.rest.next();
        match self.rest.next() {
            Some('\\') => match self.escaped()?.ranges[..] {
                [(low, high)] if low == high => Ok(low),
                _ => Err("a range of characters ends in a class"),
            },
            Some(end) => Ok(end),
            None => Err("a range of characters has no end"),
        }
    }

    fn repeated(&mut self, node: Node) -> Result<Node, &'static str> {
        let Some((min, max)) = self.counts() else { return Ok(node) };
        self.rest.next_if_eq(&'?');
        if self.counts().is_some() {
            return Err("a repetition is repeated");
        }
        if min > REPEAT_MAX || max.is_some_and(|max| max < min || max > REPEAT_MAX) {
            return Err("a repetition is out of bounds");
        }
        Ok(Node::Repeat(Box::new(node), min, max))
    }

    /// Takes `*`, `+`, `?`, `{2}`, `{2,}` or `{2,3}`, the least and the most. Other braces are literal.
    fn counts(&mut self) -> Option<(u32, Option<u32>)> {
        let (counts, len) = match self.rest.peek()? {
            '*' => ((0, None), 1),
            '+' => ((1, None), 1),
            '?' => ((0, Some(1)), 1),
            '{' => {
                let braced: String = self.rest.clone().take_while(|&c| c != '}').collect();
                self.rest.clone().nth(braced.chars().count())?;
                (bounds(braced.strip_prefix('{')?)?, braced.chars().count() + 1)
            }
            _ => return None,
        };
        self.rest.nth(len - 1);
        Some(counts)
    }
}

/// What stands between braces, if it is numbers. One that is too big becomes one that is out of bounds.
fn bounds(inside: &str) -> Option<(u32, Option<u32>)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u32::MAX))
    };
    match inside.split_once(',') {
        None => number(inside).map(|count| (count, Some(count))),
        Some((min, "")) => Some((number(min)?, None)),
        Some((min, max)) => Some((number(min)?, Some(number(max)?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(text)
    }

    #[test]
    fn patterns_match_as_in_go() {
        let yes = [
            ("", ""),
            ("b", "abc"),
            ("^a.c$", "abc"),
            ("^(a|bc)+$", "abcabc"),
            (r"^sha256:[0-9a-f]{4,}$", "sha256:00ff00"),
            (r"^k8s\.io/\d+/", "k8s.io/17/extract"),
            ("^x{2}$", "xx"),
            ("^x{0,2}y$", "y"),
            ("x{,2}", "x{,2}"),
            ("^[^/]+/[]a-]+$", "ns/-a]"),
            (r"^[\w.]+$", "a_B.9"),
            ("^(?:a*)*$", "aaaa"),
            (r"\Aü+?\z", "üü"),
            ("a||b", "zzz"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern, text), "{pattern} on {text}");
        }
        let no = [
            ("^b", "abc"),
            ("b$", "abc"),
            ("a.c", "a\nc"),
            ("^x{2}$", "xxx"),
            (r"^\D$", "7"),
            (r"\.", "x"),
            ("^(a|b)$", "ab"),
            ("a^", "a"),
        ];
        for (pattern, text) in no {
            assert!(!matches(pattern, text), "{pattern} on {text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refused = [
            "(",
            ")",
            "a)b",
            "[",
            "[]",
            "*",
            "a**",
            "a{1001}",
            "a{3,2}",
            r"\",
            r"\q",
            "(?i)a",
            "[z-a]",
            "[[:alpha:]]",
        ];
        for pattern in refused {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
        assert!(Pattern::new("(a{1000}){1000}").is_err());
        assert!(Pattern::new(&"(".repeat(10_000)).is_err());
    }

    #[test]
    fn no_pattern_takes_exponential_time() {
        let pattern = format!("^{}{}$", "a?".repeat(200), "a".repeat(200));
        assert!(matches(&pattern, &"a".repeat(200)));
        assert!(!matches("^(a*)*b$", &"a".repeat(5000)));
    }
}
