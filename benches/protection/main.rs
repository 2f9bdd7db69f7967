//! How well the service protects an account: whether Gemini ever refuses a call, and what that
//! costs.
//!
//! | part | what it shows |
//! |---|---|
//! | `quotas` | refusals, time and use of the quotas, for each way in which Gemini may count; compared with clients without protection |
//! | `capacity` | how soon the concurrency follows Gemini's capacity, and how many calls are refused meanwhile |
//! | `tiers` | whether flex calls beyond Gemini's capacity slow standard calls, how many are answered, and when they fall back |
//! | `fairness` | how long a chat waits beside a large batch, and how two batches share |
//! | `interactions` | the same for interactions, also in the background, beside other calls |
//!
//! A run is a new simulator and a new service over it, each with its own threads and port, and
//! clients that send over HTTP. It prints tables in Markdown and sets no pass mark: on a busy
//! machine the times reflect the machine. `docs/benchmarks.md` says what each figure means.

mod capacity;
mod fairness;
mod interactions;
mod load;
mod quotas;
mod stage;
mod tiers;

use std::time::Duration;

use clap::{Parser, ValueEnum};

/// The service's own allocator, so that the allocator makes no difference.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures how well the service protects an account.
#[derive(Parser)]
struct Arguments {
    /// What to measure; everything if nothing is named
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// A tenth of the requests and shorter phases: to see that it works, not how well
    #[arg(long)]
    quick: bool,
    /// Length of a minute of the quotas, in seconds; 15, or 5 when quick
    #[arg(long, value_name = "SECONDS")]
    minute: Option<f64>,
    /// Set by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Part {
    Quotas,
    Capacity,
    Fairness,
    Tiers,
    Interactions,
}

/// How large the runs are.
#[derive(Clone, Copy)]
struct Scale {
    quick: bool,
    /// The length of a quota minute.
    minute: Duration,
}

impl Scale {
    /// The full number, or a tenth of it.
    fn count(self, full: usize) -> usize {
        if self.quick { full / 10 } else { full }
    }
}

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        // `cargo test --all-targets` also starts benchmarks, only to see that they start.
        return println!("cargo bench --bench protection");
    }
    let seconds = arguments.minute.unwrap_or(if arguments.quick { 5.0 } else { 15.0 });
    let minute = Duration::try_from_secs_f64(seconds).expect("a minute is a number of seconds");
    let scale = Scale { quick: arguments.quick, minute };
    let runtime = tokio::runtime::Runtime::new().expect("the runtime starts");
    for part in Part::value_variants() {
        if arguments.parts.is_empty() || arguments.parts.contains(part) {
            match part {
                Part::Quotas => runtime.block_on(quotas::measure(scale)),
                Part::Capacity => runtime.block_on(capacity::measure(scale)),
                Part::Fairness => runtime.block_on(fairness::measure(scale)),
                Part::Tiers => runtime.block_on(tiers::measure(scale)),
                Part::Interactions => runtime.block_on(interactions::measure(scale)),
            }
        }
    }
}

/// Prints a table in Markdown. The first column is text, the others are figures.
fn print_table<const COLUMNS: usize>(heading: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
    println!("| {} |", heading.join(" | "));
    println!("|---|{}", "--:|".repeat(COLUMNS - 1));
    rows.iter().for_each(|row| println!("| {} |", row.join(" | ")));
    println!();
}

/// Reports progress on the terminal. The tables go to standard output.
fn announce(run: &str) {
    eprintln!("… {run}");
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}
