//! The figures of a run, as tables in Markdown.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use crate::record::Record;
use crate::settings::{LIMIT, SEMAPHORE_LIMIT};
use crate::upstream::Figures;

pub struct Report {
    seed: u64,
    record: Arc<Record>,
    counted: Figures,
    pub calls: u64,
    pub took: Duration,
    pub storm: Duration,
    /// The memory of each replica after the warm-up and at the end, in bytes.
    pub memory: Vec<(u64, u64)>,
}

impl Report {
    pub fn new(seed: u64, record: Arc<Record>) -> Self {
        Self {
            seed,
            record,
            counted: Figures::default(),
            calls: 0,
            took: Duration::ZERO,
            storm: Duration::ZERO,
            memory: Vec::new(),
        }
    }

    /// Adds what the upstream has counted since the last time.
    pub fn add(&mut self, figures: &Figures) {
        let all = &mut self.counted;
        all.calls += figures.calls;
        all.most = all.most.max(figures.most);
        all.most_counted = all.most_counted.max(figures.most_counted);
        all.most_tight = all.most_tight.max(figures.most_tight);
        all.excused.uncovered += figures.excused.uncovered;
        all.excused.late += figures.excused.late;
        all.excused.closing += figures.excused.closing;
        all.excused.longest_closing =
            all.excused.longest_closing.max(figures.excused.longest_closing);
        for (fate, count) in &figures.fates {
            *all.fates.entry(fate).or_default() += count;
        }
    }

    pub fn print(&self) {
        self.print_claims();
        self.print_figures();
        self.print_disturbances();
        let outcomes = self.record.outcomes();
        print_counts("What became of the calls of clients", outcomes.iter());
        print_counts("What the upstream did", self.counted.fates.iter());
    }

    fn print_claims(&self) {
        println!("| promise | violations |\n|---|--:|");
        for (claim, violations) in self.record.violations() {
            println!("| {} | {violations} |", claim.text());
        }
        println!();
    }

    fn print_figures(&self) {
        let Figures { calls, most, most_counted, most_tight, excused, .. } = &self.counted;
        let row = |name: &str, value: String| println!("| {name} | {value} |");
        println!("| figure | |\n|---|--:|");
        row("seed", self.seed.to_string());
        row("calls of clients", self.calls.to_string());
        row("calls that reached the upstream", calls.to_string());
        let faults = self.counted.fates.iter().filter(|(fate, _)| !is_good(fate));
        let (kinds, faulty) =
            faults.fold((0, 0), |(kinds, sum), (_, count)| (kinds + 1, sum + count));
        row("of these with a fault, kinds of faults", format!("{faulty}, {kinds}"));
        row(
            "total time, time in the storm",
            format!("{:.0} s, {:.0} s", self.took.as_secs_f64(), self.storm.as_secs_f64()),
        );
        row(
            "limit, most in flight without excused calls, most in total",
            format!("{LIMIT}, {most_counted}, {most}"),
        );
        row("semaphore's limit, most in flight", format!("{SEMAPHORE_LIMIT}, {most_tight}"));
        row(
            "above the limit for calls longer than four fifths of a lease",
            excused.uncovered.to_string(),
        );
        row(
            "above the limit for calls sent by a thread that was stopped",
            excused.late.to_string(),
        );
        let closing = format!("{}, {} ms", excused.closing, excused.longest_closing.as_millis());
        row("above the limit for calls being closed, the longest", closing);
        for (slot, (before, after)) in self.memory.iter().enumerate() {
            let name = format!("memory of replica {slot}, after the warm-up and at the end");
            row(&name, format!("{} MiB, {} MiB", before >> 20, after >> 20));
        }
        println!();
    }

    fn print_disturbances(&self) {
        println!(
            "| disturbance | times | longest until all replicas served again |\n|---|--:|--:|"
        );
        for (what, (count, longest)) in self.record.disturbances() {
            println!("| {what} | {count} | {:.1} s |", longest.as_secs_f64());
        }
        println!();
    }
}

/// Whether the upstream answered properly.
fn is_good(fate: &str) -> bool {
    matches!(fate, "answered" | "answered, streamed" | "free call")
}

/// Prints many counts in one paragraph.
fn print_counts(heading: &str, counts: impl Iterator<Item = (impl Display, impl Display)>) {
    let counts: Vec<_> = counts.map(|(what, count)| format!("{what}: {count}")).collect();
    println!("{heading}: {}.\n", counts.join("; "));
}
