//! Counts the results, and prints them.

use std::collections::BTreeMap;
use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;
use std::time::Duration;

/// The counts of one collection.
pub struct Counts {
    collection: &'static str,
    schemas: usize,
    instances: usize,
    /// The number of schemas sent in each field.
    fields: BTreeMap<String, usize>,
    /// The number of refused schemas, by reason.
    refused: BTreeMap<String, usize>,
    /// The findings of each kind, and the schemas with such findings.
    against: BTreeMap<&'static str, (usize, usize)>,
    last_against: BTreeMap<&'static str, String>,
    /// Bytes sent per byte of the source, for sources of at least [`SMALLEST_SOURCE`].
    ratios: Vec<f64>,
    /// The size of each source in bytes, and the time to compile it.
    times: Vec<(usize, Duration)>,
}

/// The smallest source in the ratios, in bytes: a few bytes are a multiple of less.
const SMALLEST_SOURCE: usize = 200;

/// The time from which a schema is listed as slow, in a release build.
const SLOW: Duration = Duration::from_millis(100);

/// The size from which each source is printed with its time, in bytes.
const LARGE_SOURCE: usize = 1 << 20;

impl Counts {
    pub fn new(collection: &'static str) -> Self {
        Self {
            collection,
            schemas: 0,
            instances: 0,
            fields: BTreeMap::new(),
            refused: BTreeMap::new(),
            against: BTreeMap::new(),
            last_against: BTreeMap::new(),
            ratios: Vec::new(),
            times: Vec::new(),
        }
    }

    pub fn compiled(&mut self, schema: &str, bytes: usize, time: Duration) {
        self.schemas += 1;
        if time >= SLOW {
            self.against("slow to compile", schema, &format!("{time:.2?} for {bytes} bytes"));
        }
        self.times.push((bytes, time));
    }

    pub fn refused(&mut self, schema: &str, message: &str) {
        self.offender("refused", schema, message);
        *self.refused.entry(reason(message)).or_default() += 1;
    }

    pub fn instance(&mut self) {
        self.instances += 1;
    }

    pub fn sent_nothing(&mut self) {
        *self.fields.entry("nothing".to_owned()).or_default() += 1;
    }

    pub fn sent(&mut self, schema: &str, field: &str, bytes: usize, source: usize) {
        *self.fields.entry(field.to_owned()).or_default() += 1;
        if source < SMALLEST_SOURCE {
            return;
        }
        let ratio = bytes as f64 / source as f64;
        self.ratios.push(ratio);
        if ratio > 2.0 {
            let detail = format!("{ratio:.1} times {source} bytes, {field}");
            self.against("sent more than twice its size", schema, &detail);
        }
    }

    /// Counts a finding.
    pub fn against(&mut self, kind: &'static str, schema: &str, detail: &str) {
        self.offender(kind, schema, detail);
        let (times, schemas) = self.against.entry(kind).or_default();
        *times += 1;
        if self.last_against.get(kind).is_none_or(|last| last != schema) {
            *schemas += 1;
            self.last_against.insert(kind, schema.to_owned());
        }
    }

    fn offender(&self, kind: &str, schema: &str, detail: &str) {
        let Some(path) = env::var_os("OFFENDERS") else { return };
        let file = OpenOptions::new().create(true).append(true).open(path);
        let detail: String = detail.chars().take(300).collect();
        let detail = detail.replace(['\n', '\t'], " ");
        writeln!(file.expect("a file"), "{kind}\t{}\t{schema}\t{detail}", self.collection)
            .expect("it is written");
    }

    /// Prints the results, and returns the times to compile.
    pub fn print(mut self) -> Vec<(usize, Duration)> {
        let refused: usize = self.refused.values().sum();
        let usable = self.schemas - refused;
        println!("\n## {}\n", self.collection);
        println!(
            "{} schemas, {usable} usable, {} instances of those",
            self.schemas, self.instances
        );
        let fields: Vec<String> =
            self.fields.iter().map(|(field, count)| format!("{field} {count}")).collect();
        println!("sent as: {}", fields.join(", "));
        let mut reasons: Vec<_> = self.refused.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (reason, count) in reasons {
            println!("refused, {count}: {reason}");
        }
        for (kind, (times, schemas)) in &self.against {
            println!("{kind}: {times}, in {schemas} schemas");
        }
        self.ratios.sort_by(f64::total_cmp);
        if let Some([p50, p99, max]) = percentiles(&self.ratios) {
            println!("bytes sent / bytes of source: p50 {p50:.2}, p99 {p99:.2}, max {max:.2}");
        }
        let all = 0..usize::MAX;
        let sizes =
            [all, 0..10_000, 10_000..100_000, 100_000..LARGE_SOURCE, LARGE_SOURCE..usize::MAX];
        for size in sizes {
            print_times(&self.times, &size);
        }
        for (bytes, time) in self.times.iter().filter(|(bytes, _)| *bytes >= LARGE_SOURCE) {
            println!("compile time of one of {bytes} bytes: {time:.2?}");
        }
        self.times
    }
}

/// Prints the times to compile sources in a range of sizes, in bytes.
pub fn print_times(times: &[(usize, Duration)], size: &Range<usize>) {
    let of_size = times.iter().filter(|(bytes, _)| size.contains(bytes));
    let mut times: Vec<Duration> = of_size.clone().map(|(_, time)| *time).collect();
    times.sort();
    let Some([p50, p99, max]) = percentiles(&times) else { return };
    let bytes: usize = of_size.map(|(bytes, _)| bytes).sum();
    let per_megabyte = times.iter().sum::<Duration>().as_secs_f64() * 1e9 / bytes as f64;
    println!(
        "compile time, {} of {} to {} bytes: p50 {p50:.2?}, p99 {p99:.2?}, max {max:.2?}, \
         {per_megabyte:.0} ms per MB",
        times.len(),
        size.start,
        size.end
    );
}

/// The median, the 99th percentile and the maximum of sorted values.
fn percentiles<T: Copy>(sorted: &[T]) -> Option<[T; 3]> {
    let last = sorted.len().checked_sub(1)?;
    Some([sorted[last / 2], sorted[last * 99 / 100], sorted[last]])
}

/// The message without the place, names and numbers.
fn reason(message: &str) -> String {
    let message = message
        .strip_prefix("at ")
        .and_then(|rest| rest.split_once(": "))
        .map_or(message, |parts| parts.1);
    let quoted = |(index, part): (usize, &str)| {
        if index % 2 == 0 { part.to_owned() } else { "…".to_owned() }
    };
    let unquoted: Vec<String> = message.split('"').enumerate().map(quoted).collect();
    let digits: String =
        unquoted.join("\"").chars().map(|c| if c.is_ascii_digit() { 'N' } else { c }).collect();
    digits.chars().take(120).collect()
}
