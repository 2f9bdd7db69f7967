//! Handling one generating call: planning its response and sending it.

use std::time::Duration;

use axum::response::Response;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::completion::{completion, completion_chunks};
use super::compose::{candidate, check_schemas, scripted_refusal};
use super::form::{Form, SimulatedRequest};
use super::models;
use super::plan::{Plan, Reply, ResponseChunks};
use super::quota::{Demand, QuotaExceeded};
use super::refusal::ErrorResponse;
use super::request::GenerateContentRequest;
use super::response::{PromptOutcome, SimulatedResponse};
use super::script::{Ending, Script};
use super::state::{Charge, Simulator};
use super::stats::{JournalEntry, RunningCall, hash};
use super::target::{Target, check_key};
use super::tier::ServiceTier;
use super::transmission::{Framing, deliver};

/// The shortest `X-Server-Timeout` that Gemini accepts, in seconds.
const MIN_SERVER_TIMEOUT: f64 = 10.0;

/// Refuses a deadline that Gemini finds too short.
fn check_deadline(headers: &HeaderMap) -> Result<(), ErrorResponse> {
    let timeout = headers.get("x-server-timeout").and_then(|value| value.to_str().ok());
    match timeout.and_then(|timeout| timeout.parse::<f64>().ok()) {
        Some(seconds) if seconds < MIN_SERVER_TIMEOUT => {
            Err(ErrorResponse::invalid_argument(format!(
                "Manually set deadline {seconds}s is too short. Minimum allowed deadline is \
             {MIN_SERVER_TIMEOUT}s."
            )))
        }
        _ => Ok(()),
    }
}

/// A generating call that has arrived with its body.
pub(super) struct SimulatedCall<'a> {
    pub simulator: &'a Simulator,
    pub target: Target<'a>,
    pub headers: &'a HeaderMap,
    pub key: Option<&'a str>,
    /// As it was received, for the journal.
    pub body: &'a [u8],
    pub arrived: Instant,
    /// Tokens of the input that the request itself does not contain, such as earlier interactions.
    pub context_tokens: u64,
}

