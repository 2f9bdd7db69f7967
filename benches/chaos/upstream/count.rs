//! Counts the calls in flight, and which of them the service is not to blame for.
//!
//! A call counts from when its request was read until its last byte is about to be sent or its
//! replica closes the connection. A killed process closes its connections too, but the upstream
//! continues to work: its calls count until they would have been answered. Allowed above the limit
//! are:
//!
//! - *uncovered* calls: those that take longer than four fifths of a lease and whose replica was
//!   killed or stopped, or lost Redis, meanwhile. The service promises nothing for them.
//! - *late* calls: a thread that is stopped between its last check and the write sends its call
//!   when it resumes. At most one for each of its threads arrives within [`LATE`] after that.
//! - *closing* calls: given up by their replica, which closes the connection within [`CLOSING`].
//!
//! Each kind is counted separately. Any other call above the limit is a violation.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::TcpStream as Socket;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::script::Request;
use crate::record::{Claim, Life, Record};
use crate::settings::{COVERED, HANG_UP, LEASE, LIMIT, SEMAPHORE_LIMIT};

const LATE: Duration = Duration::from_millis(100);
const CLOSING: Duration = Duration::from_millis(250);

/// Why calls above a limit are not a violation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Excused {
    pub uncovered: u64,
    pub late: u64,
    pub closing: u64,
    /// The longest time until a closing call was closed.
    pub longest_closing: Duration,
}

/// What was counted since the last time.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub calls: u64,
    pub in_flight: usize,
    /// The most calls in flight, and the most without excused calls.
    pub most: usize,
    pub most_counted: usize,
    pub most_tight: usize,
    pub excused: Excused,
    /// How the calls were answered.
    pub fates: BTreeMap<&'static str, u64>,
}

pub struct Count {
    record: Arc<Record>,
    state: Rc<RefCell<State>>,
    workers: usize,
}

#[derive(Default)]
struct State {
    last: u64,
    calls: HashMap<u64, Call>,
    tight: usize,
    figures: Figures,
    /// Whether an excess is being examined.
    suspects: bool,
    /// The calls that their replicas closed while an excess is being examined.
    closed: HashSet<u64>,
    /// The calls of disconnected clients that were reported.
    ghosts: HashSet<u64>,
}

/// A call to count.
pub struct Arrival<'a> {
    pub request: &'a Request,
    /// How long it will take; `None` for ever.
    pub longest: Option<Duration>,
    pub probe: Rc<Socket>,
}

struct Call {
    id: u64,
    life: Life,
    is_tight: bool,
    is_left: bool,
    arrived: Instant,
    ends: Option<Instant>,
    /// Shows whether the connection is open. `None` for a call of a killed process.
    probe: Option<Rc<Socket>>,
}

