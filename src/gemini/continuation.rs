//! Answers that are longer than one call gives.

use std::fmt;

use bytes::Bytes;

use super::json;

/// The longest token that is sent back, in bytes. An answer with a longer one is not continued.
const MAX_TOKEN: usize = 1 << 20;

/// What Gemini sends with an unfinished answer. The same request with it is answered with the next
/// part. It is valid for the key and the model of the first call.
///
/// Source: `continuationToken` in Google's Python SDK 3.6.1.
#[derive(Clone, PartialEq, Eq)]
pub struct ContinuationToken(Box<str>);

impl ContinuationToken {
    /// A token as Gemini sent it; `None` if it is empty or too long.
    pub(super) fn new(token: &str) -> Option<Self> {
        (1..=MAX_TOKEN).contains(&token.len()).then(|| Self(token.into()))
    }

    /// The body of the call for the next part. `body` is that of the call for the first one.
    pub fn added_to(&self, body: &[u8]) -> Bytes {
        json::with_text_field(body, "continuationToken", &self.0)
    }
}

impl fmt::Debug for ContinuationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContinuationToken({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_added_to_the_body() {
        let token = ContinuationToken::new("a\"b=").unwrap();
        let body = token.added_to(br#"{"contents":[]}"#);
        assert_eq!(body, r#"{"continuationToken":"a\"b=","contents":[]}"#.as_bytes());
    }

    #[test]
    fn empty_and_huge_tokens_are_ignored() {
        assert_eq!(ContinuationToken::new(""), None);
        assert!(ContinuationToken::new(&"a".repeat(MAX_TOKEN)).is_some());
        assert_eq!(ContinuationToken::new(&"a".repeat(MAX_TOKEN + 1)), None);
    }
}
