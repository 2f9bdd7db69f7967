//! Announcements under a paused clock, with a store in memory and a sender that follows a script.

mod connections;
mod delivery;
mod store;

use std::collections::VecDeque;
use std::future::{pending, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::announcer::{Announcer, Render};
use super::delivery::{Deliver, Outcome};
use super::message::Message;
use super::{WebhookSender, WebhookSettings};
use crate::connect::Authorities;
use crate::jobs::{Job, JobState};
use crate::pacific::{Calendar, SystemClock, WallClock};
use store::{MemoryStore, job};

/// An attempt that was made.
#[derive(Debug, Clone)]
struct Attempt {
    message: Message,
    at: Timestamp,
}

impl Attempt {
    fn body(&self) -> Value {
        serde_json::from_slice(&self.message.body).unwrap()
    }
}

/// A sender that follows a script, and delivers everything afterwards.
struct Script {
    outcomes: Mutex<VecDeque<Outcome>>,
    /// An attempt needs one of these permits.
    permits: Semaphore,
    in_progress: AtomicUsize,
    most_in_progress: AtomicUsize,
    attempts: mpsc::UnboundedSender<Attempt>,
}

impl Script {
    fn new(
        outcomes: impl IntoIterator<Item = Outcome>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Attempt>) {
        let (attempts, made) = mpsc::unbounded_channel();
        let script = Self {
            outcomes: Mutex::new(outcomes.into_iter().collect()),
            permits: Semaphore::new(Semaphore::MAX_PERMITS),
            in_progress: AtomicUsize::new(0),
            most_in_progress: AtomicUsize::new(0),
            attempts,
        };
        (Arc::new(script), made)
    }
}

/// Makes attempts of a script.
struct Follow(Arc<Script>);

impl Deliver for Follow {
    fn deliver(&self, message: Message, at: Timestamp) -> BoxFuture<'static, Outcome> {
        let script = Arc::clone(&self.0);
        Box::pin(async move {
            let in_progress = script.in_progress.fetch_add(1, Ordering::Relaxed) + 1;
            script.most_in_progress.fetch_max(in_progress, Ordering::Relaxed);
            let _ = script.attempts.send(Attempt { message, at });
            script.permits.acquire().await.unwrap().forget();
            script.in_progress.fetch_sub(1, Ordering::Relaxed);
            script.outcomes.lock().unwrap().pop_front().unwrap_or(Outcome::Delivered)
        })
    }
}

fn failed() -> Outcome {
    Outcome::Failed { reason: "of the script".into(), wait: None }
}

fn render() -> Render {
    Arc::new(|job: &Job| json!({"job_id": job.id.as_str(), "total": job.total}))
}

fn start(store: &Arc<MemoryStore>, script: &Arc<Script>, ended: &Arc<Notify>) -> Announcer {
    let sender = Arc::new(Follow(Arc::clone(script)));
    let clock = Arc::clone(&store.clock);
    Announcer::with_clock(Arc::clone(store) as _, sender, Arc::clone(ended), render(), clock)
}

/// A clock that follows tokio's.
fn clock() -> Arc<dyn WallClock> {
    let wall = "2026-11-29T08:00:00Z".parse().unwrap();
    Arc::new(Calendar { wall, instant: Instant::now() })
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_is_announced_with_its_state_and_time() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([]);
    store.end(job(1), JobState::Completed);
    store.end(job(2), JobState::Cancelled);
    let _announcer = start(&store, &script, &Arc::default());
    for (number, kind) in [(1, "job.completed"), (2, "job.cancelled")] {
        let attempt = attempts.recv().await.unwrap();
        let id = job(number).id;
        assert_eq!(
            attempt.body(),
            json!({
                "type": kind, "timestamp": "2026-11-29T08:00:00Z",
                "data": {"job_id": id.as_str(), "total": 7},
            })
        );
        assert_eq!(attempt.message.id, format!("{id}_1795939200000"));
        assert_eq!(attempt.message.url, "https://hooks.example/path");
    }
    store.settled(2).await;
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ends_is_announced_at_once() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([]);
    let ended = Arc::default();
    let _announcer = start(&store, &script, &ended);
    yield_now().await;
    let before = Instant::now();
    for number in 1..=3 {
        store.end(job(number), JobState::Completed);
        ended.notify_one();
        attempts.recv().await.unwrap();
    }
    assert_eq!(Instant::now(), before);
}

