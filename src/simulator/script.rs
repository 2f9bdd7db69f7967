//! Markers in a prompt that change how its call is answered.
//!
//! A marker is `[[simulate:SETTING,SETTING,…]]` anywhere in the last text that is not the model's. A
//! prompt can hold several. Markers are removed and the rest is trimmed before the prompt is
//! answered.
//!
//! | setting | effect |
//! |---|---|
//! | `status=CODE` | refused with this status and Gemini's usual message for it |
//! | `quota=minute`, `quota=tokens`, `quota=day` | refused with a 429 that names this quota and a wait of 12.345 s |
//! | `quota=spend`, `quota=batch` | refused with the 429 of the spend limit, or of the batch limits |
//! | `html=CODE` | refused with this status and an HTML page |
//! | `close` | the connection is closed before the first byte of the response |
//! | `blocked=REASON` | `promptFeedback.blockReason` and no candidates |
//! | `truncate_body` | the connection is closed half way through the response |
//! | `finish=REASON` | the candidate's `finishReason`. `MAX_TOKENS` leaves half the text; `CONTINUATION` half of what is left, so that the answer never ends; any other reason but `STOP` no text at all, unless there is a `text=` |
//! | `hops=N` | the text is sent in N calls: all but the last end with `CONTINUATION` and a token |
//! | `unfinished` | the candidate has no `finishReason` |
//! | `fail_after=N` | after N chunks of a stream follows the error of `status=` or `quota=`, or 503, as Gemini writes it into a stream: over several lines, outside of any event; on OpenAI's surface and in an array, as one more item; for interactions, as an `error` event |
//! | `empty` | the candidate's content has no parts |
//! | `invalid_json` | the text is the beginning of a JSON object |
//! | `thought` | a thought part comes before the text |
//! | `parts=N` | the text is sent in N parts |
//! | `bytes=N` | the text is padded or cut to N bytes, at most 256 MiB, unless it is JSON |
//! | `chunks=N` | a stream is sent in N chunks, or in one for each character when there are fewer |
//! | `stall_after=N` | nothing follows after N chunks; a response that is not streamed is one chunk |
//! | `latency_ms=N` | the call takes N milliseconds, whatever its outcome |
//! | `fail_times=N` | the rest of the script applies only to the first N calls with the same key, model and prompt; alone, it means `status=503` |
//! | `tier=TIER` | the service tier that serves the call, whatever was requested |
//! | `flex_full` | refused with 503 if flex was requested |
//! | `no_usage` | the response has no usage |
//! | `ends_as=STATUS` | the final status of an interaction, or the final state of a batch |
//! | `queued_ms=N` | a background interaction is `queued` for so long |
//! | `poll_status=CODE` | reading the interaction later is refused with this status |
//! | `go_away` | a live session sends `goAway` and closes after this turn |
//! | `text=TEXT` | the text is exactly this; must be the last setting, as it extends to the last `]]` of the prompt |
//!
//! Of several settings that replace the candidate (`status` to `blocked`) the last one counts. An
//! unknown setting is refused with 400.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

use super::quota::Quota;
use super::tier::ServiceTier;

const OPENING: &str = "[[simulate:";
const CLOSING: &str = "]]";

/// The largest text that `bytes` can ask for, so that a typing error cannot exhaust the memory.
const MAX_BYTES: usize = 256 << 20;

/// What the markers of a prompt ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Script<'a> {
    pub latency: Option<Duration>,
    pub fail_times: Option<u32>,
    pub ending: Option<Ending<'a>>,
    pub finish: Option<&'a str>,
    pub text: Option<&'a str>,
    pub parts: Option<usize>,
    pub bytes: Option<usize>,
    pub chunks: Option<usize>,
    pub stall_after: Option<u32>,
    pub empty: bool,
    pub invalid_json: bool,
    pub unfinished: bool,
    pub fail_after: Option<u32>,
    pub thought: bool,
    pub truncate_body: bool,
    pub hops: Option<usize>,
    pub tier: Option<ServiceTier>,
    pub flex_full: bool,
    pub no_usage: bool,
    pub ends_as: Option<&'a str>,
    pub queued: Option<Duration>,
    pub poll_status: Option<StatusCode>,
    pub go_away: bool,
}

/// What replaces the candidate.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ending<'a> {
    Status(StatusCode),
    Quota(Quota),
    SpendLimit,
    BatchLimit,
    Html(StatusCode),
    Close,
    Blocked(&'a str),
}

impl<'a> Script<'a> {
    /// Separates a prompt from its markers.
    ///
    /// # Errors
    ///
    /// Names the setting that is not in the table.
    pub fn parse(prompt: &'a str) -> Result<(Cow<'a, str>, Self), String> {
        let mut script = Self::default();
        let Some((mut plain, mut rest)) =
            prompt.split_once(OPENING).map(|(before, rest)| (before.to_owned(), rest))
        else {
            return Ok((Cow::Borrowed(prompt), script));
        };
        loop {
            rest = script.read_marker(rest)?;
            match rest.split_once(OPENING) {
                Some((between, next)) => {
                    plain += between;
                    rest = next;
                }
                None => break,
            }
        }
        plain += rest;
        if let Some(times) = script.fail_times {
            let alone =
                Self { latency: script.latency, fail_times: Some(times), ..Self::default() };
            if script == alone {
                script.ending = Some(Ending::Status(StatusCode::SERVICE_UNAVAILABLE));
            }
        }
        Ok((Cow::Owned(plain.trim().to_owned()), script))
    }

