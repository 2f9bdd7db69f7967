//! What clients send, and what a valid answer looks like.
//!
//! Each call has a number. The prompt contains it as `q#NUMBER#FLAGS#`, and the upstream answers
//! `a#NUMBER# … #end`, so that a misdirected or incomplete answer is noticed.

use std::fmt::Write;
use std::ops::Range;

use fastrand::Rng;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::record::{Claim, Record, around, find};
use crate::settings::{ADMIN_KEY, SEMAPHORE};

/// The model for structured output: the upstream answers it in JSON.
pub const STRUCTURED_MODEL: &str = "gemini-chaos-structured";
pub const CHAT_MODEL: &str = "gemini-chaos";

/// The schema of all structured output: the call's number and a text.
const SCHEMA: &str = r#"{"type":"object","required":["id","note"],"additionalProperties":false,"properties":{"id":{"type":"integer"},"note":{"type":"string","minLength":3}}}"#;

/// Whose key pays. The upstream reads the group from the key and treats the calls accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payer {
    /// The server, for callers without a key.
    Server,
    /// The server, for the administrator.
    Admin,
    /// Few calls of this group fail.
    Steady(u8),
    /// Many calls of this group fail, also for load.
    Shaky(u8),
    /// Many calls of this group are refused for quotas, with absurd numbers.
    Doomed(u8),
}

impl Payer {
    pub fn steady(random: &mut Rng) -> Self {
        match random.u8(..10) {
            0 => Self::Server,
            1 => Self::Admin,
            _ => Self::Steady(random.u8(..8)),
        }
    }

    fn is_steady(self) -> bool {
        matches!(self, Self::Server | Self::Admin | Self::Steady(_))
    }

    fn key(self) -> Option<String> {
        let (group, number) = match self {
            Self::Server | Self::Admin => return None,
            Self::Steady(number) => ("steady", number),
            Self::Shaky(number) => ("shaky-", number),
            Self::Doomed(number) => ("doomed", number),
        };
        Some(format!("AIzaSyNEVERSHOWN-{group}-{number:02}-xxxxxxxxxxxx"))
    }
}

/// The endpoint, and so the format of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    Chat,
    ChatStream,
    Structured,
    Gemini,
    GeminiStream,
    OpenAi,
    OpenAiStream,
}

impl Surface {
    pub const ALL: [Self; 7] = [
        Self::Chat,
        Self::ChatStream,
        Self::Structured,
        Self::Gemini,
        Self::GeminiStream,
        Self::OpenAi,
        Self::OpenAiStream,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Chat | Self::ChatStream => "/chat",
            Self::Structured => "/structured-output",
            Self::Gemini => "/v1beta/models/gemini-chaos:generateContent",
            Self::GeminiStream => "/v1beta/models/gemini-chaos:streamGenerateContent?alt=sse",
            Self::OpenAi | Self::OpenAiStream => "/v1/chat/completions",
        }
    }
}

/// What the upstream reads besides the number of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Nothing else.
    None,
    /// It holds the named semaphore.
    Tight,
    /// It is answered well and soon.
    Plain,
    /// It is answered well, after [`crate::upstream::HOLD`].
    Hold,
    /// The same, and it holds the named semaphore.
    TightHold,
    /// Its client will disconnect.
    Leaving,
}

impl Flag {
    fn text(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Tight => "t",
            Self::Plain => "p",
            Self::Hold => "h",
            Self::TightHold => "th",
            Self::Leaving => "u",
        }
    }

    fn is_tight(self) -> bool {
        matches!(self, Self::Tight | Self::TightHold)
    }
}

/// One request of a client.
#[derive(Debug, Clone)]
pub struct Ask {
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
    /// The numbers of its calls, in order.
    pub ids: Range<u64>,
    surface: Surface,
    is_batch: bool,
}

/// A request that generates nothing, with a key.
pub fn free_body() -> String {
    r#"{"model":"models/gemini-chaos","contents":[{"parts":[{"text":"x"}]}]}"#.to_owned()
}

