//! The promises, their violations, and the history of each process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::settings::LEASE;

/// Contained in every key of this test and nowhere else.
pub const SECRET: &str = "NEVERSHOWN";

/// How many violations of a kind are shown with their evidence.
const EVIDENCE: u64 = 5;

/// What the service promises and this test checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    InFlight,
    SemaphoreInFlight,
    OwnAnswer,
    WholeAnswer,
    Answered,
    HangUp,
    Recovery,
    Permits,
    Pauses,
    Secrets,
    Memory,
    Processes,
}

impl Claim {
    pub const ALL: [Self; 12] = [
        Self::InFlight,
        Self::SemaphoreInFlight,
        Self::OwnAnswer,
        Self::WholeAnswer,
        Self::Answered,
        Self::HangUp,
        Self::Recovery,
        Self::Permits,
        Self::Pauses,
        Self::Secrets,
        Self::Memory,
        Self::Processes,
    ];

    pub fn text(self) -> &'static str {
        match self {
            Self::InFlight => "never more calls in flight than the limit",
            Self::SemaphoreInFlight => "never more calls in flight than a named semaphore allows",
            Self::OwnAnswer => "every answer belongs to its question, at its index",
            Self::WholeAnswer => "an incomplete answer is never a success",
            Self::Answered => "every request is answered in time, never with an internal error",
            Self::HangUp => "the calls of a disconnected client end",
            Self::Recovery => "every replica serves again after each disturbance",
            Self::Permits => "no permit is lost",
            Self::Pauses => "no account is paused for longer than its quota's window",
            Self::Secrets => "no key is shown",
            Self::Memory => "the memory returns to its initial size",
            Self::Processes => "no replica panics or ends by itself",
        }
    }
}

/// One process of a replica, from start to end. Its number is part of its base URL, so that the
/// upstream knows whose calls it receives.
pub type Life = usize;

/// The history of a process.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// When it was stopped and when it resumed.
    pauses: Vec<(Instant, Option<Instant>)>,
    /// It was killed, after the calls that it had disconnected were ended.
    pub is_killed: bool,
}

impl History {
    /// Whether it was stopped at any time since then.
    pub fn was_paused_since(&self, since: Instant) -> bool {
        self.pauses.iter().any(|(_, end)| end.is_none_or(|end| end >= since))
    }

    /// When it resumed last.
    pub fn resumed(&self) -> Option<Instant> {
        self.pauses.iter().filter_map(|(_, end)| *end).max()
    }
}

/// Everything that the parts of this test share.
#[derive(Debug, Default)]
pub struct Record {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    violations: BTreeMap<Claim, u64>,
    lives: Vec<(usize, History)>,
    /// When the replicas may have lost what Redis held for them.
    redis_disturbed: Vec<Instant>,
    /// When the clients of calls disconnected.
    disconnected: HashMap<u64, (Life, Instant)>,
    /// The outcomes of the clients' calls.
    outcomes: BTreeMap<String, u64>,
    /// The disturbances: how often, and the longest time until all replicas served again.
    disturbances: BTreeMap<&'static str, (u64, Duration)>,
    /// When the process of each slot was not running.
    down: HashMap<usize, Vec<(Instant, Option<Instant>)>>,
    /// What was done when, for evidence.
    diary: Vec<(Instant, String)>,
}

impl Record {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a violation.
    pub fn violated(&self, claim: Claim, evidence: impl FnOnce() -> String) {
        let count = {
            let mut state = self.state();
            let count = state.violations.entry(claim).or_default();
            *count += 1;
            *count
        };
        if count <= EVIDENCE {
            // The evidence may use this record, which is not locked now.
            eprintln!("  VIOLATED: {}: {}", claim.text(), evidence());
        }
    }

    /// How often each promise was violated.
    pub fn violations(&self) -> Vec<(Claim, u64)> {
        let state = self.state();
        let count = |claim| state.violations.get(&claim).copied().unwrap_or_default();
        Claim::ALL.map(|claim| (claim, count(claim))).into()
    }

    pub fn is_violated(&self) -> bool {
        !self.state().violations.is_empty()
    }

    /// Records a violation if a text contains a key.
    pub fn search(&self, place: &str, text: &[u8]) {
        if let Some(at) = find(text, SECRET.as_bytes()) {
            self.violated(Claim::Secrets, || format!("{place}: …{}…", around(text, at)));
        }
    }

    /// Registers a process that is about to start.
    pub fn register(&self, slot: usize) -> Life {
        let mut state = self.state();
        state.lives.push((slot, History::default()));
        state.lives.len() - 1
    }

