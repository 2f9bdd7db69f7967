//! The key of one caller.

use std::fmt;

use bytes::Bytes;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// A Gemini API key, ready to be sent.
///
/// It holds the header value itself, so a call does no work for it, and cloning counts a reference.
/// The memory is wiped when the last clone is gone. Nothing prints it: `Debug` shows `ApiKey(…)`,
/// there is no `Display` and no `Serialize`, and the header is marked sensitive.
#[derive(Clone)]
pub struct ApiKey {
    secret: Bytes,
    header: HeaderValue,
    sha256: [u8; 32],
}

impl ApiKey {
    /// Reads a key as a caller gave it; white space around it is taken off.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] where nothing is left or where it cannot be a key: a key is one word of
    /// visible ASCII. The error does not show it.
    pub fn new(secret: &str) -> Result<ApiKey, InvalidKey> {
        let secret = secret.trim();
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidKey);
        }
        let sha256 = Sha256::digest(secret).into();
        let secret = Bytes::from_owner(Wiped(SecretString::from(secret)));
        let mut header = HeaderValue::from_maybe_shared(secret.clone()).map_err(|_| InvalidKey)?;
        header.set_sensitive(true);
        Ok(ApiKey { secret, header, sha256 })
    }

    /// The SHA-256 of the key, by which to know it again without keeping it.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// The value of the header `x-goog-api-key`.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    /// The value of the header `Authorization`, for the endpoints of OpenAI's shape.
    pub(super) fn bearer(&self) -> HeaderValue {
        let bearer = [b"Bearer ", self.header.as_bytes()].concat();
        let mut header = HeaderValue::from_bytes(&bearer).expect("the key can stand in a header");
        header.set_sensitive(true);
        header
    }

    /// The key itself. The memory is wiped when the last clone is gone.
    pub(super) fn secret(&self) -> &Bytes {
        &self.secret
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The bytes of a key, for as long as a header points at them.
struct Wiped(SecretString);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

/// What was given cannot be an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an API key is one word of visible ASCII characters")]
pub struct InvalidKey;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_a_key() {
        let key = ApiKey::new("AIza-secret").unwrap();
        assert_eq!(format!("{key:?}"), "ApiKey(…)");
        assert!(!format!("{:?}", key.header()).contains("secret"));
    }

    #[test]
    fn a_key_is_known_by_its_digest_which_nothing_prints() {
        let key = ApiKey::new(" abc\n").unwrap();
        // As `printf %s abc | sha256sum` has it.
        assert_eq!(key.sha256()[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(key.clone().sha256(), key.sha256());
        assert_eq!(format!("{key:?}"), "ApiKey(…)");
    }

    #[test]
    fn white_space_around_a_key_is_taken_off() {
        assert_eq!(ApiKey::new(" AIza\r\n").unwrap().header(), "AIza");
    }

    #[test]
    fn what_cannot_be_a_key_is_refused_without_showing_it() {
        for secret in ["", "  ", "two words", "line\nbreak", "schlüssel", "nul\0"] {
            let refused = ApiKey::new(secret).unwrap_err();
            assert_eq!(refused.to_string(), "an API key is one word of visible ASCII characters");
        }
    }
}