impl Call {
    /// Whether the peer has closed the connection, according to the kernel.
    fn is_closed(&self) -> bool {
        let Some(probe) = &self.probe else { return false };
        match probe.peek(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

impl Count {
    pub fn new(record: Arc<Record>) -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Self { record, state: Rc::default(), workers }
    }

    /// Counts a call and checks the limits.
    pub fn arrive(&self, arrival: Arrival<'_>) -> u64 {
        let Arrival { request, longest, probe } = arrival;
        let (number, above, tight_above) = {
            let mut state = self.state.borrow_mut();
            state.last += 1;
            let call = Call {
                id: request.id,
                life: request.life,
                is_tight: request.is_tight,
                is_left: request.is_left,
                arrived: request.arrived,
                ends: longest.map(|longest| request.arrived + longest),
                probe: Some(probe),
            };
            let number = state.last;
            state.tight += usize::from(call.is_tight);
            state.calls.insert(number, call);
            state.figures.calls += 1;
            (number, state.calls.len() > LIMIT, state.tight > SEMAPHORE_LIMIT)
        };
        if request.is_left {
            self.report_ghost(number, request.id);
        }
        if above || tight_above {
            self.count_off_closed();
            self.judge(Claim::InFlight, LIMIT, |_| true);
            self.judge(Claim::SemaphoreInFlight, SEMAPHORE_LIMIT, |call| call.is_tight);
        }
        let state = &mut *self.state.borrow_mut();
        let figures = &mut state.figures;
        figures.most = figures.most.max(state.calls.len());
        figures.most_tight = figures.most_tight.max(state.tight);
        figures.most_counted = figures.most_counted.max(state.calls.len().min(LIMIT));
        number
    }

    pub fn in_flight(&self) -> usize {
        self.state.borrow().calls.len()
    }

    /// A call has ended.
    pub fn end(&self, number: u64) {
        self.state.borrow_mut().remove(number);
    }

    /// A call's replica closed the connection. Calls of killed processes continue.
    pub async fn gone(&self, number: u64) {
        let until = {
            let mut state = self.state.borrow_mut();
            let Some(call) = state.calls.get_mut(&number) else { return };
            if self.record.history(call.life).is_killed {
                call.probe = None;
                let covered = call.arrived + COVERED;
                call.ends.map_or(covered, |ends| ends.min(covered))
            } else {
                if state.suspects {
                    state.closed.insert(number);
                }
                state.remove(number);
                return;
            }
        };
        sleep(until.saturating_duration_since(Instant::now())).await;
        self.end(number);
    }

    /// A stopped process is about to be killed: the calls that it has disconnected have ended.
    pub fn kill(&self, life: Life) {
        let mut state = self.state.borrow_mut();
        let closed = state.closed_calls(|call| call.life == life);
        closed.into_iter().for_each(|number| state.remove(number));
        self.record.killed(life);
    }

    /// What was counted since the last time.
    pub fn figures(&self, fates: BTreeMap<&'static str, u64>) -> Figures {
        self.count_off_closed();
        let mut state = self.state.borrow_mut();
        let in_flight = state.calls.len();
        Figures { in_flight, fates, ..std::mem::take(&mut state.figures) }
    }

    /// Reports calls in flight whose clients disconnected too long ago.
    pub fn report_ghosts(&self) {
        let left: Vec<_> = {
            let state = self.state.borrow();
            let left = state.calls.iter().filter(|(_, call)| call.is_left && call.probe.is_some());
            left.map(|(number, call)| (*number, call.id)).collect()
        };
        left.into_iter().for_each(|(number, id)| self.report_ghost(number, id));
    }

    fn report_ghost(&self, number: u64, id: u64) {
        let gone = self.record.gone_for(id).filter(|gone| *gone > HANG_UP);
        if let Some(gone) = gone
            && self.state.borrow_mut().ghosts.insert(number)
        {
            self.record.violated(Claim::HangUp, || {
                format!("call {id} is in flight {gone:?} after its client hung up")
            });
        }
    }

    /// Ends the calls whose replica has closed the connection. The runtime does not know yet of all
    /// closed connections that the kernel knows of.
    fn count_off_closed(&self) {
        let mut state = self.state.borrow_mut();
        for number in state.closed_calls(|_| true) {
            let life = state.calls[&number].life;
            if !self.record.history(life).is_killed {
                state.remove(number);
            }
        }
    }

    /// Checks a limit, and examines an excess.
    fn judge(&self, claim: Claim, limit: usize, is_meant: impl Fn(&Call) -> bool) {
        let mut state = self.state.borrow_mut();
        let State { calls, figures, suspects, .. } = &mut *state;
        let meant: Vec<_> = calls.iter().filter(|(_, call)| is_meant(call)).collect();
        let Some(above) = meant.len().checked_sub(limit).filter(|above| *above > 0) else { return };
        let uncovered = meant.iter().filter(|(_, call)| self.is_uncovered(call)).count();
        let late = self.late(meant.iter().map(|(_, call)| *call));
        if above <= uncovered + late {
            figures.excused.uncovered += u64::from(uncovered > 0);
            figures.excused.late += u64::from(uncovered < above);
            return;
        }
        let above = above - uncovered - late;
        if claim == Claim::InFlight {
            figures.most_counted = figures.most_counted.max(limit + above);
        }
        if *suspects {
            return;
        }
        let numbers: Vec<u64> = meant.iter().map(|(number, _)| **number).collect();
        let evidence = self.evidence(&numbers, calls, limit, above);
        *suspects = true;
        drop(state);
        self.suspect(claim, numbers, above, evidence);
    }

    /// Waits whether the calls above a limit are closed soon.
    fn suspect(&self, claim: Claim, numbers: Vec<u64>, above: usize, evidence: String) {
        let (record, shared) = (Arc::clone(&self.record), Rc::clone(&self.state));
        tokio::task::spawn_local(async move {
            let since = Instant::now();
            let is_explained = loop {
                sleep(Duration::from_millis(2)).await;
                let state = shared.borrow();
                let closed = numbers.iter().filter(|number| state.closed.contains(number)).count();
                if closed >= above || since.elapsed() > CLOSING {
                    break closed >= above;
                }
            };
            let mut state = shared.borrow_mut();
            state.suspects = false;
            state.closed.clear();
            if is_explained {
                let excused = &mut state.figures.excused;
                excused.closing += 1;
                excused.longest_closing = excused.longest_closing.max(since.elapsed());
            } else {
                record.violated(claim, || evidence);
            }
        });
    }

    fn is_uncovered(&self, call: &Call) -> bool {
        call.arrived.elapsed() > COVERED && self.record.may_have_expired(call.life, call.arrived)
    }

    /// How many calls were sent by threads that resumed after a stop: at most one for each thread.
    fn late<'a>(&self, calls: impl Iterator<Item = &'a Call>) -> usize {
        let mut of_lives: HashMap<Life, usize> = HashMap::new();
        for call in calls {
            let resumed = self.record.history(call.life).resumed();
            let is_late = resumed
                .and_then(|at| call.arrived.checked_duration_since(at))
                .is_some_and(|after| after < LATE);
            *of_lives.entry(call.life).or_default() += usize::from(is_late);
        }
        of_lives.values().map(|late| (*late).min(self.workers)).sum()
    }

    fn evidence(
        &self,
        numbers: &[u64],
        calls: &HashMap<u64, Call>,
        limit: usize,
        above: usize,
    ) -> String {
        let mut of_lives: BTreeMap<Life, Vec<u128>> = BTreeMap::new();
        for call in numbers.iter().filter_map(|number| calls.get(number)) {
            of_lives.entry(call.life).or_default().push(call.arrived.elapsed().as_millis());
        }
        let described = of_lives.iter().map(|(life, ages)| {
            let history = self.record.history(*life);
            let oldest = ages.iter().max().copied().unwrap_or_default();
            let state = if history.is_killed {
                "killed".to_owned()
            } else {
                history
                    .resumed()
                    .map_or_else(String::new, |at| format!("resumed {:?} ago", at.elapsed()))
            };
            let slot = self.record.slot_of(*life);
            format!("replica {slot} ({life}) {state}: {} up to {oldest} ms old", ages.len())
        });
        let described = described.collect::<Vec<_>>().join("; ");
        let total = numbers.len();
        let last = self.record.last_disturbances(LEASE * 2);
        format!(
            "{total} in flight at limit {limit}, {above} unexplained ({described}) after {last}"
        )
    }
}

impl State {
    fn remove(&mut self, number: u64) {
        if let Some(call) = self.calls.remove(&number) {
            self.tight -= usize::from(call.is_tight);
        }
    }

    fn closed_calls(&self, is_meant: impl Fn(&Call) -> bool) -> Vec<u64> {
        let calls = self.calls.iter().filter(|(_, call)| is_meant(call) && call.is_closed());
        calls.map(|(number, _)| *number).collect()
    }
}
