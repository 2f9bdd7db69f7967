//! Keeps secrets out of everything that comes from upstream and goes to a caller or to the log.
//!
//! Google quotes the key in some refusals: `Consumer 'api_key:AIza…' has been suspended.` Two rules
//! follow:
//!
//! * The keys in use never pass, wherever they stand and whatever is around them: [`Secrets`].
//! * In error texts, error bodies, headers and the log nothing passes either that has the form of a
//!   known secret: [`redact`].
//!
//! Both overwrite a secret with as many asterisks, so that a length announced before stays true.

mod body;
mod escaped;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    fmt, mem,
    ops::Range,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memchr;
use regex::bytes::Regex;
use serde_json::Value;

use super::ApiKey;

pub use body::Masked;
use escaped::Escaped;

/// The fewest characters that are overwritten as a key. Gemini's keys have 39 and more. A shorter
/// one is not a secret, and is often an ordinary word, such as `key`.
const MIN_SECRET: usize = 8;

const MASK: u8 = b'*';

/// The forms of secrets that Google gives out: API keys, authorization keys, OAuth access tokens,
/// ephemeral tokens, and the secrets that sign webhooks.
static FORMS: LazyLock<Regex> = LazyLock::new(|| {
    let forms = r"(?-u)AIza[0-9A-Za-z_-]{35,}|AQ\.[0-9A-Za-z_-]{20,}|ya29\.[0-9A-Za-z_.-]{10,}|auth_tokens(?:/|\\/|%2[Ff])[0-9A-Za-z_-]{8,}|whsec_[0-9A-Za-z+/=_-]{16,}";
    Regex::new(forms).expect("the expression is valid")
});

/// Overwrites everything that has the form of a known secret.
pub fn redact(bytes: &[u8]) -> Cow<'_, [u8]> {
    let found: Vec<_> = FORMS.find_iter(bytes).map(|secret| secret.range()).collect();
    if found.is_empty() { bytes.into() } else { masked(bytes, found).into() }
}

/// The same for a text.
pub(super) fn redact_text(text: &str) -> Cow<'_, str> {
    match redact(text.as_bytes()) {
        Cow::Borrowed(_) => text.into(),
        Cow::Owned(redacted) => to_text(redacted).into(),
    }
}

fn masked(bytes: &[u8], found: impl IntoIterator<Item = Range<usize>>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    found.into_iter().for_each(|secret| bytes[secret].fill(MASK));
    bytes
}

fn to_text(masked: Vec<u8>) -> String {
    String::from_utf8(masked).expect("only ASCII characters were overwritten")
}

/// The keys that must not appear in anything that is passed on, also where some of their characters
/// are escaped as in JSON or in a URL. Cheap to clone.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[Needle]>);

