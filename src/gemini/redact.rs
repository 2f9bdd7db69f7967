//! Removes secrets from everything that comes from the upstream and goes to a caller or to the log.
//!
//! Google quotes the key in some refusals: `Consumer 'api_key:AIza…' has been suspended.` Two rules
//! follow:
//!
//! * The keys in use never pass, anywhere: [`Secrets`].
//! * In error messages, error bodies, headers and the log, nothing passes that has the form of a known
//!   secret: [`redact`].
//!
//! Both overwrite a secret with as many asterisks, so that an announced length stays correct.

mod body;
mod escaped;
mod masker;
mod needle;
mod strings;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    fmt,
    ops::Range,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use memchr::{memchr2_iter, memchr3_iter};
use regex::bytes::Regex;

use super::ApiKey;
use escaped::has_escapes;
use needle::{Needle, find};
use strings::{BodyFormat, StringScanner};

pub use body::MaskedBody;
pub use masker::Masker;
pub use needle::encodings;

/// The shortest key that is overwritten, in characters. Gemini's keys have 39 or more. A shorter one is
/// not a secret, and is often an ordinary word, such as `key`.
const MIN_SECRET: usize = 8;

const MASK: u8 = b'*';

/// The forms of Google's secrets: API keys, authorization keys, OAuth access tokens (JSON web tokens
/// too), ephemeral tokens, and webhook signing secrets.
static FORMS: LazyLock<Regex> = LazyLock::new(|| {
    let forms = r"(?-u)AIza[0-9A-Za-z_-]{35,}|AQ\.[0-9A-Za-z_-]{20,}|ya29\.[0-9A-Za-z_.-]{10,}|auth_tokens(?:/|\\/|%2[Ff])[0-9A-Za-z_-]{8,}|whsec_[0-9A-Za-z+/=_-]{16,}|eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}";
    Regex::new(forms).expect("the expression is valid")
});

/// The length of the shortest match in bytes: `ya29.` and 10 more.
const MIN_FORM: usize = 15;

/// Finds everything that has the form of a known secret.
fn forms_in(bytes: &[u8]) -> Vec<Range<usize>> {
    // A few rare bytes rule out most texts without running the expression.
    if !may_hold_form(bytes) {
        return Vec::new();
    }
    FORMS.find_iter(bytes).map(|secret| secret.range()).collect()
}

/// Whether a text contains the start of one of the forms.
fn may_hold_form(bytes: &[u8]) -> bool {
    let begins = |at: usize| {
        let (before, byte) = (&bytes[..at], bytes[at]);
        let beginnings: &[&[u8]] = match byte {
            b'I' | b'Q' => &[b"A"],
            b'J' => &[b"ey"],
            b'9' => &[b"ya2"],
            _ => &[b"auth", b"whsec"],
        };
        beginnings.iter().any(|beginning| before.ends_with(beginning))
    };
    bytes.len() >= MIN_FORM
        && (memchr3_iter(b'I', b'J', b'Q', bytes).any(begins)
            || memchr2_iter(b'9', b'_', bytes).any(begins))
}

/// Overwrites everything that has the form of a known secret.
pub fn redact(bytes: &[u8]) -> Cow<'_, [u8]> {
    let found = forms_in(bytes);
    if found.is_empty() { bytes.into() } else { masked(bytes, found).into() }
}

/// The same for a text.
pub(super) fn redact_text(text: &str) -> Cow<'_, str> {
    match redact(text.as_bytes()) {
        Cow::Borrowed(_) => text.into(),
        Cow::Owned(redacted) => to_text(redacted).into(),
    }
}

/// All encodings of a key.
fn needles(key: &[u8]) -> impl Iterator<Item = Arc<Needle>> {
    encodings(key).into_iter().map(Needle::new).map(Arc::new)
}

fn masked(bytes: &[u8], found: impl IntoIterator<Item = Range<usize>>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    found.into_iter().for_each(|secret| bytes[secret].fill(MASK));
    bytes
}

fn to_text(masked: Vec<u8>) -> String {
    String::from_utf8(masked).expect("only ASCII characters were overwritten")
}

/// The keys that must not appear in anything that is passed on. They are found as they are, in UTF-16, in
/// base64, and with escapes of JSON or URLs. Cheap to clone.
#[derive(Clone, Default)]
pub struct Secrets {
    keys: Arc<[Bytes]>,
    /// All encodings of all keys.
    needles: Arc<[Arc<Needle>]>,
}

