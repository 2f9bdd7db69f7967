//! The prompts that clients send, and how they send them.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};

/// The sizes of prompts, in bytes.
const SMALLEST: f64 = 20.0;
const LARGEST: f64 = 16_384.0;

const WORDS: [&str; 8] = ["the", "keeper", "of", "a", "lighthouse", "counts", "storms", "slowly"];

/// Prompts of mixed sizes, determined by the seed. The logarithm of the size is uniform: as many
/// have 20 to 40 bytes as 8 to 16 KB.
pub fn prompts(count: usize, seed: u64) -> Vec<String> {
    let mut random = Rng::with_seed(seed);
    (0..count).map(|_| prompt(&mut random)).collect()
}

fn prompt(random: &mut Rng) -> String {
    let size = (SMALLEST * (LARGEST / SMALLEST).powf(random.f64())) as usize;
    let mut text = String::with_capacity(size + 16);
    while text.len() < size {
        text.push_str(WORDS[random.usize(..WORDS.len())]);
        text.push(' ');
    }
    text.truncate(size);
    text
}

/// The tokens of prompts as the simulator counts them: one for every started 4 bytes.
pub fn tokens<'a>(prompts: impl IntoIterator<Item = &'a String>) -> u64 {
    prompts.into_iter().map(|prompt| prompt.len().div_ceil(4) as u64).sum()
}

/// Sends every prompt. Each client sends its next prompt once the last is done. Returns how many
/// were answered.
pub async fn drive<F, Asking>(clients: usize, prompts: Vec<String>, ask: F) -> usize
where
    F: Fn(String) -> Asking + Clone + Send + 'static,
    Asking: Future<Output = bool> + Send,
{
    let prompts = Arc::new(Mutex::new(prompts.into_iter()));
    let client = |_| {
        let (prompts, ask) = (Arc::clone(&prompts), ask.clone());
        let next = move || prompts.lock().unwrap_or_else(PoisonError::into_inner).next();
        async move {
            let mut answered = 0;
            while let Some(prompt) = next() {
                answered += usize::from(ask(prompt).await);
            }
            answered
        }
    };
    let clients: JoinSet<usize> = (0..clients).map(client).collect();
    clients.join_all().await.into_iter().sum()
}

/// Runs some work, and meanwhile takes a sample at every multiple of a period since `start`.
pub async fn sampled<Output, Sample>(
    work: impl Future<Output = Output>,
    start: Instant,
    period: Duration,
    mut read: impl FnMut() -> Sample,
) -> (Output, Vec<Sample>) {
    let mut work = pin!(work);
    let mut boundaries = interval_at(start + period, period);
    let mut samples = Vec::new();
    loop {
        tokio::select! {
            output = &mut work => return (output, samples),
            _ = boundaries.tick() => samples.push(read()),
        }
    }
}
