//! One call: what is to be answered to it, and when.

use std::borrow::Cow;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Simulator;
use super::answer::{Answer, Candidate, Content, Outcome, beginning, sized};
use super::completion::{completion, completion_chunks};
use super::embeddings::Embeddings;
use super::instance::fitting;
use super::quota::{Exceeded, Quota};
use super::refusal::Refusal;
use super::request::{GenerateContentRequest, GenerationConfig};
use super::schema::{check_response_json_schema, check_response_schema};
use super::script::{Ending, Script};
use super::stats::{Call, JournalEntry, hash};
use super::target::{Target, check_key};
use super::tokens::tokens;
use super::transmission::{Framing, deliver};

/// The shortest `X-Server-Timeout` that Gemini takes, in seconds.
const MIN_SERVER_TIMEOUT: f64 = 10.0;

/// What a scripted quota refusal names as the limit and the wait.
const SCRIPTED_LIMIT: u64 = 10;
const SCRIPTED_WAIT: Duration = Duration::from_millis(12_345);

/// Refuses a deadline that Gemini finds too short.
fn check_deadline(headers: &HeaderMap) -> Result<(), Refusal> {
    let timeout = headers.get("x-server-timeout").and_then(|value| value.to_str().ok());
    match timeout.and_then(|timeout| timeout.parse::<f64>().ok()) {
        Some(seconds) if seconds < MIN_SERVER_TIMEOUT => Err(Refusal::invalid_argument(format!(
            "Manually set deadline {seconds}s is too short. Minimum allowed deadline is \
             {MIN_SERVER_TIMEOUT}s."
        ))),
        _ => Ok(()),
    }
}

/// A generating call that has arrived, with its body.
pub(super) struct Exchange<'a> {
    pub simulator: &'a Simulator,
    pub target: Target<'a>,
    pub headers: &'a HeaderMap,
    pub key: Option<&'a str>,
    /// As it came, for the journal.
    pub body: &'a [u8],
    pub arrived: Instant,
    pub form: Form,
}

/// In which form a call wants its answer.
pub(super) enum Form {
    /// As Gemini answers.
    Content(Framing),
    /// As OpenAI answers, in one body.
    Completion,
    /// As OpenAI answers, in events.
    CompletionEvents { include_usage: bool },
    /// As vectors instead of text.
    Embeddings(Embeddings),
}

/// What was read from a body: the form in which the answer is wanted, and the request in Gemini's
/// shape.
pub(super) type Asked<'a> = (Form, Result<GenerateContentRequest<'a>, Refusal>);

impl Form {
    fn is_openai(&self) -> bool {
        match self {
            Self::Content(_) => false,
            Self::Completion | Self::CompletionEvents { .. } => true,
            Self::Embeddings(embeddings) => embeddings.is_openai(),
        }
    }

    fn is_stream(&self) -> bool {
        !matches!(self.framing(), Framing::Whole)
    }

    /// As how many requests the call counts: each text to embed is one.
    fn requests(&self) -> u64 {
        match self {
            Self::Embeddings(embeddings) => embeddings.len().max(1) as u64,
            _ => 1,
        }
    }

    fn framing(&self) -> Framing {
        match self {
            Self::Content(framing) => *framing,
            Self::Completion | Self::Embeddings(_) => Framing::Whole,
            Self::CompletionEvents { .. } => Framing::OpenAiEvents,
        }
    }
}

/// How a call is to be answered.
pub(super) struct Plan {
    /// From the arrival to the last byte.
    pub latency: Duration,
    pub reply: Reply,
}

/// What a call is to be answered with.
pub(super) enum Reply {
    Refused(Refusal),
    /// Nothing: the connection is closed.
    Closed,
    Answered(Answered),
}

/// An answer, and how much of it arrives.
pub(super) struct Answered {
    pub chunks: Vec<Bytes>,
    /// Whether the connection is closed half way.
    pub truncated: bool,
    /// After how many chunks nothing more comes.
    pub stall_after: Option<u32>,
    /// After how many chunks of a stream which error comes.
    pub failure: Option<(u32, Refusal)>,
}

impl Answered {
    fn new(chunks: Vec<Bytes>, script: &Script<'_>) -> Self {
        let (truncated, stall_after) = (script.truncate_body, script.stall_after);
        Self { chunks, truncated, stall_after, failure: None }
    }
}

