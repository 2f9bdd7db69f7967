//! The admin key.

use std::fmt;
use std::sync::{Arc, LazyLock};

use http::{HeaderName, HeaderValue};
use memchr::{memchr, memmem};
use rustls::crypto::ring::default_provider;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::gemini::{ApiKey, encodings};

/// The shortest key that is searched for within words, in characters. A shorter key may be a word, such
/// as `admin`, and a part of many others.
const MIN_PART: usize = 8;

/// The shortest key that is searched for in texts for a model, in characters. Such texts may contain
/// shorter ones by chance.
const MIN_IN_TEXT: usize = 16;

/// How much of a text is unescaped at once, in bytes.
const PLAIN: usize = 4096;

/// The characters that separate words, unless the key contains them.
const SEPARATORS: &[u8] = b" \t\r\n\0,;:'\"`()<>[]{}=/\\|&?!@#$%*+^";

/// The secret that makes a caller the administrator. Cheap to clone.
#[derive(Clone)]
pub struct AdminKey(Arc<Inner>);

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminKey(…)")
    }
}

struct Inner {
    key: SecretString,
    /// Which bytes separate words: those that are not in the key.
    separates: [bool; 256],
    /// The encodings of the key that are searched for within words; empty if it is short.
    parts: Vec<Part>,
    /// The same in lower case, for header names.
    in_names: Vec<Part>,
}

impl AdminKey {
    /// Wraps the secret.
    pub fn new(key: impl Into<SecretString>) -> Self {
        let key = key.into();
        let is_long = key.expose_secret().len() >= MIN_PART;
        let encodings =
            if is_long { encodings(key.expose_secret().as_bytes()) } else { Vec::new() };
        let in_names = encodings.iter().map(|part| Part::new(part.to_ascii_lowercase())).collect();
        let parts = encodings.into_iter().map(Part::new).collect();
        let mut separates = [false; 256];
        SEPARATORS.iter().for_each(|byte| separates[usize::from(*byte)] = true);
        key.expose_secret().bytes().for_each(|byte| separates[usize::from(byte)] = false);
        Self(Arc::new(Inner { key, separates, parts, in_names }))
    }

    fn expose(&self) -> &str {
        self.0.key.expose_secret()
    }

    /// The key as a sensitive header value; `None` if a header cannot carry it.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut header = HeaderValue::from_str(self.expose()).ok()?;
        header.set_sensitive(true);
        Some(header)
    }

    /// Compares in constant time.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.expose().as_bytes().ct_eq(candidate).into()
    }

    /// Whether a text contains the key: as the whole text, as one of its words (`Token KEY`), or as
    /// the value of a word (`session=KEY; path=/`). White space around it does not count. A key of 8
    /// or more characters is also found within words and in base64. The time taken does not reveal
    /// how much of a guess is right.
    pub fn is_in(&self, text: &[u8]) -> bool {
        // No encoding is shorter than the key.
        let is_long_enough = text.len() >= self.expose().len();
        is_long_enough
            && (self.is_word_of(text) || self.0.parts.iter().any(|part| part.is_in(text)))
    }

    /// Whether the name of a header, which is in lower case, contains the key.
    pub fn is_in_name(&self, name: &HeaderName) -> bool {
        let name = name.as_str().as_bytes();
        self.0.in_names.iter().any(|part| part.is_in(name))
    }

    /// Whether a long JSON text contains the key, also with escapes, since many JSON writers escape a
    /// slash. Keys of fewer than 16 characters are not searched for.
    pub fn is_in_long_text(&self, text: &[u8]) -> bool {
        let key = self.expose().as_bytes();
        self.is_looked_for_in_texts()
            && (memmem::find(text, key).is_some() || is_escaped_in(text, key))
    }

    /// Whether the key is too long to be an ordinary word.
    pub fn is_looked_for_in_texts(&self) -> bool {
        self.expose().len() >= MIN_IN_TEXT
    }

    fn is_word_of(&self, text: &[u8]) -> bool {
        let mut words = text.split(|byte| self.0.separates[usize::from(*byte)]);
        self.matches(text.trim_ascii())
            || words.any(|word| {
                let value = memchr(b'=', word).map(|equals| &word[equals + 1..]);
                self.matches(word) || value.is_some_and(|value| self.matches(value))
            })
    }

    /// The key as a secret to keep out of the log; `None` if it contains white space or non-ASCII
    /// characters.
    pub fn secret(&self) -> Option<ApiKey> {
        ApiKey::new(self.expose()).ok()
    }

    /// The SHA-256 of the key, from which other keys are derived.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.expose()).into()
    }
}

