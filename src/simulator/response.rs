//! Response bodies.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;

use super::tier::ServiceTier;
use super::tokens::{Count, tokens};

/// The thought tokens of a model that thinks.
const THOUGHTS_TOKENS: u64 = 128;

const THOUGHT: &str = "The simulator is thinking about the prompt.";

/// A sentence to pad answers with.
const PADDING: &str = " Nothing more is known about this, and the sentence is repeated.";

/// The response to one call, before it is written as a body or as the chunks of a stream.
pub(super) struct SimulatedResponse<'a> {
    /// The model that answers, which is not the requested one where that has retired.
    pub model: &'a str,
    pub response_id: String,
    pub prompt_tokens: u64,
    /// The tier that serves the call.
    pub tier: ServiceTier,
    pub outcome: PromptOutcome<'a>,
}

/// The outcome of a prompt.
pub(super) enum PromptOutcome<'a> {
    /// The prompt was blocked for this reason; there is no candidate.
    Blocked(&'a str),
    Candidate(Candidate<'a>),
}

/// The only candidate of a response.
pub(super) struct Candidate<'a> {
    pub text: Cow<'a, str>,
    /// `None` where the response does not say why it ends.
    pub finish_reason: Option<&'a str>,
    /// What the client sends back to have the answer continued.
    pub continuation_token: Option<String>,
    pub content: Content,
}

/// The form of the content.
#[derive(Clone, Copy)]
pub(super) enum Content {
    /// `"content": {}`, as in a withheld answer.
    Missing,
    /// A content with a role but no parts.
    WithoutParts,
    /// The text in this many parts, after a thought if requested.
    Parts { count: usize, thought: bool },
}

impl SimulatedResponse<'_> {
    /// The response in one body.
    pub fn whole(&self) -> Bytes {
        match &self.outcome {
            PromptOutcome::Blocked(reason) => self.blocked(reason),
            PromptOutcome::Candidate(candidate) => {
                let Content::Parts { count, thought } = candidate.content else {
                    return self.without_text(candidate);
                };
                let texts = pieces(&candidate.text, count);
                let finish = candidate.finish_reason;
                let token = candidate.continuation_token.as_deref();
                self.encode(&texts, thought, finish, token, tokens(&candidate.text))
            }
        }
    }

    /// The response in at most so many chunks. Usage is cumulative; the last chunk has the finish
    /// reason.
    pub fn chunks(&self, count: usize) -> Vec<Bytes> {
        let candidate = match &self.outcome {
            PromptOutcome::Blocked(reason) => return vec![self.blocked(reason)],
            PromptOutcome::Candidate(candidate) => candidate,
        };
        let Content::Parts { thought, .. } = candidate.content else {
            return vec![self.without_text(candidate)];
        };
        let texts = pieces(&candidate.text, count);
        let mut sent = Count::default();
        let chunk = |(index, text): (usize, &&str)| {
            sent.add(text);
            let is_last = index + 1 == texts.len();
            let finish = candidate.finish_reason.filter(|_| is_last);
            let token = candidate.continuation_token.as_deref().filter(|_| is_last);
            self.encode(&[text], thought && index == 0, finish, token, sent.tokens())
        };
        texts.iter().enumerate().map(chunk).collect()
    }

    fn encode(
        &self,
        texts: &[&str],
        thought: bool,
        finish_reason: Option<&str>,
        continuation_token: Option<&str>,
        tokens: u64,
    ) -> Bytes {
        let thought = thought.then_some(Part { text: THOUGHT, thought: Some(true) });
        let texts = texts.iter().map(|text| Part { text, thought: None });
        let parts = thought.into_iter().chain(texts).collect();
        let content = WireContent { parts: Some(parts), role: Some("model") };
        self.candidate(content, finish_reason, continuation_token, Some(tokens))
    }

    fn without_text(&self, candidate: &Candidate<'_>) -> Bytes {
        let role = matches!(candidate.content, Content::WithoutParts).then_some("model");
        let content = WireContent { parts: None, role };
        let token = candidate.continuation_token.as_deref();
        self.candidate(content, candidate.finish_reason, token, None)
    }

    fn candidate(
        &self,
        content: WireContent<'_>,
        finish_reason: Option<&str>,
        continuation_token: Option<&str>,
        candidates_token_count: Option<u64>,
    ) -> Bytes {
        let candidate = WireCandidate { content, finish_reason, continuation_token, index: 0 };
        self.body(Some([candidate]), None, self.usage(candidates_token_count, self.thoughts()))
    }

    fn blocked(&self, block_reason: &str) -> Bytes {
        self.body(None, Some(PromptFeedback { block_reason }), self.usage(None, None))
    }

    fn body(
        &self,
        candidates: Option<[WireCandidate<'_>; 1]>,
        prompt_feedback: Option<PromptFeedback<'_>>,
        usage_metadata: UsageMetadata,
    ) -> Bytes {
        let response = GenerateContentResponse {
            candidates,
            prompt_feedback,
            usage_metadata,
            model_version: self.model,
            response_id: &self.response_id,
        };
        serde_json::to_vec(&response).expect("strings and numbers are always JSON").into()
    }

    /// The thought tokens. The "pro" models and Gemini 3.8 Flash think before they answer.
    pub fn thoughts(&self) -> Option<u64> {
        let thinks = self.model.contains("pro") || self.model == "gemini-3.8-flash";
        thinks.then_some(THOUGHTS_TOKENS)
    }

    /// The tokens of the text.
    pub fn output_tokens(&self) -> u64 {
        match &self.outcome {
            PromptOutcome::Candidate(Candidate {
                content: Content::Parts { .. }, text, ..
            }) => tokens(text),
            _ => 0,
        }
    }

    /// The tokens billed at the output price: text and thoughts.
    pub fn billed_output_tokens(&self) -> u64 {
        match &self.outcome {
            PromptOutcome::Blocked(_) => 0,
            PromptOutcome::Candidate(_) => {
                self.output_tokens() + self.thoughts().unwrap_or_default()
            }
        }
    }

    fn usage(&self, candidates: Option<u64>, thoughts: Option<u64>) -> UsageMetadata {
        UsageMetadata {
            prompt_token_count: self.prompt_tokens,
            candidates_token_count: candidates,
            total_token_count: self.prompt_tokens
                + candidates.unwrap_or_default()
                + thoughts.unwrap_or_default(),
            thoughts_token_count: thoughts,
            service_tier: self.tier.name(),
        }
    }
}