    pub fn slot_of(&self, life: Life) -> usize {
        self.state().lives.get(life).map_or(usize::MAX, |(slot, _)| *slot)
    }

    pub fn history(&self, life: Life) -> History {
        self.state().lives.get(life).map(|(_, history)| history.clone()).unwrap_or_default()
    }

    pub fn killed(&self, life: Life) {
        self.state().lives[life].1.is_killed = true;
    }

    pub fn paused(&self, life: Life) {
        self.state().lives[life].1.pauses.push((Instant::now(), None));
    }

    pub fn resumed(&self, life: Life) {
        if let Some((_, end @ None)) = self.state().lives[life].1.pauses.last_mut() {
            *end = Some(Instant::now());
        }
    }

    /// Records that Redis may have lost data, or that a replica may have been taken for dead.
    pub fn redis_is_disturbed(&self) {
        self.state().redis_disturbed.push(Instant::now());
    }

    /// Whether a call that began then may have lost its permit meanwhile: its replica was killed or
    /// stopped, or Redis was disturbed.
    pub fn may_have_expired(&self, life: Life, since: Instant) -> bool {
        let state = self.state();
        // What happened up to a lease before may take effect only now.
        let disturbed = state.redis_disturbed.iter().any(|at| *at + LEASE >= since);
        let of_its_own = state
            .lives
            .get(life)
            .is_some_and(|(_, history)| history.is_killed || history.was_paused_since(since));
        disturbed || of_its_own
    }

    pub fn disconnected(&self, id: u64, life: Life) {
        self.state().disconnected.insert(id, (life, Instant::now()));
    }

    /// How long a call's client has been gone as far as its replica can know: time in which the
    /// replica was stopped does not count.
    pub fn gone_for(&self, id: u64) -> Option<Duration> {
        let state = self.state();
        let (life, at) = *state.disconnected.get(&id)?;
        let history = state.lives.get(life).map(|(_, history)| history)?;
        if history.pauses.last().is_some_and(|(_, end)| end.is_none()) {
            return None;
        }
        let since = history.resumed().map_or(at, |resumed| resumed.max(at));
        Some(since.elapsed())
    }

    /// Records the outcome of calls.
    pub fn outcome(&self, what: &str, calls: u64) {
        let mut state = self.state();
        match state.outcomes.get_mut(what) {
            Some(count) => *count += calls,
            None => _ = state.outcomes.insert(what.to_owned(), calls),
        }
    }

    pub fn outcomes(&self) -> BTreeMap<String, u64> {
        self.state().outcomes.clone()
    }

    /// Records that the process of a slot ends or runs again.
    pub fn is_down(&self, slot: usize, is_down: bool) {
        let mut state = self.state();
        let down = state.down.entry(slot).or_default();
        if is_down {
            down.push((Instant::now(), None));
        } else if let Some((_, end)) = down.last_mut() {
            *end = Some(Instant::now());
        }
    }

    /// Whether the process of a slot was not running at some time since then.
    pub fn was_down_since(&self, slot: usize, since: Instant) -> bool {
        let state = self.state();
        let down = state.down.get(&slot).map(Vec::as_slice).unwrap_or_default();
        down.iter().any(|(_, end)| end.is_none_or(|end| end >= since))
    }

    /// Records what is being done now.
    pub fn note(&self, what: String) {
        self.state().diary.push((Instant::now(), what));
    }

    /// What was done within this window.
    pub fn last_disturbances(&self, window: Duration) -> String {
        let state = self.state();
        let recent = state.diary.iter().rev().take_while(|(at, _)| at.elapsed() < window);
        let notes =
            recent.map(|(at, what)| format!("{what} {:.1} s ago", at.elapsed().as_secs_f32()));
        notes.collect::<Vec<_>>().join(", ")
    }

    /// Records a disturbance and the time until all replicas served again.
    pub fn disturbed(&self, what: &'static str, recovery: Duration) {
        let mut state = self.state();
        let (count, longest) = state.disturbances.entry(what).or_default();
        *count += 1;
        *longest = recovery.max(*longest);
    }

    pub fn disturbances(&self) -> BTreeMap<&'static str, (u64, Duration)> {
        self.state().disturbances.clone()
    }
}

/// The first position of a pattern in a text.
pub fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

/// Some of a text around a position, for evidence.
pub fn around(text: &[u8], at: usize) -> String {
    let part = &text[at.saturating_sub(120)..text.len().min(at + 80)];
    String::from_utf8_lossy(part).replace(['\n', '\r'], " ")
}