impl Secrets {
    /// These keys.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a ApiKey>) -> Self {
        let keys = keys.into_iter().map(|key| key.secret().clone());
        let mut keys: Vec<_> = keys.filter(|key| key.len() >= MIN_SECRET).collect();
        // A key that is a part of another one must not be overwritten first.
        keys.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        keys.dedup();
        Self(keys.into_iter().map(Needle::new).collect())
    }

    /// These and one more.
    pub(super) fn with(&self, key: &ApiKey) -> Self {
        if self.0.iter().any(|needle| needle.bytes == key.secret()) {
            return self.clone();
        }
        let mut all = self.0.to_vec();
        all.extend(Self::new([key]).0.iter().cloned());
        all.sort_by_key(|needle| std::cmp::Reverse(needle.bytes.len()));
        Self(all.into())
    }

    /// Overwrites the keys in something that is there whole.
    pub fn mask(&self, bytes: Bytes) -> Bytes {
        self.0.iter().fold(bytes, |bytes, needle| {
            let ends = needle.ends_in(&bytes, &mut 0);
            let found = ends.into_iter().map(|end| end - needle.bytes.len()..end);
            let bytes = if found.len() == 0 { bytes } else { masked(&bytes, found).into() };
            escaped::mask(needle, bytes)
        })
    }

    /// Overwrites the keys in a text.
    pub(super) fn mask_text(&self, text: String) -> String {
        to_text(self.mask(text.into()).into())
    }

    /// Overwrites the keys, and what has the form of a secret, in the body of an error: also where
    /// escapes in its JSON hide them.
    pub(super) fn redact_body(&self, body: Bytes) -> Bytes {
        let body = self.mask(body);
        let body = match redact(&body) {
            Cow::Borrowed(_) => body,
            Cow::Owned(redacted) => redacted.into(),
        };
        if memchr(b'\\', &body).is_none() {
            return body;
        }
        let Ok(mut json) = serde_json::from_slice(&body) else { return body };
        if self.redact_json(&mut json) { json.to_string().into() } else { body }
    }

    /// Says whether anything was overwritten. It goes as deep as serde_json reads: 127 levels.
    fn redact_json(&self, json: &mut Value) -> bool {
        match json {
            Value::String(text) => {
                let redacted = self.redact_words(text);
                redacted.is_some_and(|redacted| {
                    *text = redacted;
                    true
                })
            }
            Value::Array(items) => {
                items.iter_mut().fold(false, |found, item| self.redact_json(item) | found)
            }
            Value::Object(fields) => {
                let in_a_name = fields.keys().any(|name| self.redact_words(name).is_some());
                if in_a_name {
                    // No error of Google's has a field named by its key: nothing of it is needed.
                    *json = Value::Null;
                    return true;
                }
                fields.values_mut().fold(false, |found, field| self.redact_json(field) | found)
            }
            _ => false,
        }
    }

    /// A text without secrets, where there are any in it.
    fn redact_words(&self, text: &str) -> Option<String> {
        let masked = self.mask(Bytes::copy_from_slice(text.as_bytes()));
        let redacted = redact(&masked);
        (redacted != text.as_bytes()).then(|| to_text(redacted.into_owned()))
    }

    /// Overwrites the keys, and what has the form of a secret, in the headers of an answer. A header
    /// with a key in its name is left out.
    pub(super) fn redact_headers(&self, headers: &mut HeaderMap) {
        let named_by_a_key = |name: &&HeaderName| self.0.iter().any(|key| key.is_in_name(name));
        let named_by_a_key: Vec<_> = headers.keys().filter(named_by_a_key).cloned().collect();
        named_by_a_key.iter().for_each(|name| drop(headers.remove(name)));
        for value in headers.values_mut() {
            let masked = self.mask(Bytes::copy_from_slice(value.as_bytes()));
            let redacted = redact(&masked);
            if redacted != value.as_bytes() {
                *value = HeaderValue::from_bytes(&redacted)
                    .expect("characters of a header were overwritten with asterisks");
            }
        }
    }

    /// Overwrites the keys in something that comes piece by piece.
    pub fn masker(&self) -> Masker {
        let places = vec![Place::default(); self.0.len()];
        Masker { secrets: self.clone(), places }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

/// One key, prepared for the search of Knuth, Morris and Pratt: it looks at each
/// byte once and needs none of the bytes before.
#[derive(Clone)]
struct Needle {
    bytes: Bytes,
    /// For each length of a beginning of the needle, less 1: how long the longest shorter beginning
    /// is with which it ends.
    borders: Arc<[usize]>,
}

impl Needle {
    fn new(bytes: Bytes) -> Self {
        let mut borders = vec![0; bytes.len()];
        for end in 1..bytes.len() {
            let mut border: usize = borders[end - 1];
            while border > 0 && bytes[border] != bytes[end] {
                border = borders[border - 1];
            }
            borders[end] = border + usize::from(bytes[border] == bytes[end]);
        }
        Self { bytes, borders: borders.into() }
    }

    /// With how many bytes of the needle a text ends after one byte more.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.borders[matched - 1];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }

    /// Whether the needle stands in the name of a header, which is in lower case.
    fn is_in_name(&self, name: &HeaderName) -> bool {
        let mut parts = name.as_str().as_bytes().windows(self.bytes.len());
        parts.any(|part| part.eq_ignore_ascii_case(&self.bytes))
    }

    /// Where in a piece the needle ends. What came before ended with the first `matched` bytes of
    /// it, and afterwards what has come does.
    fn ends_in(&self, piece: &[u8], matched: &mut usize) -> Vec<usize> {
        let mut ends = Vec::new();
        let mut at = 0;
        while at < piece.len() {
            if *matched == 0 {
                let Some(first) = memchr(self.bytes[0], &piece[at..]) else { break };
                at += first;
            }
            *matched = self.advance(*matched, piece[at]);
            at += 1;
            if *matched == self.bytes.len() {
                ends.push(at);
                *matched = 0;
            }
        }
        ends
    }

    /// Overwrites the needle in a piece: see [`Masker::push`].
    fn mask(&self, piece: Bytes, matched: &mut usize) -> Bytes {
        let held = *matched;
        let ends = self.ends_in(&piece, matched);
        if held == 0 && *matched == 0 && ends.is_empty() {
            return piece;
        }
        let mut bytes = [&self.bytes[..held], &piece].concat();
        for end in ends {
            bytes[held + end - self.bytes.len()..held + end].fill(MASK);
        }
        bytes.truncate(bytes.len() - *matched);
        bytes.into()
    }
}

/// Overwrites keys in something that comes piece by piece, and may cut a key in two.
///
/// It holds back the end of a piece as long as that is the beginning of a key, and nothing else. In
/// all, as many bytes come out as went in.
#[derive(Clone, Default)]
pub struct Masker {
    secrets: Secrets,
    /// Of each key.
    places: Vec<Place>,
}

/// How far one key has come.
#[derive(Clone, Default)]
struct Place {
    /// How much of it the last bytes are: so many are held back, and need not be kept.
    matched: usize,
    escaped: Escaped,
}

impl Masker {
    /// The next piece, with what was held back before it and without what is held back of it.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        let keys = self.secrets.0.iter().zip(&mut self.places);
        keys.fold(piece, |piece, (key, place)| {
            let piece = key.mask(piece, &mut place.matched);
            place.escaped.push(key, piece)
        })
    }

    /// What is held back, at the end.
    pub fn finish(&mut self) -> Bytes {
        let keys = self.secrets.0.iter().zip(&mut self.places);
        keys.fold(Bytes::new(), |rest, (key, place)| {
            let rest = key.mask(rest, &mut place.matched);
            let rest = joined(rest, key.bytes.slice(..mem::take(&mut place.matched)));
            let rest = place.escaped.push(key, rest);
            joined(rest, place.escaped.finish())
        })
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.places.iter().map(|place| place.matched + place.escaped.held()).sum()
    }
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    if first.is_empty() { second } else { [first, second].concat().into() }
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Masker(…)")
    }
}
