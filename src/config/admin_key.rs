//! The admin key.

use std::iter;

use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::gemini::ApiKey;

/// What separates the words of a text, where the key has no such character in it.
const SEPARATORS: &[u8] = b" \t\r\n\0,;:'\"`()<>[]{}=/\\|&?!@#$%*+^";

/// The secret that makes a caller the administrator.
#[derive(Debug, Clone)]
pub struct AdminKey(SecretString);

impl AdminKey {
    /// Keeps a secret.
    pub fn new(key: impl Into<SecretString>) -> Self {
        Self(key.into())
    }

    /// The key as a header carries it, which does not show in its `Debug`; `None` where no header
    /// can.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut header = HeaderValue::from_str(self.0.expose_secret()).ok()?;
        header.set_sensitive(true);
        Some(header)
    }

    /// Compares without telling by the time it takes how much of a guess was right.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.expose_secret().as_bytes().ct_eq(candidate).into()
    }

    /// Whether the key stands in a text: as the whole text, as one of its words (`Token KEY`), or
    /// as what a word gives a value to (`session=KEY; path=/`). White space around it does not
    /// count. Takes constant time for each candidate, as [`AdminKey::matches`] does.
    pub fn is_in(&self, text: &[u8]) -> bool {
        let key = self.0.expose_secret().as_bytes();
        let words = || text.split(|byte| SEPARATORS.contains(byte) && !key.contains(byte));
        let values = words().filter_map(|word| {
            let equals = word.iter().position(|byte| *byte == b'=')?;
            Some(&word[equals + 1..])
        });
        iter::once(text.trim_ascii()).chain(words()).chain(values).any(|word| self.matches(word))
    }

    /// The key as one that must not appear in the log; `None` where it has white space or
    /// characters beyond ASCII in it.
    pub fn secret(&self) -> Option<ApiKey> {
        ApiKey::new(self.0.expose_secret()).ok()
    }

    /// The SHA-256 of the key, to derive other keys from.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0.expose_secret()).into()
    }
}

#[cfg(test)]
mod tests {
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
    fn an_admin_key_is_found_among_other_words() {
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
}