impl Exchange<'_> {
    /// Answers the call, as planned.
    pub async fn answer(
        &self,
        request: Result<GenerateContentRequest<'_>, Refusal>,
        mut call: Call,
    ) -> Response {
        let plan = self.plan(request, &mut call);
        deliver(plan, call, self.arrived, self.form.framing()).await
    }

    /// Decides how the call is answered: refused for its key, model or body first, then for the
    /// quotas, then for want of capacity, then as its script says, then at random.
    fn plan(&self, request: Result<GenerateContentRequest<'_>, Refusal>, call: &mut Call) -> Plan {
        if self.simulator.options().journal {
            call.record(self.journal_entry(request.as_ref().ok()));
        }
        match request.and_then(|request| self.decide(&request, call)) {
            Ok(plan) => plan,
            Err(refusal) => Plan { latency: Duration::ZERO, reply: self.refused(refusal) },
        }
    }

    /// A refusal, in a list for OpenAI's clients.
    fn refused(&self, refusal: Refusal) -> Reply {
        Reply::Refused(if self.form.is_openai() { refusal.in_list() } else { refusal })
    }

    fn decide(
        &self,
        request: &GenerateContentRequest<'_>,
        call: &mut Call,
    ) -> Result<Plan, Refusal> {
        let options = self.simulator.options();
        let key = check_key(self.key, options)?;
        self.target.check_model(options)?;
        check_deadline(self.headers)?;
        let schema = check_schemas(request)?;
        let prompt = request.prompt();
        let (prompt, script) = Script::parse(&prompt)
            .map_err(|error| Refusal::invalid_argument(format!("[[simulate:…]]: {error}")))?;

        let input_tokens = request.input_tokens();
        self.admit(key, input_tokens, call)?;
        let script = self.as_often_as_scripted(script, key, &prompt);
        let (latency, failure) = self.simulator.draw();
        let latency = script.latency.unwrap_or(latency);
        let failure = failure.filter(|_| script.fail_after.is_none());
        let ending = script.ending.as_ref().filter(|_| script.fail_after.is_none());
        let reply = match (ending, &failure) {
            (Some(Ending::Status(status)), _) | (None, Some(status)) => {
                self.refused(Refusal::with_status(*status))
            }
            (Some(Ending::Html(status)), _) => self.refused(Refusal::html(*status)),
            (Some(Ending::Quota(quota)), _) => self.refused(self.scripted_quota(*quota)),
            (Some(Ending::Close), _) => Reply::Closed,
            (Some(Ending::Blocked(reason)), _) => {
                self.answered(Outcome::Blocked(reason), input_tokens, &script)
            }
            (None, None) if let Form::Embeddings(embeddings) = &self.form => {
                let body = embeddings.encode(request, self.target.model);
                Reply::Answered(Answered::new(vec![body], &script))
            }
            (None, None) => {
                let outcome = self.candidate(request, schema.as_ref(), &prompt, &script)?;
                self.answered(outcome, input_tokens, &script)
            }
        };
        Ok(Plan { latency, reply })
    }

    fn admit(&self, key: &str, input_tokens: u64, call: &mut Call) -> Result<(), Refusal> {
        self.simulator
            .quotas()
            .admit(key, self.target.model, self.form.requests(), input_tokens, self.arrived)
            .map_err(|exceeded| self.quota_exceeded(&exceeded))?;
        call.admit(input_tokens);
        if call.take_place(self.simulator.capacity()) {
            Ok(())
        } else {
            Err(Refusal::with_status(StatusCode::SERVICE_UNAVAILABLE))
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

    fn quota_exceeded(&self, exceeded: &Exceeded) -> Refusal {
        let free_tier = self.simulator.options().free_tier;
        Refusal::quota_exceeded(exceeded, self.target.model, free_tier)
    }

    fn scripted_quota(&self, quota: Quota) -> Refusal {
        let violations = vec![(quota, SCRIPTED_LIMIT)];
        self.quota_exceeded(&Exceeded { violations, retry_in: SCRIPTED_WAIT })
    }

    /// The script, or a blank one when it has been followed often enough.
    fn as_often_as_scripted<'s>(&self, script: Script<'s>, key: &str, prompt: &str) -> Script<'s> {
        let Some(times) = script.fail_times else { return script };
        let attempts = self.simulator.count_attempt(hash((key, self.target.model, prompt)));
        if attempts > times { Script::default() } else { script }
    }

    fn answered(&self, outcome: Outcome<'_>, prompt_tokens: u64, script: &Script<'_>) -> Reply {
        let answer = Answer {
            model: self.target.model,
            response_id: self.simulator.next_response_id(),
            prompt_tokens,
            outcome,
        };
        let count = script.chunks.unwrap_or(self.simulator.options().stream_chunks);
        let chunks = match self.form {
            Form::Content(Framing::Whole) | Form::Embeddings(_) => vec![answer.whole()],
            Form::Content(_) => answer.chunks(count),
            Form::Completion => vec![completion(&answer)],
            Form::CompletionEvents { include_usage } => {
                completion_chunks(&answer, count, include_usage)
            }
        };
        let failure = script.fail_after.filter(|_| self.form.is_stream());
        let failure = failure.map(|after| (after, self.failure(script)));
        Reply::Answered(Answered { failure, ..Answered::new(chunks, script) })
    }

    /// The error in the middle of a stream.
    fn failure(&self, script: &Script<'_>) -> Refusal {
        match &script.ending {
            Some(Ending::Status(status)) => Refusal::with_status(*status),
            Some(Ending::Quota(quota)) => self.scripted_quota(*quota),
            _ => Refusal::with_status(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    fn candidate<'a>(
        &self,
        request: &GenerateContentRequest<'_>,
        schema: Option<&Value>,
        prompt: &str,
        script: &Script<'a>,
    ) -> Result<Outcome<'a>, Refusal> {
        let mut finish_reason = script.finish.unwrap_or("STOP");
        let mut text = match script.text {
            Some(text) => text.to_owned(),
            None if script.invalid_json => r#"{"unfinished": "#.to_owned(),
            None => self.text(request, schema, prompt, script.bytes)?,
        };
        let max_tokens = request.generation_config().and_then(|config| config.max_output_tokens);
        if matches!(finish_reason, "MAX_TOKENS" | "CONTINUATION") {
            let half = text.len() / 2;
            text = beginning(text, half);
        } else if let Some(max_tokens) = max_tokens.filter(|max| tokens(&text) > *max) {
            finish_reason = "MAX_TOKENS";
            text = beginning(text, max_tokens as usize * 4);
        }
        let content = match finish_reason {
            _ if script.empty => Content::WithoutParts,
            _ if script.text.is_some()
                || matches!(finish_reason, "STOP" | "MAX_TOKENS" | "CONTINUATION") =>
            {
                Content::Parts { count: script.parts.unwrap_or(1), thought: script.thought }
            }
            _ => Content::Missing,
        };
        let finish_reason = (!script.unfinished).then_some(finish_reason);
        Ok(Outcome::Candidate(Candidate { text: Cow::Owned(text), finish_reason, content }))
    }

    /// The text of the answer: JSON that fits the schema when there is one, otherwise a sentence
    /// that repeats the prompt.
    fn text(
        &self,
        request: &GenerateContentRequest<'_>,
        schema: Option<&Value>,
        prompt: &str,
        bytes: Option<usize>,
    ) -> Result<String, Refusal> {
        let options = self.simulator.options();
        if let Some(schema) = schema {
            let value = fitting(schema, prompt, options.seed ^ hash(prompt))
                .ok_or_else(|| Refusal::with_status(StatusCode::BAD_REQUEST))?;
            return Ok(match value {
                Value::String(choice) if request.wants_enum() => choice,
                value => value.to_string(),
            });
        }
        let text = format!("Simulated answer to: {prompt}");
        if request.wants_json() {
            return Ok(json!({"answer": text}).to_string());
        }
        Ok(match bytes.or(options.answer_bytes) {
            Some(bytes) => sized(text, bytes),
            None => text,
        })
    }
}

