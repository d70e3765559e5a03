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

use super::{Info, info::Kind};
use text::Text;

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
            // containerd reads a field that is not there as an empty one here.
            Condition::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
        }
    }
}

fn field<'a>(info: &'a Info, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&info.name),
        "parent" => Some(&info.parent),
        "kind" => Some(Kind::name(info.kind)),
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
        _ => return Err(text.refuse("expected one of == and != (regular expressions are not understood)")),
    };
    Ok(Selector { path, condition })
}