    /// Reads the settings of one marker and returns what follows it.
    fn read_marker(&mut self, marker: &'a str) -> Result<&'a str, String> {
        let mut rest = marker;
        loop {
            if let Some(text) = rest.strip_prefix("text=") {
                let (text, after) = text.rsplit_once(CLOSING).ok_or("the marker has no end")?;
                self.text = Some(text);
                return Ok(after);
            }
            let closing = rest.find(CLOSING).ok_or("the marker has no end")?;
            match rest[..closing].split_once(',') {
                Some((setting, _)) => {
                    self.set(setting)?;
                    rest = &rest[setting.len() + 1..];
                }
                None => {
                    self.set(&rest[..closing])?;
                    return Ok(&rest[closing + CLOSING.len()..]);
                }
            }
        }
    }

    fn set(&mut self, setting: &'a str) -> Result<(), String> {
        let invalid = || format!("{setting:?} is not a setting");
        match setting.split_once('=') {
            None => self.set_flag(setting).ok_or_else(invalid),
            Some((name, value)) => self.set_value(name, value).ok_or_else(invalid),
        }
    }

    fn set_flag(&mut self, name: &str) -> Option<()> {
        match name {
            "close" => self.ending = Some(Ending::Close),
            "truncate_body" => self.truncate_body = true,
            "empty" => self.empty = true,
            "unfinished" => self.unfinished = true,
            "invalid_json" => self.invalid_json = true,
            "thought" => self.thought = true,
            "flex_full" => self.flex_full = true,
            "no_usage" => self.no_usage = true,
            "go_away" => self.go_away = true,
            _ => return None,
        }
        Some(())
    }

    fn set_value(&mut self, name: &str, value: &'a str) -> Option<()> {
        match name {
            "status" => self.ending = Some(Ending::Status(value.parse().ok()?)),
            "html" => self.ending = Some(Ending::Html(value.parse().ok()?)),
            "quota" => self.ending = Some(quota(value)?),
            "hops" => self.hops = Some(value.parse().ok().filter(|hops| *hops > 0)?),
            "tier" => self.tier = Some(ServiceTier::parse(value)?),
            "ends_as" => self.ends_as = Some(value),
            "queued_ms" => self.queued = Some(Duration::from_millis(value.parse().ok()?)),
            "poll_status" => self.poll_status = Some(value.parse().ok()?),
            "blocked" => self.ending = Some(Ending::Blocked(value)),
            "finish" => self.finish = Some(value),
            "parts" => self.parts = Some(value.parse().ok()?),
            "bytes" => self.bytes = Some(value.parse().ok().filter(|bytes| *bytes <= MAX_BYTES)?),
            "chunks" => self.chunks = Some(value.parse().ok()?),
            "stall_after" => self.stall_after = Some(value.parse().ok()?),
            "fail_after" => self.fail_after = Some(value.parse().ok()?),
            "latency_ms" => self.latency = Some(Duration::from_millis(value.parse().ok()?)),
            "fail_times" => self.fail_times = Some(value.parse().ok()?),
            _ => return None,
        }
        Some(())
    }
}

fn quota(name: &str) -> Option<Ending<'static>> {
    Some(match name {
        "minute" => Ending::Quota(Quota::RequestsPerMinute),
        "tokens" => Ending::Quota(Quota::InputTokensPerMinute),
        "day" => Ending::Quota(Quota::RequestsPerDay),
        "spend" => Ending::SpendLimit,
        "batch" => Ending::BatchLimit,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_without_markers_is_not_copied() {
        let (prompt, script) = Script::parse("just [[text]]").expect("no markers");
        assert!(matches!(prompt, Cow::Borrowed("just [[text]]")));
        assert_eq!(script, Script::default());
    }

    #[test]
    fn markers_are_cut_out_and_add_up() {
        let prompt = "a[[simulate:latency_ms=20,thought]]b[[simulate:finish=SAFETY]]c";
        let (prompt, script) = Script::parse(prompt).expect("valid markers");
        assert_eq!(prompt, "abc");
        let expected = Script {
            latency: Some(Duration::from_millis(20)),
            thought: true,
            finish: Some("SAFETY"),
            ..Script::default()
        };
        assert_eq!(script, expected);
    }

    #[test]
    fn a_text_can_hold_commas_and_brackets() {
        let (prompt, script) =
            Script::parse("q [[simulate:parts=2,text=[[1,2],[3]]]] r").expect("a valid marker");
        assert_eq!(prompt, "q  r");
        assert_eq!(script.text, Some("[[1,2],[3]]"));
        assert_eq!(script.parts, Some(2));
    }

    #[test]
    fn fail_times_alone_means_unavailable() {
        let (_, script) = Script::parse("[[simulate:fail_times=2]]").expect("a valid marker");
        assert_eq!(script.ending, Some(Ending::Status(StatusCode::SERVICE_UNAVAILABLE)));
        let (_, script) =
            Script::parse("[[simulate:fail_times=2,finish=OTHER]]").expect("a valid marker");
        assert_eq!(script.ending, None);
    }

    #[test]
    fn a_mistyped_setting_is_named() {
        let error = Script::parse("[[simulate:stauts=503]]").expect_err("no such setting");
        assert_eq!(error, "\"stauts=503\" is not a setting");
        assert!(Script::parse("[[simulate:status=5xx]]").is_err());
        assert!(Script::parse("[[simulate:bytes=99999999999]]").is_err());
        assert!(Script::parse("[[simulate:close").is_err());
    }
}
