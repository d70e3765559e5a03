//! How fast bytes may flow: what the settings say, what they say for this time of the week, and what an operator has
//! said since the start.
//!
//! An entry of `rates.schedule` is `DAYS FROM-UNTIL FLOW=RATE…`, as in `mon-fri 08:00-18:00 upload=50MiB
//! origin=unlimited`, by the node's clock and time zone. Of several entries for one time the first that names a flow
//! counts; where none does, the flow's own setting. One that ends at or before its beginning ends on the next day, and its
//! days are those on which it begins.

use std::{str::FromStr, sync::Arc};

use jiff::{Zoned, civil::Weekday};
use parking_lot::Mutex;

use super::{schema::RATE_MIN, settings::size_of_text};
use crate::{
    door::admin::{self, RateLine, RatesLine, RatesQuery},
    mesh::Mesh,
    origin::Origin,
};

const MINUTES_OF_DAY: u16 = 24 * 60;
/// Entries of a schedule: one for each hour of the week would be 168.
pub(super) const ENTRIES_MAX: usize = 256;

/// Which bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// To other members.
    Upload,
    /// From other members.
    Download,
    /// From registries.
    Origin,
}

const FLOWS: [(Flow, &str); 3] =
    [(Flow::Upload, "upload"), (Flow::Download, "download"), (Flow::Origin, "origin")];

/// Bytes a second; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u64>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, size_of_text(text)) {
            ("unlimited", _) => Ok(Self(None)),
            (_, Some(bytes)) if bytes >= RATE_MIN => Ok(Self(Some(bytes))),
            (_, Some(_)) => {
                Err(format!("`{text}` is below 16KiB a second: is a unit missing? No limit is `unlimited`"))
            }
            _ => Err(format!("`{text}` is no rate: a size a second such as `50MiB`, or `unlimited`")),
        }
    }
}

/// One entry of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// From Monday on.
    days: [bool; 7],
    /// Minutes of the day.
    from: u16,
    until: u16,
    limits: [Option<Limit>; 3],
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let (days, times) = words.next().zip(words.next()).ok_or("it has no days and times")?;
        let (from, until) = times.split_once('-').ok_or_else(|| format!("`{times}` is no time span"))?;
        let (from, until) = (minutes(from)?, minutes(until)?);
        if from == MINUTES_OF_DAY {
            return Err("no day begins at 24:00".into());
        }
        let mut limits = [None; 3];
        for word in words {
            let (flow, limit) = word.split_once('=').ok_or_else(|| format!("`{word}` is no FLOW=RATE"))?;
            let known = FLOWS.iter().position(|(_, name)| *name == flow);
            let known = known.ok_or_else(|| format!("`{flow}` is not one of upload, download, origin"))?;
            if limits[known].replace(limit.parse()?).is_some() {
                return Err(format!("`{flow}` stands there twice"));
            }
        }
        if limits.iter().all(Option::is_none) {
            return Err("it limits nothing".into());
        }
        Ok(Self { days: days_of(days)?, from, until, limits })
    }
}

/// `HH:MM`, up to 24:00.
fn minutes(text: &str) -> Result<u16, String> {
    let parsed = || {
        let (hours, minutes) = text.split_once(':').filter(|(h, m)| h.len() == 2 && m.len() == 2)?;
        let digits =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
        let (hours, minutes) = (digits(hours)?, digits(minutes)?);
        let all = hours * 60 + minutes;
        (minutes < 60 && all <= MINUTES_OF_DAY).then_some(all)
    };
    parsed().ok_or_else(|| format!("`{text}` is no time of the day such as `08:00`"))
}

/// `daily`, `mon`, `mon-fri`, `sat,sun`; a span may go over Sunday.
fn days_of(text: &str) -> Result<[bool; 7], String> {
    const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    if text == "daily" {
        return Ok([true; 7]);
    }
    let day = |name: &str| {
        let known = DAYS.iter().position(|day| *day == name);
        known.ok_or_else(|| format!("`{name}` is not one of daily, mon, tue, wed, thu, fri, sat, sun"))
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let len = (last + 7 - first) % 7;
        (0..=len).for_each(|step| days[(first + step) % 7] = true);
    }
    Ok(days)
}

impl Entry {
    /// Whether it counts at `minute` of a day, Monday being 0.
    fn is_at(&self, day: usize, minute: u16) -> bool {
        let over_midnight = self.until <= self.from;
        let (today, before) = (self.days[day], self.days[(day + 6) % 7]);
        match over_midnight {
            false => today && (self.from..self.until).contains(&minute),
            true => (today && minute >= self.from) || (before && minute < self.until),
        }
    }
}

/// What the settings say.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// Upload, download, origin: outside the schedule.
    pub(super) always: [Option<u64>; 3],
    pub(super) schedule: Vec<Entry>,
}

impl Settings {
    fn at(&self, flow: Flow, day: usize, minute: u16) -> (Limit, &'static str) {
        let flow = flow as usize;
        let mut entries = self.schedule.iter().filter(|entry| entry.is_at(day, minute));
        let scheduled = entries.find_map(|entry| entry.limits[flow]);
        scheduled.map_or((Limit(self.always[flow]), "settings"), |limit| (limit, "schedule"))
    }
}

/// The rates in force. Cheap to clone.
#[derive(Clone)]
pub(super) struct Rates(Arc<Inner>);

struct Inner {
    settings: Settings,
    /// What an operator has said, until the daemon ends or he takes it back.
    said: Mutex<[Option<Limit>; 3]>,
    mesh: Mesh,
    origin: Origin,
}