impl SimulatedCall<'_> {
    /// Answers the call, as planned.
    pub async fn answer(
        &self,
        request: SimulatedRequest<'_>,
        mut in_flight: RunningCall,
    ) -> Response {
        let framing = request.form.framing();
        let plan = self.plan(request, &mut in_flight);
        deliver(plan, in_flight, self.arrived, framing).await
    }

    /// Decides how the call is answered. It is refused for its key, model or body first, then for
    /// the quotas, then for lack of capacity, then as its script says, then at random.
    pub fn plan(&self, request: SimulatedRequest<'_>, in_flight: &mut RunningCall) -> Plan {
        let SimulatedRequest { form, content } = request;
        if self.simulator.options().journal {
            in_flight.record(self.journal_entry(content.as_ref().ok()));
        }
        let planned = content.and_then(|content| self.decide(&form, &content, in_flight));
        planned.unwrap_or_else(|refusal| Plan {
            latency: Duration::ZERO,
            tier: ServiceTier::Standard,
            reply: Reply::Refused(refusal.in_envelope(form.envelope())),
        })
    }

    fn decide(
        &self,
        form: &Form,
        request: &GenerateContentRequest<'_>,
        in_flight: &mut RunningCall,
    ) -> Result<Plan, ErrorResponse> {
        let options = self.simulator.options();
        let key = check_key(self.key, options)?;
        let model = self.target.check_model(options, self.simulator.today())?;
        check_deadline(self.headers)?;
        let tier = request.tier()?;
        let schema = check_schemas(request)?;
        let prompt = request.prompt();
        let (prompt, script) = Script::parse(&prompt)
            .map_err(|error| ErrorResponse::invalid_argument(format!("[[simulate:…]]: {error}")))?;

        let input_tokens = request.input_tokens();
        let demand = Demand {
            key,
            model: self.target.model,
            requests: form.requests(),
            input_tokens: input_tokens + self.context_tokens,
            tier,
        };
        let script = self.as_often_as_scripted(script, key, &prompt);
        let tier = self.admit(&demand, model, &script, in_flight)?;
        let (latency, failure) = self.simulator.draw(tier);
        let latency = script.latency.unwrap_or(latency);
        let failure = failure.filter(|_| script.fail_after.is_none());
        let ending = script.ending.as_ref().filter(|_| script.fail_after.is_none());
        let outcome = match (ending, failure) {
            (None, None) if let Form::Embeddings(embeddings) = form => {
                let charge = Charge { key, model, tier, input_tokens, output_tokens: 0 };
                self.simulator.charge(&charge, self.arrived);
                let body = embeddings.encode(request, model);
                let reply = Reply::Answered(ResponseChunks::new(vec![body], &script));
                return Ok(Plan { latency, tier, reply });
            }
            (None, None) => candidate(options, request, schema.as_ref(), &prompt, &script)?,
            (Some(Ending::Blocked(reason)), _) => PromptOutcome::Blocked(reason),
            (Some(Ending::Close), _) => return Ok(Plan { latency, tier, reply: Reply::Closed }),
            (Some(ending), _) => {
                let refusal = self.scripted_refusal(Some(ending));
                let reply = Reply::Refused(refusal.in_envelope(form.envelope()));
                return Ok(Plan { latency, tier, reply });
            }
            (None, Some(status)) => {
                let refusal = ErrorResponse::with_status(status).in_envelope(form.envelope());
                return Ok(Plan { latency, tier, reply: Reply::Refused(refusal) });
            }
        };
        let response = SimulatedResponse {
            model,
            response_id: self.simulator.next_response_id(),
            prompt_tokens: input_tokens,
            tier,
            outcome,
        };
        let output_tokens = response.billed_output_tokens();
        let charge = Charge { key, model, tier, input_tokens: demand.input_tokens, output_tokens };
        self.simulator.charge(&charge, self.arrived);
        let reply = self.answered(form, &response, &script, latency);
        Ok(Plan { latency, tier, reply })
    }

    /// Admits the call, or refuses it for the account, the quotas or the capacity, in this order.
    /// Returns the tier that serves it.
    fn admit(
        &self,
        demand: &Demand<'_>,
        model: &str,
        script: &Script<'_>,
        in_flight: &mut RunningCall,
    ) -> Result<ServiceTier, ErrorResponse> {
        if self.simulator.is_unfunded() {
            return Err(ErrorResponse::with_status(StatusCode::PAYMENT_REQUIRED));
        }
        let cost = models::cost(model, demand.input_tokens, 0) * demand.tier.price_factor();
        if !self.simulator.quotas().may_spend(demand.key, cost as u64, self.arrived) {
            return Err(ErrorResponse::spend_limit());
        }
        let admitted = self.simulator.quotas().admit(demand, self.arrived);
        let tier = admitted.map_err(|exceeded| self.quota_exceeded(&exceeded))?;
        let is_full = script.flex_full && demand.tier == ServiceTier::Flex;
        let tier = script.tier.unwrap_or(tier);
        in_flight.admit(demand.input_tokens, tier);
        if !is_full && in_flight.take_capacity(self.simulator.capacity(tier), tier) {
            Ok(tier)
        } else {
            Err(ErrorResponse::with_status(StatusCode::SERVICE_UNAVAILABLE))
        }
    }

    fn journal_entry(&self, request: Option<&GenerateContentRequest<'_>>) -> JournalEntry {
        JournalEntry {
            api_key: self.key.unwrap_or_default().to_owned(),
            model: self.target.model.to_owned(),
            prompt_text: request.map_or_else(String::new, |r| r.prompt().into_owned()),
            body: serde_json::from_slice(self.body).unwrap_or_default(),
            arrived_at: self.arrived,
            status: None,
        }
    }

    fn quota_exceeded(&self, exceeded: &QuotaExceeded) -> ErrorResponse {
        let free_tier = self.simulator.options().free_tier;
        ErrorResponse::quota_exceeded(exceeded, self.target.model, free_tier)
    }

    fn scripted_refusal(&self, ending: Option<&Ending<'_>>) -> ErrorResponse {
        scripted_refusal(ending, self.target.model, self.simulator.options().free_tier)
    }

    /// The script, or an empty one when it has been followed often enough.
    fn as_often_as_scripted<'s>(&self, script: Script<'s>, key: &str, prompt: &str) -> Script<'s> {
        let Some(times) = script.fail_times else { return script };
        let attempts = self.simulator.count_attempt(hash((key, self.target.model, prompt)));
        if attempts > times { Script::default() } else { script }
    }

    fn answered(
        &self,
        form: &Form,
        response: &SimulatedResponse<'_>,
        script: &Script<'_>,
        latency: Duration,
    ) -> Reply {
        let count = script.chunks.unwrap_or(self.simulator.options().stream_chunks);
        let chunks = match form {
            Form::Content(Framing::Whole) | Form::Embeddings(_) => vec![response.whole()],
            Form::Content(_) => response.chunks(count),
            Form::Completion(form) if form.stream => {
                completion_chunks(response, count, form.include_usage)
            }
            Form::Completion(_) => vec![completion(response)],
            Form::Interaction(form) => {
                let finished = form.finish(response, script, count, self.context_tokens);
                let chunks = finished.encode(form.stream);
                self.simulator.interactions().insert(finished, self.arrived, latency);
                chunks
            }
            Form::Other { encode, .. } => {
                let body = serde_json::from_slice(self.body).unwrap_or_default();
                vec![encode(&body, response).to_string().into()]
            }
        };
        let failure = script.fail_after.filter(|_| form.is_stream());
        let failure = failure.map(|after| {
            let failure = self.scripted_refusal(script.ending.as_ref());
            let envelope = match form {
                Form::Interaction(_) => form.envelope(),
                _ => Default::default(),
            };
            (after, failure.in_envelope(envelope))
        });
        Reply::Answered(ResponseChunks { failure, ..ResponseChunks::new(chunks, script) })
    }
}