impl Secrets {
    /// Collects keys. Keys of fewer than 8 characters are ignored.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a ApiKey>) -> Self {
        Self::of(keys.into_iter().map(|key| key.secret().clone()))
    }

    fn of(keys: impl IntoIterator<Item = Bytes>) -> Self {
        let mut keys: Vec<_> = keys.into_iter().filter(|key| key.len() >= MIN_SECRET).collect();
        keys.sort();
        keys.dedup();
        let needles = keys.iter().flat_map(|key| needles(key)).collect();
        Self { keys: keys.into(), needles }
    }

    /// The same keys and one more.
    pub(super) fn with(&self, key: &ApiKey) -> Self {
        let key = key.secret();
        if key.len() < MIN_SECRET || self.keys.contains(key) {
            return self.clone();
        }
        let keys = self.keys.iter().chain([key]).cloned().collect();
        let needles = self.needles.iter().cloned().chain(needles(key)).collect();
        Self { keys, needles }
    }

    /// Whether a complete text certainly contains neither a key nor the form of a secret. Cheaper
    /// than overwriting.
    pub fn can_pass(&self, bytes: &[u8]) -> bool {
        bytes.len() < MIN_SECRET
            || !(has_escapes(bytes) || may_hold_form(bytes))
                && find(&self.needles, bytes, true).complete.is_empty()
    }

    /// Overwrites the keys in a complete text.
    pub fn mask(&self, bytes: Bytes) -> Bytes {
        masker::mask(&self.needles, bytes)
    }

    /// Overwrites the keys in a string.
    pub(super) fn mask_text(&self, text: String) -> String {
        to_text(self.mask(text.into()).into())
    }

    /// Overwrites the keys and everything that has the form of a secret in the body of an error, also
    /// if escapes hide it or the surrounding JSON splits a key.
    pub(super) fn redact_body(&self, body: Bytes) -> Bytes {
        let is_json = matches!(body.trim_ascii_start().first(), Some(b'{' | b'['));
        let format = if is_json { BodyFormat::Json } else { BodyFormat::Events };
        let mut masker = Masker::new(self.clone(), Some(StringScanner::new(format)));
        let mut body: Vec<u8> = masker.push(self.mask(body)).into();
        body.extend_from_slice(&masker.finish());
        strings::redact(&mut body);
        body.into()
    }

    /// Overwrites the keys in a complete JSON message, and everything that has the form of a secret in
    /// an error in it.
    pub(super) fn redact_message(&self, message: Bytes) -> Bytes {
        if self.can_pass(&message) {
            return message;
        }
        Masker::new(self.clone(), Some(StringScanner::new(BodyFormat::Json))).push_last(message)
    }

    /// Overwrites the keys and everything that has the form of a secret in the headers of an answer.
    /// A header with a key in its name is removed.
    pub(super) fn redact_headers(&self, headers: &mut HeaderMap) {
        let named_by_a_key = |name: &&HeaderName| self.keys.iter().any(|key| is_in_name(key, name));
        let named_by_a_key: Vec<_> = headers.keys().filter(named_by_a_key).cloned().collect();
        named_by_a_key.iter().for_each(|name| drop(headers.remove(name)));
        for value in headers.values_mut() {
            if self.can_pass(value.as_bytes()) {
                continue;
            }
            let redacted = self.redact_body(Bytes::copy_from_slice(value.as_bytes()));
            if redacted != value.as_bytes() {
                *value =
                    HeaderValue::from_bytes(&redacted).expect("asterisks are valid in a header");
            }
        }
    }

    /// Overwrites the keys in a text that arrives in pieces.
    pub fn masker(&self) -> Masker {
        Masker::new(self.clone(), None)
    }

    /// The same for the body of an answer with these headers. In JSON and in events, keys are also
    /// found if they are split over several strings, and errors lose everything that has the form of
    /// a secret.
    pub fn masker_of(&self, headers: &HeaderMap) -> Masker {
        Masker::new(self.clone(), format(headers).map(StringScanner::new))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

/// Whether the name of a header, which is in lower case, contains a key.
fn is_in_name(key: &[u8], name: &HeaderName) -> bool {
    let mut parts = name.as_str().as_bytes().windows(key.len());
    parts.any(|part| part.eq_ignore_ascii_case(key))
}

fn format(headers: &HeaderMap) -> Option<BodyFormat> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    match content_type.split(';').next().unwrap_or_default().trim() {
        "text/event-stream" => Some(BodyFormat::Events),
        "application/json" => Some(BodyFormat::Json),
        _ => None,
    }
}
