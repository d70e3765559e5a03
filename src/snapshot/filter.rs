//! containerd's filter language, as far as snapshots have fields.
//!
//! ```text
//! filter   := "" | selector ("," selector)*         all selectors must hold; a list of filters: any of them
//! selector := path [operator value]                 without an operator: the field is there
//! path     := field ("." field)*                    name, parent, kind, labels.<key>
//! field    := quoted | [A-Za-z0-9_]+
//! operator := "==" | "!=" | "~="
//! value    := quoted | anything up to a comma or white space
//! quoted   := a string as Go writes it, in "…"; after ~= also in /…/ or |…|
//! ```

use super::Info;
use pattern::Pattern;
use text::Text;

mod pattern;
mod text;

/// Which snapshots a listing is to show.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Any of these; everything if there are none.
    any: Vec<Vec<Selector>>,
}

/// Why a filter cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("filter `{filter}`, at byte {at}: {what}")]
pub struct FilterError {
    filter: String,
    at: usize,
    what: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Selector {
    path: Vec<String>,
    condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Pattern),
}

/// A filter longer than this was not typed by anybody; containerd's own are under 300 bytes.
const FILTER_LEN_MAX: usize = 16 * 1024;

impl Filter {
    /// Reads a list of filters of which any may hold.
    pub fn parse(filters: &[String]) -> Result<Self, FilterError> {
        let any = filters.iter().map(|filter| parse(filter)).collect::<Result<_, _>>()?;
        Ok(Self { any })
    }

    #[must_use]
    pub fn matches(&self, info: &Info) -> bool {
        self.any.is_empty() || self.any.iter().any(|all| all.iter().all(|selector| selector.matches(info)))
    }
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let value = field(info, &self.path);
        match &self.condition {
            Condition::Present => value.is_some(),
            Condition::Equal(wanted) => value == Some(wanted),
            // containerd reads a field that is not there as an empty one in these two.
            Condition::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Condition::Matches(pattern) => pattern.matches(value.unwrap_or_default()),
        }
    }
}

fn field<'a>(info: &'a Info, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&info.name),
        "parent" => Some(&info.parent),
        "kind" => Some(info.kind.name()),
        "labels" => info.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

fn parse(filter: &str) -> Result<Vec<Selector>, FilterError> {
    let mut text = Text::new(filter);
    let refused = |(at, what)| FilterError { filter: filter.chars().take(200).collect(), at, what };
    if filter.len() > FILTER_LEN_MAX {
        return Err(refused((0, "longer than 16 KiB")));
    }
    selectors(&mut text).map_err(refused)
}

fn selectors(text: &mut Text<'_>) -> Result<Vec<Selector>, text::Refused> {
    let mut all = Vec::new();
    if text.at_end() {
        return Ok(all);
    }
    loop {
        all.push(selector(text)?);
        if text.at_end() {
            return Ok(all);
        }
        if !text.take(',') {
            return Err(text.refuse("expected a comma or the end"));
        }
    }
}

fn selector(text: &mut Text<'_>) -> Result<Selector, text::Refused> {
    let mut path = vec![text.field()?];
    while text.take('.') {
        path.push(text.field()?);
    }
    if text.at_end() || text.sees(',') {
        return Ok(Selector { path, condition: Condition::Present });
    }
    let condition = match text.operator()? {
        "==" => Condition::Equal(text.value()?),
        "!=" => Condition::NotEqual(text.value()?),
        "~=" => {
            let refused = text.refuse("");
            let pattern = text.pattern()?;
            Condition::Matches(Pattern::new(&pattern).map_err(|what| (refused.0, what))?)
        }
        _ => return Err(text.refuse("expected one of ==, != and ~=")),
    };
    Ok(Selector { path, condition })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::snapshot::Kind;

    fn matches(filter: &str) -> bool {
        let labels = [("colour", "blue"), ("containerd.io/gc.root", "2026"), ("a.b", "c")];
        let info = Info {
            name: "k8s.io/17/layer".into(),
            parent: String::new(),
            kind: Kind::Committed,
            created: UNIX_EPOCH,
            updated: UNIX_EPOCH,
            labels: labels.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
        };
        Filter::parse(&[filter.to_owned()]).unwrap().matches(&info)
    }

    #[test]
    fn selectors_mean_what_containerd_means() {
        let yes = [
            "",
            "name",
            "parent",
            "name==k8s.io/17/layer",
            "kind==committed,labels.colour",
            "parent==\"\"",
            "name!=other",
            "labels.absent!=x",
            "labels.a.b==c",
            "labels.\"containerd.io/gc.root\"==2026",
            "labels.colour==\"bl\\x75e\"",
            "labels.colour == blue, kind",
            "name~=^k8s",
            r"name~=/k8s.io\/\\d+\//",
            r"name~=^k8s\.io/\d+/l.*r$",
            "name~=|^.*/layer$|",
            "labels.absent~=^$",
        ];
        for filter in yes {
            assert!(matches(filter), "{filter}");
        }
        let no = ["labels", "labels.absent", "odd", "name==layer", "kind==active", "labels.absent==x"];
        for filter in no {
            assert!(!matches(filter), "{filter}");
        }
    }

    #[test]
    fn any_filter_of_a_list_will_do_and_none_lets_all_through() {
        let filters = ["kind==active".to_owned(), "kind==view".to_owned()];
        assert_eq!(Filter::parse(&filters).unwrap().any.len(), 2);
        assert!(Filter::parse(&[]).unwrap().any.is_empty());
    }

    #[test]
    fn a_refusal_says_where_and_why() {
        let refused = |filter: &str| Filter::parse(&[filter.to_owned()]).unwrap_err().to_string();
        assert_eq!(
            refused("name==a,kind=b"),
            "filter `name==a,kind=b`, at byte 13: expected one of ==, != and ~="
        );
        assert_eq!(
            refused("name~=a)"),
            "filter `name~=a)`, at byte 6: the pattern closes a group that it did not open"
        );
        let bad = [
            "name=",
            "name==",
            "==x",
            "name==a b",
            "name.",
            "name,",
            "labels.\"open",
            "name==/x/",
            "name==\"\\q\"",
        ];
        for filter in bad {
            assert!(Filter::parse(&[filter.to_owned()]).is_err(), "{filter}");
        }
        assert!(refused(&"x".repeat(20_000)).len() < 400, "a huge filter is not repeated whole");
    }
}