impl Rates {
    pub(super) fn new(settings: Settings, mesh: Mesh, origin: Origin) -> Self {
        let rates = Self(Arc::new(Inner { settings, said: Mutex::default(), mesh, origin }));
        rates.apply();
        rates
    }

    /// Sets what is in force at this minute; a rate that stays is left alone.
    pub(super) fn apply(&self) {
        let [upload, download, origin] = self.in_force().map(|(limit, _)| limit.0);
        self.0.mesh.upload().set(upload);
        self.0.mesh.download().set(download);
        self.0.origin.set_rate(origin);
    }

    fn in_force(&self) -> [(Limit, &'static str); 3] {
        let now = Zoned::now();
        let day = now.weekday().since(Weekday::Monday);
        let day = usize::try_from(day).expect("days since Monday are 0 to 6");
        let minute = u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs());
        let said = *self.0.said.lock();
        FLOWS.map(|(flow, _)| match said[flow as usize] {
            Some(limit) => (limit, "operator"),
            None => self.0.settings.at(flow, day, minute),
        })
    }
}

impl admin::Rates for Rates {
    fn rates(&self) -> RatesLine {
        let [upload, download, origin] =
            self.in_force().map(|(limit, by)| RateLine { bytes_per_second: limit.0, by: by.to_owned() });
        RatesLine { upload, download, origin }
    }

    fn set(&self, asked: &RatesQuery) -> Result<(), String> {
        let asked = [&asked.upload, &asked.download, &asked.origin];
        let mut said = *self.0.said.lock();
        for (slot, text) in said.iter_mut().zip(asked) {
            match text.as_deref() {
                None => {}
                Some("settings") => *slot = None,
                Some(text) => *slot = Some(text.parse()?),
            }
        }
        *self.0.said.lock() = said;
        self.apply();
        let [upload, download, origin] = self.in_force().map(|(limit, _)| limit.0);
        tracing::info!(?upload, ?download, ?origin, "an operator has set the rates, in bytes a second");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(settings: &Settings, day: usize, time: &str) -> [Option<u64>; 3] {
        FLOWS.map(|(flow, _)| settings.at(flow, day, minutes(time).unwrap()).0.0)
    }

    fn schedule(entries: &[&str]) -> Settings {
        let schedule = entries.iter().map(|entry| entry.parse().unwrap()).collect();
        Settings { always: [Some(9), None, None], schedule }
    }

    #[test]
    fn the_first_entry_that_names_a_flow_counts_and_else_its_own_setting() {
        let settings = schedule(&[
            "mon-fri 08:00-18:00 upload=1MiB",
            "mon,wed 12:00-13:00 upload=unlimited origin=50kB",
            "fri-mon 00:00-24:00 download=7MB",
        ]);
        assert_eq!(at(&settings, 2, "07:59"), [Some(9), None, None]);
        assert_eq!(at(&settings, 2, "08:00"), [Some(1 << 20), None, None]);
        assert_eq!(at(&settings, 2, "12:30"), [Some(1 << 20), None, Some(50_000)]);
        assert_eq!(at(&settings, 2, "18:00"), [Some(9), None, None]);
        assert_eq!(at(&settings, 0, "23:59"), [Some(9), Some(7_000_000), None]);
        assert_eq!(at(&settings, 5, "12:30"), [Some(9), Some(7_000_000), None]);
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let settings = schedule(&["fri 22:00-06:00 upload=unlimited"]);
        assert_eq!(at(&settings, 4, "05:00"), [Some(9), None, None]);
        assert_eq!(at(&settings, 4, "22:00"), [None; 3]);
        assert_eq!(at(&settings, 5, "05:59"), [None; 3]);
        assert_eq!(at(&settings, 5, "06:00"), [Some(9), None, None]);
        let whole = schedule(&["sun 00:00-00:00 upload=1MB"]);
        assert_eq!((at(&whole, 6, "13:00")[0], at(&whole, 0, "00:00")[0]), (Some(1_000_000), Some(9)));
    }

    #[test]
    fn what_is_no_entry_is_answered_with_what_is_wrong_with_it() {
        for (entry, why) in [
            ("", "it has no days and times"),
            ("mon", "it has no days and times"),
            (
                "mon-fry 08:00-18:00 upload=1MB",
                "`fry` is not one of daily, mon, tue, wed, thu, fri, sat, sun",
            ),
            ("mon 08:00 upload=1MB", "`08:00` is no time span"),
            ("mon 8:00-18:00 upload=1MB", "`8:00` is no time of the day such as `08:00`"),
            ("mon 08:60-18:00 upload=1MB", "`08:60` is no time of the day such as `08:00`"),
            ("mon 24:00-24:00 upload=1MB", "no day begins at 24:00"),
            ("mon 08:00-18:00", "it limits nothing"),
            ("mon 08:00-18:00 upload", "`upload` is no FLOW=RATE"),
            ("mon 08:00-18:00 uplod=1", "`uplod` is not one of upload, download, origin"),
            ("mon 08:00-18:00 upload=1MB upload=2MB", "`upload` stands there twice"),
            (
                "mon 08:00-18:00 upload=fast",
                "`fast` is no rate: a size a second such as `50MiB`, or `unlimited`",
            ),
            (
                "mon 08:00-18:00 upload=0",
                "`0` is below 16KiB a second: is a unit missing? No limit is `unlimited`",
            ),
        ] {
            assert_eq!(entry.parse::<Entry>().unwrap_err(), why, "{entry}");
        }
    }
}
