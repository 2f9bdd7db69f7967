//! What the upstream does with a call, step by step, and how it is chosen.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;

use super::{HOLD, faults, words};
use crate::record::Life;
use crate::settings::LIMIT;

/// The format of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Whole,
    Stream,
    OpenAi,
    OpenAiStream,
    /// A request that generates nothing.
    Free,
}

impl Form {
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Stream | Self::OpenAiStream)
    }
}

/// A request from the service.
pub struct Request {
    pub life: Life,
    pub form: Form,
    pub is_counted: bool,
    pub is_structured: bool,
    pub id: u64,
    pub is_tight: bool,
    pub is_plain: bool,
    pub holds: bool,
    pub is_left: bool,
    pub key: String,
    pub arrived: Instant,
}

/// One step of a script.
pub enum Step {
    Wait(Duration),
    Send(Bytes),
    /// The last bytes of an answer after which the connection is kept.
    Last(Bytes),
    /// Nothing more, until the other side gives up.
    Silence,
    Close,
    /// The connection is reset.
    Reset,
}

/// What the upstream does with a call.
pub struct Script {
    /// Its name in the figures.
    pub name: &'static str,
    pub steps: Vec<Step>,
}

impl Script {
    pub fn new(name: &'static str, steps: Vec<Step>) -> Self {
        Self { name, steps }
    }

    /// How long it takes; `None` for ever.
    pub fn duration(&self) -> Option<Duration> {
        let mut sum = Duration::ZERO;
        for step in &self.steps {
            match step {
                Step::Wait(time) => sum += *time,
                Step::Silence => return None,
                _ => {}
            }
        }
        Some(sum)
    }
}

/// Chooses a script. Long calls take about half of the limit, however fast the machine is. The
/// others are answered soon.
pub fn script(random: &mut Rng, request: &Request, has_faults: bool, in_flight: usize) -> Script {
    if request.form == Form::Free {
        return free(random, has_faults);
    }
    if request.holds {
        return answered(request, HOLD);
    }
    if request.is_plain {
        return answered(request, Duration::ZERO);
    }
    if request.is_left {
        let wait = Duration::from_millis(random.u64(5..1500));
        return answered(request, wait);
    }
    if has_faults && let Some(script) = fault(random, request) {
        return script;
    }
    answered(request, latency(random, in_flight))
}

/// A fault, as often as the key's group demands.
fn fault(random: &mut Rng, request: &Request) -> Option<Script> {
    let group = request.key.split('-').nth(1).unwrap_or_default();
    let chance = random.f64();
    match group {
        "server" if chance < 0.02 => Some(faults::quoting_key(random, request)),
        "server" if chance < 0.023 => Some(faults::any(random, request)),
        "steady" if chance < 0.003 => Some(faults::any(random, request)),
        "shaky" if chance < 0.05 => Some(faults::any(random, request)),
        "shaky" if chance < 0.08 => Some(faults::overload(random)),
        "doomed" if chance < 0.3 => Some(faults::quota(random)),
        "doomed" if chance < 0.5 => Some(faults::any(random, request)),
        _ => None,
    }
}

fn latency(random: &mut Rng, in_flight: usize) -> Duration {
    let long = match in_flight * 4 / LIMIT {
        0 => 50,
        1 => 20,
        _ => 0,
    };
    let milliseconds = match random.u16(..1000) {
        chance if chance < long => random.u64(100..1600),
        ..750 => 0,
        750..970 => random.u64(1..5),
        _ => random.u64(5..20),
    };
    Duration::from_millis(milliseconds)
}

/// A good answer after some time.
pub fn answered(request: &Request, wait: Duration) -> Script {
    let mut steps = Vec::with_capacity(6);
    if request.form.is_stream() {
        let id = request.id;
        steps.push(Step::Send(words::stream_head()));
        steps.push(Step::Send(words::piece(request, &format!("a#{id}# here "), false)));
        if !wait.is_zero() {
            steps.push(Step::Wait(wait));
        }
        steps.push(Step::Send(words::piece(request, "it comes ", false)));
        steps.push(Step::Send(words::piece(request, "#end", true)));
        steps.push(Step::Last(words::stream_end(request)));
        return Script::new("answered, streamed", steps);
    }
    if !wait.is_zero() {
        steps.push(Step::Wait(wait));
    }
    let text = words::text(request, "as you asked #end");
    steps.push(Step::Last(words::json("200 OK", &words::whole(request, &text))));
    Script::new("answered", steps)
}

fn free(random: &mut Rng, has_faults: bool) -> Script {
    if has_faults && random.u8(..10) == 0 {
        return Script::new("free call: silent", vec![Step::Silence]);
    }
    Script::new(
        "free call",
        vec![Step::Last(words::json("200 OK", r#"{"name":"cachedContents/1"}"#))],
    )
}
