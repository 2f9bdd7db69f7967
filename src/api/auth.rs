//! Whose key pays: the admin key's, the caller's own, the environment's, in this order.

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::request::Parts;

use super::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::ApiKey;
use crate::generation::Credentials;

/// The header of the admin key.
const ADMIN_API_KEY: &str = "admin-api-key";

/// Whether the headers prove their sender to be the administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// The sender knows the admin key.
    Admin,
    /// The sender does not, or there is none.
    Anybody,
}

impl Caller {
    pub(super) fn of(headers: &HeaderMap, gateway: &Gateway) -> Self {
        let known = headers.get(ADMIN_API_KEY).zip(gateway.config.admin_api_key.as_ref());
        match known {
            Some((header, key)) if key.matches(header.as_bytes()) => Self::Admin,
            _ => Self::Anybody,
        }
    }

    /// The key that pays, by the first tier that has one.
    ///
    /// # Errors
    /// 401 where no tier has; 500 for an administrator where the server has none; 422 for a key
    /// in the payload that cannot be one.
    pub(super) fn payer(
        self,
        credentials: Option<&Credentials>,
        gateway: &Gateway,
    ) -> Result<ApiKey, ApiError> {
        let servers = gateway.config.gemini_api_key.as_ref();
        if self == Self::Admin {
            return servers.cloned().ok_or_else(ApiError::no_server_key);
        }
        if let Some(own) = credentials.and_then(Credentials::gemini_api_key) {
            return ApiKey::new(own).map_err(|_| ApiError::unusable_key());
        }
        let fallback = servers.filter(|_| gateway.config.environment_fallback);
        fallback.cloned().ok_or_else(ApiError::unauthenticated)
    }
}

/// The proof that a request comes from the administrator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admin;

impl FromRequestParts<Gateway> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, ApiError> {
        match Caller::of(&parts.headers, gateway) {
            Caller::Admin => Ok(Self),
            Caller::Anybody => Err(ApiError::not_admin()),
        }
    }
}
