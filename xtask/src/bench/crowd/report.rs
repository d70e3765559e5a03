//! A scenario's rounds as a line of the table and as a row of the file.

use super::{
    round::{Round, whole},
    scenario::Scenario,
};
use crate::bench::{
    figure::{Figure, Row, Value},
    image::Image,
};

/// The table's columns: medians, with the least and the most where there is room.
pub const HEAD: &str = "scenario               N rounds   seconds  /bound (min-max)    /optimum  direct/bound  registry/F \
                        (frames)  CPU-s/GB (relayed)  RSS MiB  busy  load  failures";

/// What a row is made of.
pub struct About<'a> {
    pub scenario: &'a Scenario,
    pub image: &'a Image,
    pub nodes: u8,
    pub rounds: &'a [Round],
    /// The same crowd straight from the registry.
    pub direct: &'a [Round],
}

impl About<'_> {
    fn over_image(&self, bytes: f64) -> f64 {
        bytes / whole(self.image.bytes)
    }

    /// Seconds over the bound; NaN where there is none.
    fn over_bound(&self, seconds: f64) -> f64 {
        self.scenario.bound_s(self.image, self.nodes).map_or(f64::NAN, |bound| seconds / bound)
    }

    /// The row of the file.
    pub fn row(&self) -> Row {
        let scenario = self.scenario;
        let optimum = scenario.optimum_s(self.image, self.nodes).unwrap_or(f64::NAN);
        let bound = scenario.bound_s(self.image, self.nodes).unwrap_or(f64::NAN);
        let mut row = Row::default();
        row.set("scenario", scenario.name)
            .set("nodes", u64::from(self.nodes))
            .set("rounds", self.rounds.len() as u64)
            .set("image", scenario.shape.word())
            .set("image_bytes", self.image.bytes)
            .set("link_mbit", u64::from(self.image.rate.mbit()))
            .set("bound_s", bound)
            .figure("makespan_s", each(self.rounds, |round| round.makespan_s))
            .figure("makespan_over_bound", each(self.rounds, |round| round.makespan_s / bound))
            .figure("makespan_over_optimum", each(self.rounds, |round| round.makespan_s / optimum))
            .figure("p50_over_bound", each(self.rounds, |round| round.p50_s / bound))
            .figure("release_spread_ms", each(self.rounds, |round| round.spread_ms))
            .figure(
                "origin_bytes_over_image",
                each(self.rounds, |round| self.over_image(round.origin_bodies)),
            )
            .figure(
                "origin_frames_over_image",
                each(self.rounds, |round| self.over_image(round.origin_frames)),
            )
            .figure("cpu_s_per_gb", each(self.rounds, |round| round.cpu_s_per_gb))
            .figure("cpu_s_per_gb_relayed", each(self.rounds, |round| round.cpu_s_per_gb_relayed))
            .figure("rss_mib", each(self.rounds, |round| round.rss_mib))
            .figure("processor_busy", each(self.rounds, |round| round.processor_busy))
            .figure("load_before", each(self.rounds, |round| round.load_before))
            .figure("refused_pieces", each(self.rounds, |round| round.refused_pieces));
        for name in self.shares() {
            row.figure(name, self.share(name));
        }
        row.figure("failures", each(self.rounds, |round| count(&round.failures)))
            .set("failed", said(self.rounds))
            .set("direct", Value::Object(self.direct()));
        row
    }

    /// What only this scenario counts.
    fn shares(&self) -> Vec<&'static str> {
        let first = self.rounds.first();
        first.into_iter().flat_map(|round| &round.shares).map(|(name, _)| *name).collect()
    }

    fn share(&self, wanted: &'static str) -> impl Iterator<Item = f64> {
        let shares = self.rounds.iter().flat_map(|round| &round.shares);
        shares.filter(move |(name, _)| *name == wanted).map(|(_, value)| *value)
    }

    /// The same crowd straight from the registry, measured once for each image and number of nodes.
    fn direct(&self) -> Row {
        let direct = self.direct;
        let mut row = Row::default();
        row.set("rounds", direct.len() as u64)
            .figure("makespan_s", each(direct, |round| round.makespan_s))
            .figure("makespan_over_bound", each(direct, |round| self.over_bound(round.makespan_s)))
            .figure("origin_bytes_over_image", each(direct, |round| self.over_image(round.origin_bodies)))
            .figure("processor_busy", each(direct, |round| round.processor_busy))
            .figure("failures", each(direct, |round| count(&round.failures)))
            .set("failed", said(direct));
        row
    }

    /// The line of the table, and one below it for each failure.
    pub fn line(&self) -> String {
        let optimum = self.scenario.optimum_s(self.image, self.nodes).unwrap_or(f64::NAN);
        let median = |value: &dyn Fn(&Round) -> f64| Figure::of(each(self.rounds, value)).map(|f| f.median);
        let bound = Figure::of(each(self.rounds, |round| self.over_bound(round.makespan_s)));
        let range = bound.map_or("-".to_owned(), |f| format!("{:.3} ({:.3}-{:.3})", f.median, f.min, f.max));
        let direct = Figure::of(each(self.direct, |round| self.over_bound(round.makespan_s)));
        let direct = direct.or(Figure::of(each(self.direct, |round| round.makespan_s)));
        let mut line = format!(
            "{:<20} {:>3} {:>6} {:>9} {range:>20} {:>8} {:>13} {:>11} {:>9} {:>10} {:>9} {:>8} {:>5} {:>5} {:>9}",
            self.scenario.name,
            self.nodes,
            self.rounds.len(),
            shown(median(&|round| round.makespan_s), 3),
            shown(median(&|round| round.makespan_s / optimum), 3),
            shown(direct.map(|f| f.median), 3),
            shown(median(&|round| self.over_image(round.origin_bodies)), 3),
            shown(median(&|round| self.over_image(round.origin_frames)), 3),
            shown(median(&|round| round.cpu_s_per_gb), 2),
            shown(median(&|round| round.cpu_s_per_gb_relayed), 2),
            shown(median(&|round| round.rss_mib), 0),
            shown(median(&|round| round.processor_busy), 2),
            shown(median(&|round| round.load_before), 1),
            self.rounds.iter().map(|round| round.failures.len()).sum::<usize>()
        );
        for name in self.shares() {
            let median = Figure::of(self.share(name)).map(|figure| figure.median);
            line.push_str(&format!("\n    {name} {}", shown(median, 3)));
        }
        let refused = median(&|round| round.refused_pieces).filter(|pieces| *pieces > 0.0);
        if refused.is_some() {
            line.push_str(&format!("\n    refused_pieces {}", shown(refused, 0)));
        }
        for round in self.rounds.iter().chain(self.direct) {
            for failure in &round.failures {
                line.push_str(&format!("\n    FAILED {failure}"));
            }
        }
        line
    }
}

fn each(rounds: &[Round], value: impl Fn(&Round) -> f64) -> impl Iterator<Item = f64> {
    rounds.iter().map(value)
}

fn count(failures: &[String]) -> f64 {
    whole(failures.len() as u64)
}

fn said(rounds: &[Round]) -> Value {
    let all = rounds.iter().flat_map(|round| &round.failures);
    Value::List(all.map(|failure| failure.as_str().into()).collect())
}

fn shown(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}