#[tokio::test(start_paused = true)]
async fn a_failed_message_is_sent_again_with_the_same_id_until_it_is_delivered() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([failed(), failed(), failed()]);
    store.end(job(1), JobState::Completed);
    let _announcer = start(&store, &script, &Arc::default());
    let first = attempts.recv().await.unwrap();
    let mut last = first.at;
    for least in [5.0, 300.0, 1800.0] {
        let attempt = attempts.recv().await.unwrap();
        assert_eq!(attempt.message.id, first.message.id);
        let wait = attempt.at.duration_since(last).as_secs_f64();
        assert!((least..=least * 1.1 + 0.01).contains(&wait), "{wait} {least}");
        last = attempt.at;
    }
    store.settled(4).await;
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_is_given_up_after_ten_attempts() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new(vec![failed(); 20]);
    store.end(job(1), JobState::Completed);
    let _announcer = start(&store, &script, &Arc::default());
    let first = attempts.recv().await.unwrap();
    let mut last = first.clone();
    for _ in 1..10 {
        last = attempts.recv().await.unwrap();
    }
    store.settled(10).await;
    assert!(store.is_empty());
    let hours = last.at.duration_since(first.at).as_hours();
    assert!((75..=84).contains(&hours), "{hours}");
    sleep(Duration::from_secs(100 * 3600)).await;
    assert!(attempts.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_gone_gets_nothing_more() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([Outcome::Unwanted]);
    store.end(job(1), JobState::Completed);
    let _announcer = start(&store, &script, &Arc::default());
    attempts.recv().await.unwrap();
    store.settled(1).await;
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_receiver_can_ask_for_a_longer_wait() {
    let store = MemoryStore::new(clock());
    let wait = Some(Duration::from_secs(3600));
    let (script, mut attempts) =
        Script::new([Outcome::Failed { reason: "of the script".into(), wait }]);
    store.end(job(1), JobState::Completed);
    let _announcer = start(&store, &script, &Arc::default());
    let first = attempts.recv().await.unwrap();
    let second = attempts.recv().await.unwrap();
    assert!(second.at.duration_since(first.at).as_hours() >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_restart_continues_the_schedule() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([failed(), failed()]);
    store.end(job(1), JobState::Completed);
    let announcer = start(&store, &script, &Arc::default());
    let first = attempts.recv().await.unwrap();
    let second = attempts.recv().await.unwrap();
    store.settled(2).await;
    announcer.stop(pending()).await;
    sleep(Duration::from_secs(3)).await;
    let _announcer = start(&store, &script, &Arc::default());
    let third = attempts.recv().await.unwrap();
    assert_eq!(third.message.id, first.message.id);
    let wait = third.at.duration_since(second.at).as_secs();
    // Five minutes with their jitter, and up to a minute until the new process looks again.
    assert!((300..=390).contains(&wait), "{wait}");
    store.settled(3).await;
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_a_crash_cut_off_is_repeated() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([]);
    script.permits.forget_permits(Semaphore::MAX_PERMITS);
    store.end(job(1), JobState::Completed);
    let announcer = start(&store, &script, &Arc::default());
    let first = attempts.recv().await.unwrap();
    drop(announcer);
    script.permits.add_permits(1);
    let _announcer = start(&store, &script, &Arc::default());
    let second = attempts.recv().await.unwrap();
    assert_eq!(second.message.id, first.message.id);
    let wait = second.at.duration_since(first.at).as_secs();
    assert!((60..=120).contains(&wait), "after its claim has ended: {wait}");
}

#[tokio::test(start_paused = true)]
async fn at_most_64_messages_are_sent_at_once() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([]);
    script.permits.forget_permits(Semaphore::MAX_PERMITS);
    for number in 1..=100 {
        store.end(job(number), JobState::Completed);
    }
    let _announcer = start(&store, &script, &Arc::default());
    for _ in 0..64 {
        attempts.recv().await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert!(attempts.try_recv().is_err());
    for _ in 64..100 {
        script.permits.add_permits(1);
        attempts.recv().await.unwrap();
    }
    script.permits.add_permits(64);
    store.settled(100).await;
    assert!(store.is_empty());
    assert_eq!(script.most_in_progress.load(Ordering::Relaxed), 64);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ends_again_while_its_message_is_sent_is_announced_again() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([]);
    script.permits.forget_permits(Semaphore::MAX_PERMITS);
    store.end(job(1), JobState::Completed);
    let ended = Arc::default();
    let _announcer = start(&store, &script, &ended);
    let first = attempts.recv().await.unwrap();
    // Its receiver retries the failed items before it answers.
    sleep(Duration::from_secs(2)).await;
    store.end(job(1), JobState::Completed);
    script.permits.add_permits(2);
    ended.notify_one();
    let second = attempts.recv().await.unwrap();
    assert_ne!(second.message.id, first.message.id);
    assert_eq!(second.body()["timestamp"], "2026-11-29T08:00:02Z");
    store.settled(2).await;
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_again() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([]);
    store.end(job(1), JobState::Completed);
    store.fail(true);
    let _announcer = start(&store, &script, &Arc::default());
    sleep(Duration::from_secs(200)).await;
    assert!(attempts.try_recv().is_err());
    store.fail(false);
    attempts.recv().await.unwrap();
    store.settled(1).await;
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_attempts_in_progress_and_starts_none() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([]);
    script.permits.forget_permits(Semaphore::MAX_PERMITS);
    store.end(job(1), JobState::Completed);
    let ended = Arc::default();
    let announcer = start(&store, &script, &ended);
    attempts.recv().await.unwrap();
    let mut stopping = Box::pin(announcer.stop(pending()));
    assert!(stopping.as_mut().now_or_never().is_none());
    store.end(job(2), JobState::Completed);
    ended.notify_one();
    script.permits.add_permits(9);
    stopping.await;
    store.settled(1).await;
    assert!(attempts.try_recv().is_err(), "the second job is announced after the restart");
    assert!(!store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_can_be_cut_short() {
    let store = MemoryStore::new(clock());
    let (script, mut attempts) = Script::new([]);
    script.permits.forget_permits(Semaphore::MAX_PERMITS);
    store.end(job(1), JobState::Completed);
    let announcer = start(&store, &script, &Arc::default());
    attempts.recv().await.unwrap();
    announcer.stop(ready(())).await;
    assert!(!store.is_empty());
}

#[tokio::test]
async fn nothing_is_claimed_without_a_secret() {
    let store = MemoryStore::new(Arc::new(SystemClock));
    store.end(job(1), JobState::Completed);
    let sender =
        WebhookSender::new(WebhookSettings::default(), None, &Authorities::default()).unwrap();
    let announcer = Announcer::start(Arc::clone(&store) as _, sender, Arc::default(), render());
    announcer.stop(pending()).await;
    assert_eq!(store.claims(), 0);
}