/// Whether a JSON text contains the key with at least one character escaped. Linear in the length of the
/// text, little of which is copied.
fn is_escaped_in(text: &[u8], key: &[u8]) -> bool {
    // The unescaped text, from the first position at which a match may still start.
    let mut plain = Vec::with_capacity(2 * PLAIN);
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest) {
        let (run, escape) = rest.split_at(at);
        plain.extend_from_slice(&run[..run.len().min(key.len())]);
        if run.len() > key.len() || plain.len() > PLAIN {
            if memmem::find(&plain, key).is_some() {
                return true;
            }
            plain.drain(..plain.len().saturating_sub(key.len()));
        }
        if run.len() > key.len() {
            plain.clear();
            plain.extend_from_slice(&run[run.len() - key.len()..]);
        }
        let (byte, length) = unescaped(escape);
        plain.push(byte);
        rest = &escape[length..];
    }
    plain.extend_from_slice(&rest[..rest.len().min(key.len())]);
    memmem::find(&plain, key).is_some()
}

/// The character that a JSON escape stands for (0 if no key can contain it), and the length of the
/// escape in bytes.
fn unescaped(escape: &[u8]) -> (u8, usize) {
    let code = || {
        let digits = str::from_utf8(escape.get(2..6)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    match escape {
        [_, b'u', ..] => code().map_or((0, 2), |code| (u8::try_from(code).unwrap_or(0), 6)),
        [_, byte @ (b'"' | b'\\' | b'/'), ..] => (*byte, 2),
        _ => (0, escape.len().min(2)),
    }
}

/// An encoding of the key that is searched for within words with the Rabin-Karp algorithm: bytes are
/// compared only if the hash matches. The base of the hash is random for each process, so that response
/// times do not reveal which guesses match a hash.
#[derive(Debug)]
struct Part {
    bytes: SecretSlice<u8>,
    hash: SecretSlice<u64>,
    /// The weight of a window's first byte in its hash.
    weight: u64,
}

impl Part {
    fn new(bytes: Vec<u8>) -> Self {
        let weight = bytes.iter().skip(1).fold(1, |weight: u64, _| weight.wrapping_mul(base()));
        let hash = vec![hash(&bytes)].into();
        Self { bytes: bytes.into(), hash, weight }
    }

    fn is_in(&self, text: &[u8]) -> bool {
        let (bytes, wanted) = (self.bytes.expose_secret(), self.hash.expose_secret()[0]);
        let Some(first) = text.get(..bytes.len()) else { return false };
        let (mut current, base) = (hash(first), base());
        if current == wanted && bool::from(bytes.ct_eq(first)) {
            return true;
        }
        text.windows(bytes.len() + 1).any(|window| {
            let gone = u64::from(window[0]).wrapping_mul(self.weight);
            let come = u64::from(window[bytes.len()]);
            current = current.wrapping_sub(gone).wrapping_mul(base).wrapping_add(come);
            current == wanted && bool::from(bytes.ct_eq(&window[1..]))
        })
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let base = base();
    bytes.iter().fold(0, |hash: u64, byte| hash.wrapping_mul(base).wrapping_add(u64::from(*byte)))
}

/// A random odd number, so that each byte affects the whole hash.
fn base() -> u64 {
    static BASE: LazyLock<u64> = LazyLock::new(|| {
        let mut base = [0; 8];
        default_provider().secure_random.fill(&mut base).expect("the system has random bytes");
        u64::from_ne_bytes(base) | 1
    });
    *BASE
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD_NO_PAD;

    use super::*;

    #[test]
    fn an_admin_key_matches_only_itself() {
        let key = AdminKey::new("correct horse");
        assert!(key.matches(b"correct horse"));
        assert!(
            !key.matches(b"correct hors") && !key.matches(b"") && !key.matches(b"Correct horse")
        );
        assert!(!format!("{key:?}").contains("horse"));
    }

    #[test]
    fn an_admin_key_is_found_among_words() {
        let key = AdminKey::new("abc+/==");
        for text in [
            "abc+/==",
            " abc+/==\t",
            "Token abc+/==",
            "a=b; s=abc+/==,c",
            "'abc+/=='",
            "curl(abc+/==)",
        ] {
            assert!(key.is_in(text.as_bytes()), "{text}");
        }
        for text in ["", "abc+/=", "abc", "Token abc+/===", "xabc+/=="] {
            assert!(!key.is_in(text.as_bytes()), "{text}");
        }
        assert!(AdminKey::new("two words").is_in(b" two words "));
        for text in
            ["curl/a-b_c.d", "<a-b_c.d>", "{\"key\":\"a-b_c.d\"}", "a-b_c.d,a-b_c.d", "a-b_c.d\0"]
        {
            assert!(AdminKey::new("a-b_c.d").is_in(text.as_bytes()), "{text}");
        }
        assert!(!AdminKey::new("admin").is_in(b"files/admin-7, my.admin"));
    }

    #[test]
    fn a_long_admin_key_is_found_within_words_and_in_base64() {
        let key = AdminKey::new("The-Admin-Key");
        let encoded = ["", "a", "ab"]
            .map(|before| BASE64_STANDARD_NO_PAD.encode(format!("{before}The-Admin-Key")));
        for text in ["xThe-Admin-Key", "The-Admin-KeyThe", "..The-Admin-Key.."] {
            assert!(key.is_in(text.as_bytes()), "{text}");
        }
        for text in encoded {
            assert!(key.is_in(text.as_bytes()), "{text}");
        }
        for text in ["", "The-Admin-Ke", "the-admin-key", "The-Admin-Kex", "The-Admin-KThe-Admin"] {
            assert!(!key.is_in(text.as_bytes()), "{text}");
        }
        for (name, is_in) in [("x-the-admin-key", true), ("the-admin-key-", true), ("x-the", false)]
        {
            assert_eq!(key.is_in_name(&HeaderName::from_static(name)), is_in, "{name}");
        }
        assert!(!key.is_in_long_text(b"The-Admin-Key"), "it may be an ordinary word");
        let long = AdminKey::new("a-longer-admin-key");
        assert!(long.is_in_long_text(b"{\"text\":\"my a-longer-admin-key\"}"));
        assert!(!long.is_in_long_text(b"a-longer-admin-ke"));
        let escaped: String = "a-longer-admin-key".bytes().map(|b| format!("\\u{b:04X}")).collect();
        for text in [
            r"a-longer\u002dadmin-key",
            r"\u0061-longer-admin-ke\u0079",
            r"\n\\a-longer-admin\u002Dkey\n",
            &escaped,
            &format!("{}{escaped}", "a\\n".repeat(10_000)),
            &format!("{}{escaped}", "\\u0061-longer-".repeat(10_000)),
            &format!("{}a-lon\\u0067er-admin-key{}", "x".repeat(9000), "y".repeat(9000)),
        ] {
            assert!(long.is_in_long_text(text.as_bytes()), "{text:.100}");
        }
        for text in
            [r"a-longer\n-admin-key", r"a-longer-admin-ke\u00", "a-longer-admin-ke\\", r"\u"]
        {
            assert!(!long.is_in_long_text(text.as_bytes()), "{text}");
        }
        assert!(AdminKey::new("a/slash+a/slash+").is_in_long_text(br#""a\/slash+a\/slash+""#));
    }
}