/// Splits a text into so many pieces of similar size, or fewer when it is short.
pub(super) fn pieces(text: &str, count: usize) -> Vec<&str> {
    let size = text.len().div_ceil(count.max(1)).max(1);
    let mut pieces = Vec::with_capacity(text.len().div_ceil(size));
    let mut rest = text;
    while rest.len() > size {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(size));
        pieces.push(piece);
        rest = after;
    }
    if !rest.is_empty() || pieces.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// The beginning of a text, at most so many bytes long.
pub(super) fn beginning(mut text: String, bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes));
    text
}

/// Pads or cuts a text to a size in bytes.
pub(super) fn sized(text: String, bytes: usize) -> String {
    let mut text = beginning(text, bytes);
    text.reserve(bytes - text.len());
    while text.len() + PADDING.len() <= bytes {
        text.push_str(PADDING);
    }
    let missing = bytes - text.len();
    text.push_str(&PADDING[..missing]);
    text
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GenerateContentResponse<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    candidates: Option<[WireCandidate<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_feedback: Option<PromptFeedback<'a>>,
    usage_metadata: UsageMetadata,
    model_version: &'a str,
    response_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireCandidate<'a> {
    content: WireContent<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuation_token: Option<&'a str>,
    index: u32,
}

#[derive(Serialize)]
struct WireContent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<Part<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
}

#[derive(Serialize)]
struct Part<'a> {
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    thought: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PromptFeedback<'a> {
    block_reason: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UsageMetadata {
    prompt_token_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    candidates_token_count: Option<u64>,
    total_token_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    thoughts_token_count: Option<u64>,
    service_tier: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up_and_end_between_characters() {
        assert_eq!(pieces("", 4), [""]);
        assert_eq!(pieces("ab", 4), ["a", "b"]);
        assert_eq!(pieces("ééééé", 2).concat(), "ééééé");
        assert_eq!(pieces("abcdefgh", 4), ["ab", "cd", "ef", "gh"]);
    }

    #[test]
    fn a_sized_text_has_the_size() {
        for bytes in [0, 1, 5, 64, 65, 1000] {
            assert_eq!(sized("é an answer".to_owned(), bytes).len(), bytes);
        }
        assert!(sized("an answer".to_owned(), 100).starts_with("an answer Nothing"));
    }
}
