//! The targets of `fuzz/`, on the stable toolchain: first every corpus input, then random mutations
//! of them.
//!
//! `FUZZ_ROUNDS` sets how many mutations each target gets, `FUZZ_SEED` which ones.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::str::FromStr;

use fastrand::Rng;
use targets::{KEY, TARGETS};

/// Tokens to insert: known trouble for parsers of JSON, streams and numbers.
const TOKENS: [&[u8]; 28] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b":",
    b",",
    b"null",
    b"-0.0",
    b"1e400",
    b"18446744073709551615",
    b"9223372036854775807s",
    b"-9223372036854775808",
    b"3153600000s",
    b"0.0000000001s",
    b"\\ud800",
    b"\\u0000",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r\n\r\n",
    b"data: ",
    b"{\"error\":{\"code\":",
    b"usageMetadata",
    b"%2e%2e",
    b"\0",
    b"=",
    b"\n",
];

/// The most brackets that are inserted in one place.
const DEEPEST: usize = 300;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Runs a target on its corpus and on mutations of it.
fn fuzz(name: &str, rounds: usize) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).expect("a target");
    let (seed, rounds) = (setting("FUZZ_SEED", 1), setting("FUZZ_ROUNDS", rounds));
    let corpus = corpus(name);
    for (number, input) in corpus.iter().enumerate() {
        attempt(*target, input, &format!("input {number} of the corpus {name}"));
    }
    for round in 0..rounds {
        let mut random = Rng::with_seed(seed + round as u64);
        let input = mutated(&corpus, &mut random);
        let what = format!("{name} with FUZZ_SEED={} FUZZ_ROUNDS=1", seed + round as u64);
        attempt(*target, &input, &what);
    }
}

fn attempt(target: fn(&[u8]), input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        panic!("{what} fails: {:.2000}", input.escape_ascii().to_string());
    }
}

/// A random corpus input with a few changes.
fn mutated(corpus: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut input = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..40)).min(input.len());
        match random.u32(..8) {
            0 => drop(input.drain(at..end)),
            1 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            2 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.u32(..8)),
            3 => {
                let other = &corpus[random.usize(..corpus.len())];
                let from = random.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            4 => {
                let depth = random.usize(1..DEEPEST);
                let (open, close) = *random
                    .choice(&[("[", "]"), ("{\"data\":", "}"), ("{\"tools\":[", "]}")])
                    .unwrap();
                let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                input.splice(at..end, nested.into_bytes());
            }
            5 => {
                let cut = random.usize(..=KEY.len());
                input.splice(at..at, KEY.as_bytes()[..cut].iter().copied());
            }
            _ => {
                let token = random.choice(&TOKENS).unwrap();
                input.splice(at..end, token.iter().copied());
            }
        }
    }
    input
}

#[test]
fn no_request_body_causes_a_panic() {
    fuzz("requests", 1000);
}

#[test]
fn no_upload_of_a_job_causes_a_panic_and_what_is_accepted_can_be_sent() {
    fuzz("jobs", 300);
}

#[test]
fn no_upstream_response_causes_a_panic() {
    fuzz("answers", 1000);
}

#[test]
fn no_quota_setting_causes_a_panic() {
    fuzz("settings", 100);
}

#[test]
fn no_schema_causes_a_panic() {
    fuzz("schemas", 1000);
}
