//! The keys in the body of a request.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use utoipa::ToSchema;

/// The caller's own keys.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credentials {
    /// A Gemini API key or an OAuth access token, which pays for the request unless a valid
    /// `Admin-API-Key` does. A blank value counts as absent.
    #[schema(value_type = Option<String>, format = Password, example = "YOUR_GEMINI_API_KEY")]
    gemini_api_key: Option<SecretString>,
}

impl Credentials {
    /// The Gemini key, if there is one.
    pub(super) fn gemini_api_key(&self) -> Option<&str> {
        let key = self.gemini_api_key.as_ref()?.expose_secret().trim();
        (!key.is_empty()).then_some(key)
    }
}
