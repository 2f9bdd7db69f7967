//! The key that pays for a call.

use std::fmt;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::client::{API_KEY, USER_PROJECT};
use super::live::LiveApi;
use super::surface::Surface;

/// The longest key, in characters: longer than any of Google's tokens.
const MAX_LENGTH: usize = 8192;

/// The longest project ID, in characters, including a domain.
const MAX_PROJECT: usize = 128;

/// A Gemini API key, an OAuth access token or an ephemeral token. Each is sent in the header that its
/// kind and the surface require.
///
/// It holds the finished header value, so a call does no work for it, and cloning only counts a
/// reference. The memory is wiped with the last clone. Nothing prints a key: `Debug` shows
/// `ApiKey(…)`, there is no `Display` and no `Serialize`, and the header is marked as sensitive.
#[derive(Clone)]
pub struct ApiKey {
    secret: Bytes,
    header: HeaderValue,
    sha256: [u8; 32],
    /// The project that an access token charges, if the caller names one.
    project: Option<HeaderValue>,
}

/// The kind of a key, recognized by its prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    /// `AIza…`, `AQ.…`, and anything that is not one of the others.
    ApiKey,
    /// An OAuth access token: `ya29.…`, or a JSON web token, `eyJ….….…`.
    AccessToken,
    /// `auth_tokens/…`.
    Ephemeral,
}

impl KeyKind {
    fn of(secret: &str) -> Self {
        let is_web_token = secret.starts_with("eyJ") && secret.split('.').count() == 3;
        if is_web_token || secret.starts_with("ya29.") {
            Self::AccessToken
        } else if secret.starts_with("auth_tokens/") {
            Self::Ephemeral
        } else {
            Self::ApiKey
        }
    }
}

/// A claim that an access token may charge a project. It is proven once Gemini accepts both together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectClaim {
    /// The SHA-256 of the token and the project.
    pub sha256: [u8; 32],
    /// A digest that stands for the project. No key has the same SHA-256.
    pub project: [u8; 32],
}