impl Ask {
    /// One call.
    pub fn one(random: &mut Rng, id: u64, surface: Surface, payer: Payer, flag: Flag) -> Self {
        let prompt = prompt(random, id, flag);
        let mut headers = Vec::new();
        let key = payer.key();
        if payer == Payer::Admin {
            headers.push(("admin-api-key", ADMIN_KEY.to_owned()));
        }
        let body = match surface {
            Surface::Chat | Surface::ChatStream | Surface::Structured => {
                let mut body = item(surface, &prompt, flag, key.as_deref());
                if surface == Surface::ChatStream {
                    body.insert_str(1, r#""stream":true,"#);
                }
                body
            }
            Surface::Gemini | Surface::GeminiStream => {
                headers.extend(key.map(|key| ("x-goog-api-key", key)));
                format!(r#"{{"contents":[{{"role":"user","parts":[{{"text":"{prompt}"}}]}}]}}"#)
            }
            Surface::OpenAi | Surface::OpenAiStream => {
                headers.extend(key.map(|key| ("authorization", format!("Bearer {key}"))));
                let stream = surface == Surface::OpenAiStream;
                format!(
                    r#"{{"model":"{CHAT_MODEL}","stream":{stream},"messages":[{{"role":"user","content":"{prompt}"}}]}}"#
                )
            }
        };
        if flag.is_tight() && !body.contains("external_semaphore_id") {
            headers.push(("x-external-semaphore-id", SEMAPHORE.to_owned()));
        }
        let path = surface.path().to_owned();
        Self { path, headers, body, ids: id..id + 1, surface, is_batch: false }
    }

    /// A batch. If a steady payer pays for it, some items bring their own keys.
    pub fn batch(
        random: &mut Rng,
        ids: Range<u64>,
        surface: Surface,
        payer: Payer,
        flag: Flag,
    ) -> Self {
        let mut body = String::from(r#"{"requests":["#);
        let mixed = payer.is_steady() && random.u8(..8) == 0;
        for id in ids.clone() {
            let own = (mixed && random.u8(..4) == 0).then(|| Payer::Steady(random.u8(..8)));
            let key = own.and_then(Payer::key);
            let prompt = prompt(random, id, flag);
            body += &item(surface, &prompt, flag, key.as_deref());
            body.push(',');
        }
        body.pop();
        body.push(']');
        let mut headers = Vec::new();
        match payer.key() {
            Some(key) => {
                _ = write!(body, r#","credentials":{{"gemini_api_key":"{key}"}}"#);
            }
            None if payer == Payer::Admin => headers.push(("admin-api-key", ADMIN_KEY.to_owned())),
            None => {}
        }
        body.push('}');
        let path = format!("/batch{}", surface.path());
        Self { path, headers, body, ids, surface, is_batch: true }
    }

    pub fn calls(&self) -> u64 {
        self.ids.end - self.ids.start
    }

    pub fn is_batch(&self) -> bool {
        self.is_batch
    }

    /// Whether the answer is relayed as it arrives, and breaks off if Gemini's does.
    pub fn is_relayed(&self) -> bool {
        use Surface::{Gemini, GeminiStream, OpenAi, OpenAiStream};
        !self.is_batch && matches!(self.surface, Gemini | GeminiStream | OpenAi | OpenAiStream)
    }

    /// Checks a complete answer with status 200 and records the outcome.
    pub fn check(&self, record: &Record, body: &[u8]) {
        self.check_numbers(record, body);
        let read = if self.is_batch {
            self.check_batch(record, body)
        } else {
            match self.surface {
                Surface::Chat | Surface::Structured => {
                    serde_json::from_slice(body).ok().map(|item| self.check_item(record, 0, &item))
                }
                Surface::ChatStream => self.check_stream(record, body),
                _ => {
                    self.check_relayed(record, body);
                    Some(())
                }
            }
        };
        if read.is_none() {
            let start = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
            record.violated(Claim::OwnAnswer, || format!("{}: unreadable: {start}", self.path));
        }
    }

    /// Whichever call an answer belongs to, it is one of this request's.
    fn check_numbers(&self, record: &Record, body: &[u8]) {
        for at in memchr::memmem::find_iter(body, b"a#") {
            let Some(id) = number(&body[at + 2..]) else { continue };
            if !self.ids.contains(&id) {
                record.violated(Claim::OwnAnswer, || {
                    format!("{} asked {:?}: {}", self.path, self.ids, around(body, at))
                });
            }
        }
    }

    fn check_batch(&self, record: &Record, body: &[u8]) -> Option<()> {
        let batch: BatchAnswer = serde_json::from_slice(body).ok()?;
        let expected = self.calls() as usize;
        if batch.results.len() != expected || batch.total_requests != expected {
            let results = batch.results.len();
            record.violated(Claim::OwnAnswer, || format!("{results} results of {expected}"));
        }
        for (place, item) in batch.results.iter().enumerate() {
            if item.index != Some(place) {
                record.violated(Claim::OwnAnswer, || format!("{:?} at {place}", item.index));
            }
            self.check_item(record, place as u64, item);
        }
        Some(())
    }

    fn check_item(&self, record: &Record, place: u64, item: &Item<'_>) {
        if !item.success {
            record.outcome(item.error_code.as_deref().unwrap_or("?"), 1);
            return;
        }
        record.outcome("success", 1);
        let id = self.ids.start + place;
        let text = match item.data {
            Some(data) => {
                let data: Option<Structured> = serde_json::from_str(data.get()).ok();
                data.filter(|data| data.id == id).map(|data| data.note)
            }
            None => item.response.clone(),
        };
        self.check_text(record, id, &text.unwrap_or_default());
    }

    fn check_text(&self, record: &Record, id: u64, text: &str) {
        let start = || text.chars().take(200).collect::<String>();
        if !text.starts_with(&format!("a#{id}#")) {
            record.violated(Claim::OwnAnswer, || format!("{} {id}: {:?}", self.path, start()));
        } else if !text.ends_with("#end") {
            record.violated(Claim::WholeAnswer, || format!("{} {id}: {:?}", self.path, start()));
        }
    }

    /// The service's own events: deltas, then the whole text, or an error.
    fn check_stream(&self, record: &Record, body: &[u8]) -> Option<()> {
        let text = std::str::from_utf8(body).ok()?;
        let mut pieces = String::new();
        let mut last = None;
        for event in text.split("\n\n").filter_map(|event| event.trim().strip_prefix("data:")) {
            match serde_json::from_str::<Piece>(event) {
                Ok(Piece { delta: Some(delta) }) => pieces += &delta,
                _ => last = Some(serde_json::from_str::<Item<'_>>(event).ok()?),
            }
        }
        let Some(last) = last else {
            record.violated(Claim::WholeAnswer, || {
                format!("a stream of {} ends without saying how", self.ids.start)
            });
            return Some(());
        };
        record.search("the pieces of a stream, joined", pieces.as_bytes());
        if last.success && last.response.as_deref() != Some(&pieces) {
            record.violated(Claim::WholeAnswer, || format!("{pieces:?} is not the answer"));
        }
        self.check_item(record, 0, &last);
        Some(())
    }

    /// Gemini's answer, relayed unchanged: the end must be there, unless Gemini left it out.
    fn check_relayed(&self, record: &Record, body: &[u8]) {
        let has = |what: &str| find(body, what.as_bytes()).is_some();
        let outcome = match (has("a#"), has("#end")) {
            (true, true) => "success",
            (true, false) if has("#cut") || has("\"error\"") => "upstream's own fault, passed on",
            (true, false) => {
                record.violated(Claim::WholeAnswer, || {
                    let end = String::from_utf8_lossy(&body[body.len().saturating_sub(200)..]);
                    format!("{} {}: …{end}", self.path, self.ids.start)
                });
                "half"
            }
            (false, _) => "upstream's own fault, passed on",
        };
        record.outcome(outcome, 1);
    }
}

/// A prompt, escaped for JSON.
fn prompt(random: &mut Rng, id: u64, flag: Flag) -> String {
    let length = if random.u16(..1000) == 0 { 20_000 } else { random.usize(..120) };
    let mut prompt = format!("q#{id}#{}# ", flag.text());
    prompt.extend(std::iter::repeat_n('x', length));
    prompt
}

fn item(surface: Surface, prompt: &str, flag: Flag, key: Option<&str>) -> String {
    let mut item = if surface == Surface::Structured {
        format!(r#"{{"user_content":"{prompt}","system_prompt":"Answer.","json_schema":{SCHEMA}"#)
    } else {
        format!(r#"{{"prompt":"{prompt}""#)
    };
    if flag.is_tight() {
        _ = write!(item, r#","external_semaphore_id":"{SEMAPHORE}""#);
    }
    if let Some(key) = key {
        _ = write!(item, r#","credentials":{{"gemini_api_key":"{key}"}}"#);
    }
    item.push('}');
    item
}

/// The number at the start of a text, up to `#`.
pub fn number(text: &[u8]) -> Option<u64> {
    let end = text.iter().take(20).position(|byte| *byte == b'#')?;
    std::str::from_utf8(&text[..end]).ok()?.parse().ok()
}

#[derive(Deserialize)]
struct BatchAnswer<'a> {
    #[serde(borrow)]
    results: Vec<Item<'a>>,
    total_requests: usize,
}

#[derive(Deserialize)]
struct Item<'a> {
    success: bool,
    response: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    error_code: Option<String>,
    index: Option<usize>,
}

#[derive(Deserialize)]
struct Structured {
    id: u64,
    note: String,
}

#[derive(Deserialize)]
struct Piece {
    delta: Option<String>,
}
