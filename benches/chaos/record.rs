//! What is asserted, what was seen against it, and what has happened to each process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::settings::LEASE;

/// What every key in this test contains and nothing else does.
pub const SECRET: &str = "NEVERSHOWN";

/// Of how many violations of a kind the evidence is shown.
const EVIDENCE: u64 = 5;

/// What the service promises, and this test asserts.
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
            Self::OwnAnswer => "every answer is its own question's, in its place",
            Self::WholeAnswer => "half an answer is never a success",
            Self::Answered => "every request is answered in time, never with an internal error",
            Self::HangUp => "the calls of a client that hung up end",
            Self::Recovery => "every replica serves again after each disturbance",
            Self::Permits => "no permit is lost",
            Self::Pauses => "no account is paused for longer than its quota can mean",
            Self::Secrets => "no key is shown",
            Self::Memory => "the memory is back where it began",
            Self::Processes => "no replica panics or ends by itself",
        }
    }
}

/// One process of a replica, from its start to its end. Its number is part of the base URL that it
/// is given, so that the upstream knows whose calls it has.
pub type Life = usize;

/// What has happened to a process.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// When it was stopped and when it went on.
    pauses: Vec<(Instant, Option<Instant>)>,
    /// It was killed, after what had been hung up by then was counted off.
    pub is_killed: bool,
}

impl History {
    /// Whether it was stopped at any time since.
    pub fn was_paused_since(&self, since: Instant) -> bool {
        self.pauses.iter().any(|(_, end)| end.is_none_or(|end| end >= since))
    }

    /// The last time at which it went on.
    pub fn resumed(&self) -> Option<Instant> {
        self.pauses.iter().filter_map(|(_, end)| *end).max()
    }
}

/// Everything that the parts of this test tell each other.
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
    /// When the clients of calls hung up.
    hung_up: HashMap<u64, (Life, Instant)>,
    /// What the calls of clients came to.
    outcomes: BTreeMap<String, u64>,
    /// What was done to the processes: how often, and the longest time until all served again.
    disturbances: BTreeMap<&'static str, (u64, Duration)>,
    /// When the process of each slot was not there.
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

    /// Something was seen that must not be.
    pub fn violated(&self, claim: Claim, evidence: impl FnOnce() -> String) {
        let count = {
            let mut state = self.state();
            let count = state.violations.entry(claim).or_default();
            *count += 1;
            *count
        };
        if count <= EVIDENCE {
            // It may ask this record for more, which is not locked now.
            eprintln!("  VIOLATED: {}: {}", claim.text(), evidence());
        }
    }

    /// How often each claim was violated.
    pub fn violations(&self) -> Vec<(Claim, u64)> {
        let state = self.state();
        let count = |claim| state.violations.get(&claim).copied().unwrap_or_default();
        Claim::ALL.map(|claim| (claim, count(claim))).into()
    }

    pub fn is_violated(&self) -> bool {
        !self.state().violations.is_empty()
    }

    /// Fails where a text shows a key.
    pub fn search(&self, place: &str, text: &[u8]) {
        if let Some(at) = find(text, SECRET.as_bytes()) {
            self.violated(Claim::Secrets, || format!("{place}: …{}…", around(text, at)));
        }
    }

    /// A process of a replica is about to be started.
    pub fn born(&self, slot: usize) -> Life {
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

    /// Redis may have lost what it held, or a replica may have been taken for dead.
    pub fn redis_is_disturbed(&self) {
        self.state().redis_disturbed.push(Instant::now());
    }

    /// Whether a call that began then can have lost its permit in the midst: its replica was killed
    /// or stopped, or Redis was disturbed.
    pub fn may_have_lapsed(&self, life: Life, since: Instant) -> bool {
        let state = self.state();
        // What happened up to a lease before may show only now.
        let disturbed = state.redis_disturbed.iter().any(|at| *at + LEASE >= since);
        let of_its_own = state
            .lives
            .get(life)
            .is_some_and(|(_, history)| history.is_killed || history.was_paused_since(since));
        disturbed || of_its_own
    }

    pub fn hung_up(&self, id: u64, life: Life) {
        self.state().hung_up.insert(id, (life, Instant::now()));
    }

    /// For how long a call's client has been gone for all that its replica can know: the time in
    /// which that was stopped does not count.
    pub fn gone_for(&self, id: u64) -> Option<Duration> {
        let state = self.state();
        let (life, at) = *state.hung_up.get(&id)?;
        let history = state.lives.get(life).map(|(_, history)| history)?;
        if history.pauses.last().is_some_and(|(_, end)| end.is_none()) {
            return None;
        }
        let since = history.resumed().map_or(at, |resumed| resumed.max(at));
        Some(since.elapsed())
    }

    /// Calls came to something.
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

    /// The process of a slot is ended, or is there again.
    pub fn is_down(&self, slot: usize, is_down: bool) {
        let mut state = self.state();
        let down = state.down.entry(slot).or_default();
        if is_down {
            down.push((Instant::now(), None));
        } else if let Some((_, end)) = down.last_mut() {
            *end = Some(Instant::now());
        }
    }

    /// Whether the process of a slot was not there at some time since.
    pub fn was_down_since(&self, slot: usize, since: Instant) -> bool {
        let state = self.state();
        let down = state.down.get(&slot).map(Vec::as_slice).unwrap_or_default();
        down.iter().any(|(_, end)| end.is_none_or(|end| end >= since))
    }

    /// Something is done now.
    pub fn note(&self, what: String) {
        self.state().diary.push((Instant::now(), what));
    }

    /// What was done within the last while.
    pub fn last_disturbances(&self, window: Duration) -> String {
        let state = self.state();
        let recent = state.diary.iter().rev().take_while(|(at, _)| at.elapsed() < window);
        let told =
            recent.map(|(at, what)| format!("{what} {:.1} s ago", at.elapsed().as_secs_f32()));
        told.collect::<Vec<_>>().join(", ")
    }

    /// Something was done, and all served again after so long.
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

/// Where something first is in a text.
pub fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

/// A little of a text, for evidence.
pub fn around(text: &[u8], at: usize) -> String {
    let part = &text[at.saturating_sub(120)..text.len().min(at + 80)];
    String::from_utf8_lossy(part).replace(['\n', '\r'], " ")
}