impl ApiKey {
    /// Reads a key and trims the white space around it.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] if it is empty or cannot be a key: a key has at most 8192 visible ASCII
    /// characters and no spaces. The error does not show it.
    pub fn new(secret: &str) -> Result<ApiKey, InvalidKey> {
        let secret = secret.trim();
        if !(1..=MAX_LENGTH).contains(&secret.len())
            || !secret.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(InvalidKey);
        }
        let sha256 = Sha256::digest(secret).into();
        let secret = Bytes::from_owner(Wiped(SecretString::from(secret)));
        let mut header = HeaderValue::from_maybe_shared(secret.clone()).map_err(|_| InvalidKey)?;
        header.set_sensitive(true);
        Ok(ApiKey { secret, header, sha256, project: None })
    }

    /// The same key, charging a project: the header `X-Goog-User-Project`, which user credentials
    /// need. Only access tokens take a project; an API key belongs to one.
    pub fn charging(self, project: Option<HeaderValue>) -> ApiKey {
        let project = project.filter(|_| self.kind() == KeyKind::AccessToken);
        ApiKey { project, ..self }
    }

    /// The project that it claims to charge. An invalid project is ignored, since Gemini might
    /// accept it from everybody.
    pub fn claim(&self) -> Option<ProjectClaim> {
        let project = self.project.as_ref()?.as_bytes();
        let is_of_id = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
        if !(1..=MAX_PROJECT).contains(&project.len()) || !project.iter().all(is_of_id) {
            return None;
        }
        // No key contains a null byte, so the digests cannot collide.
        let sha256 = Sha256::new().chain_update(self.sha256).chain_update(project).finalize();
        let project = Sha256::new().chain_update(b"project\0").chain_update(project).finalize();
        Some(ProjectClaim { sha256: sha256.into(), project: project.into() })
    }

    fn kind(&self) -> KeyKind {
        KeyKind::of(str::from_utf8(&self.secret).expect("a key is ASCII"))
    }

    /// The SHA-256 of the key, which identifies it without storing it.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// The header that carries the key. Source: for OpenAI's surface, Gemini API documentation,
    /// "OpenAI compatibility"; for tokens, Google's Python SDK 3.6.1.
    fn header(&self, surface: Surface) -> (HeaderName, HeaderValue) {
        match (surface, self.kind()) {
            (Surface::OpenAi, _) | (_, KeyKind::AccessToken) => {
                (AUTHORIZATION, self.authorization("Bearer"))
            }
            (_, KeyKind::ApiKey) => (API_KEY, self.header.clone()),
            (_, KeyKind::Ephemeral) => (AUTHORIZATION, self.authorization("Token")),
        }
    }

    fn authorization(&self, scheme: &str) -> HeaderValue {
        let value = [scheme.as_bytes(), b" ", &self.secret].concat();
        let mut header = HeaderValue::from_bytes(&value).expect("a key is valid in a header");
        header.set_sensitive(true);
        header
    }

    /// Adds the key and its project to the headers of a request.
    pub fn insert_into(&self, headers: &mut HeaderMap, surface: Surface) {
        let (name, value) = self.header(surface);
        headers.insert(name, value);
        if let Some(project) = &self.project {
            headers.insert(USER_PROJECT, project.clone());
        }
    }

    /// Adds the key to the headers of a handshake for a live session. Live interactions expect an
    /// ephemeral token in the header of a key. Source: Google's Python SDK 3.6.1.
    pub(super) fn insert_into_live(&self, headers: &mut HeaderMap, api: LiveApi) {
        if api == LiveApi::Interactions && self.kind() == KeyKind::Ephemeral {
            headers.insert(API_KEY, self.header.clone());
        } else {
            self.insert_into(headers, Surface::Gemini);
        }
    }

    /// The key itself.
    pub(super) fn secret(&self) -> &Bytes {
        &self.secret
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The bytes of a key, wiped when the last header that refers to them is dropped.
struct Wiped(SecretString);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

/// The value cannot be an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an API key has 1 to 8192 visible ASCII characters and no spaces")]
pub struct InvalidKey;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_prints_a_key() {
        let key = ApiKey::new("AIza-secret").unwrap();
        assert_eq!(format!("{key:?}"), "ApiKey(…)");
        for secret in ["AIza-secret", "ya29.secret", "auth_tokens/secret"] {
            for surface in [Surface::Gemini, Surface::Interactions, Surface::OpenAi] {
                let header = ApiKey::new(secret).unwrap().header(surface);
                assert!(!format!("{header:?}").contains("secret"));
            }
        }
    }

    #[test]
    fn each_kind_of_key_is_sent_in_the_header_of_its_surface() {
        for (secret, gemini) in [
            ("AIzaSy", ("x-goog-api-key", "AIzaSy")),
            ("AQ.Ab8", ("x-goog-api-key", "AQ.Ab8")),
            ("eyJnot-a-token", ("x-goog-api-key", "eyJnot-a-token")),
            ("ya29.a0Af", ("authorization", "Bearer ya29.a0Af")),
            ("ya29.c.b0Ad", ("authorization", "Bearer ya29.c.b0Ad")),
            ("eyJh.eyJz.c2ln", ("authorization", "Bearer eyJh.eyJz.c2ln")),
            ("auth_tokens/0123", ("authorization", "Token auth_tokens/0123")),
        ] {
            let key = ApiKey::new(secret).unwrap();
            let (name, value) = key.header(Surface::Gemini);
            assert_eq!((name.as_str(), value.to_str().unwrap()), gemini);
            let bearer = HeaderValue::try_from(format!("Bearer {secret}")).unwrap();
            assert_eq!(key.header(Surface::OpenAi), (AUTHORIZATION, bearer));
        }
    }

    #[test]
    fn only_an_access_token_claims_a_project() {
        let project = |name: &'static str| Some(HeaderValue::from_static(name));
        let claim = |key: &str, name| ApiKey::new(key).unwrap().charging(project(name)).claim();
        assert_eq!(claim("AIzaSy", "p"), None);
        let [one, other] = ["ya29.a", "ya29.b"].map(|token| claim(token, "p").unwrap());
        assert_eq!(one.project, other.project);
        assert_ne!(one.sha256, other.sha256);
        assert_ne!(one.project, claim("ya29.a", "q").unwrap().project);
        assert_ne!(one.project, *ApiKey::new("p").unwrap().sha256());
        assert_eq!(ApiKey::new("ya29.a").unwrap().charging(None).claim(), None);
        assert!(claim("ya29.a", "example.com:my-project_1").is_some());
        for none in ["", " ", "a b", "projects/p", "p,q", "p?"] {
            assert_eq!(claim("ya29.a", none), None, "{none}");
        }
    }

    #[test]
    fn a_key_is_identified_by_its_digest() {
        let key = ApiKey::new(" abc\n").unwrap();
        // The output of `printf %s abc | sha256sum`.
        assert_eq!(key.sha256()[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(key.clone().sha256(), key.sha256());
        assert_eq!(format!("{key:?}"), "ApiKey(…)");
    }

    #[test]
    fn white_space_around_a_key_is_trimmed() {
        assert_eq!(ApiKey::new(" AIza\r\n").unwrap().header, "AIza");
    }

    #[test]
    fn an_invalid_key_is_rejected_without_showing_it() {
        let long = "a".repeat(8193);
        for secret in ["", "  ", "two words", "line\nbreak", "schlüssel", "nul\0", &long] {
            let refused = ApiKey::new(secret).unwrap_err();
            assert_eq!(
                refused.to_string(),
                "an API key has 1 to 8192 visible ASCII characters and no spaces"
            );
        }
    }
}