/// The schema of the answer, when there is one, and when Gemini would take it.
fn check_schemas(request: &GenerateContentRequest<'_>) -> Result<Option<Value>, Refusal> {
    let Some(config) = request.generation_config() else { return Ok(None) };
    let schema = match *config {
        GenerationConfig { response_schema: None, response_json_schema: None, .. } => {
            return Ok(None);
        }
        GenerationConfig { response_schema: Some(_), response_json_schema: Some(_), .. } => {
            return Err(broken_rule(
                "response_json_schema: only one of response_schema and response_json_schema may \
                 be set",
            ));
        }
        GenerationConfig { response_schema: Some(schema), .. } => {
            let schema = parsed(schema)?;
            check_response_schema(&schema)?;
            schema
        }
        GenerationConfig { response_json_schema: Some(schema), .. } => {
            let schema = parsed(schema)?;
            check_response_json_schema(&schema)?;
            schema
        }
    };
    if !request.wants_json() && !request.wants_enum() {
        return Err(broken_rule("response_mime_type: must be application/json with a schema"));
    }
    Ok(Some(schema))
}

/// A rule of the generation config that is documented, but whose refusal is not recorded.
fn broken_rule(rule: &str) -> Refusal {
    Refusal::rules(&[format!("GenerateContentRequest.generation_config.{rule}")])
}

fn parsed(schema: &RawValue) -> Result<Value, Refusal> {
    serde_json::from_str(schema.get()).map_err(|error| {
        Refusal::invalid_argument(format!("Invalid JSON payload received. {error}"))
    })
}
