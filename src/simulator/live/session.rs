//! A live session's calls of its model.

use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep};

use crate::simulator::compose::{candidate, check_schemas, scripted_refusal};
use crate::simulator::quota::Demand;
use crate::simulator::refusal::ErrorResponse;
use crate::simulator::request::GenerateContentRequest;
use crate::simulator::response::SimulatedResponse;
use crate::simulator::script::{Ending, Script};
use crate::simulator::state::{Charge, Simulator};
use crate::simulator::stats::{CallOutcome, JournalEntry, RunningCall};
use crate::simulator::target::Target;
use crate::simulator::tier::ServiceTier;

/// A live session with a model. It counts as one call of the model, in flight while it is open.
pub(super) struct Session {
    pub simulator: Simulator,
    key: String,
    /// The model that was named.
    model: String,
    /// The model that answers.
    answering: String,
    in_flight: RunningCall,
}

/// How a session behaves after a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AfterTurn {
    pub goes_away: bool,
    pub closes: bool,
}

impl Session {
    /// Opens a session.
    ///
    /// # Errors
    ///
    /// Refuses an unknown model and a session that the quotas or the capacity have no room for.
    pub fn open(simulator: Simulator, key: String, name: &str) -> Result<Self, ErrorResponse> {
        let (collection, model) = name.split_once('/').unwrap_or(("models", name));
        let mut in_flight = RunningCall::arrive(simulator.collector(), model, Some(&key));
        if simulator.options().journal {
            in_flight.record(JournalEntry::without_body(&key, model));
        }
        let method = "bidiGenerateContent";
        let target = Target { version: "v1beta", collection, model, method };
        match admit(&simulator, &key, target, &mut in_flight) {
            Ok(answering) => {
                let (model, answering) = (model.to_owned(), answering.to_owned());
                Ok(Self { simulator, key, model, answering, in_flight })
            }
            Err(refusal) => {
                in_flight.end(&CallOutcome::Refused(&refusal));
                Err(refusal)
            }
        }
    }

    /// Answers one turn after the latency. The function gets the response and the number of chunks.
    ///
    /// # Errors
    ///
    /// Refuses what the quotas have no room for and what the script refuses.
    pub async fn turn<T>(
        &self,
        request: &GenerateContentRequest<'_>,
        encode: impl FnOnce(&SimulatedResponse<'_>, usize) -> T,
    ) -> Result<(T, AfterTurn), ErrorResponse> {
        let options = self.simulator.options();
        let arrived = Instant::now();
        let prompt = request.prompt();
        let (prompt, script) = Script::parse(&prompt)
            .map_err(|error| ErrorResponse::invalid_argument(format!("[[simulate:…]]: {error}")))?;
        let input_tokens = request.input_tokens();
        if !self.simulator.quotas().may_spend(&self.key, 0, arrived) {
            return Err(ErrorResponse::spend_limit());
        }
        self.take(0, input_tokens, arrived)?;
        let mut after = AfterTurn { goes_away: script.go_away, closes: false };
        match &script.ending {
            Some(Ending::Close) => after.closes = true,
            None | Some(Ending::Blocked(_)) => {}
            ending => {
                return Err(scripted_refusal(ending.as_ref(), &self.model, options.free_tier));
            }
        }
        let schema = check_schemas(request)?;
        let response = SimulatedResponse {
            model: &self.answering,
            response_id: self.simulator.next_response_id(),
            prompt_tokens: input_tokens,
            tier: ServiceTier::Standard,
            outcome: candidate(options, request, schema.as_ref(), &prompt, &script)?,
        };
        self.charge(input_tokens, response.billed_output_tokens(), arrived);
        let encoded = encode(&response, script.chunks.unwrap_or(options.stream_chunks));
        let (latency, _) = self.simulator.draw(ServiceTier::Standard);
        sleep(script.latency.unwrap_or(latency)).await;
        if script.stall_after.is_some() {
            std::future::pending::<()>().await;
        }
        Ok((encoded, after))
    }

    /// Ends the session as one that was answered.
    pub fn end(self) {
        self.in_flight.end(&CallOutcome::Answered);
    }

    /// Ends the session with a refusal.
    pub fn refused(self, refusal: &ErrorResponse) {
        self.in_flight.end(&CallOutcome::Refused(refusal));
    }

    fn take(&self, requests: u64, input_tokens: u64, at: Instant) -> Result<(), ErrorResponse> {
        take(&self.simulator, &self.key, &self.model, requests, input_tokens, at)?;
        self.simulator.collector().admit_tokens(input_tokens);
        Ok(())
    }

    fn charge(&self, input_tokens: u64, output_tokens: u64, at: Instant) {
        let (key, model, tier) = (&*self.key, &*self.answering, ServiceTier::Standard);
        self.simulator.charge(&Charge { key, model, tier, input_tokens, output_tokens }, at);
    }
}

/// How long before the end of a session `goAway` is sent.
pub(super) const GO_AWAY: Duration = Duration::from_millis(100);

fn admit<'a>(
    simulator: &Simulator,
    key: &str,
    target: Target<'a>,
    in_flight: &mut RunningCall,
) -> Result<&'a str, ErrorResponse> {
    let answering = target.check_model(simulator.options(), simulator.today())?;
    let now = Instant::now();
    if simulator.is_unfunded() {
        return Err(ErrorResponse::with_status(StatusCode::PAYMENT_REQUIRED));
    }
    if !simulator.quotas().may_spend(key, 0, now) {
        return Err(ErrorResponse::spend_limit());
    }
    take(simulator, key, target.model, 1, 0, now)?;
    in_flight.admit(0, ServiceTier::Standard);
    if in_flight.take_capacity(simulator.capacity(ServiceTier::Standard), ServiceTier::Standard) {
        Ok(answering)
    } else {
        Err(ErrorResponse::with_status(StatusCode::SERVICE_UNAVAILABLE))
    }
}

fn take(
    simulator: &Simulator,
    key: &str,
    model: &str,
    requests: u64,
    input_tokens: u64,
    at: Instant,
) -> Result<(), ErrorResponse> {
    let demand = Demand { key, model, requests, input_tokens, tier: ServiceTier::Standard };
    let free_tier = simulator.options().free_tier;
    let admitted = simulator.quotas().admit(&demand, at);
    admitted
        .map(drop)
        .map_err(|exceeded| ErrorResponse::quota_exceeded(&exceeded, model, free_tier))
}
