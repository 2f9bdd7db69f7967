//! Whose key pays: the admin key's, the caller's own, the environment's, in this order.

use std::borrow::Cow;

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::{API_KEY, ApiKey};
use crate::generation::Credentials;

/// The header of the admin key.
pub(super) const ADMIN_API_KEY: HeaderName = HeaderName::from_static("admin-api-key");

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
        let known = headers.get(&ADMIN_API_KEY).zip(gateway.config.admin_api_key.as_ref());
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
        let own = credentials.and_then(Credentials::gemini_api_key);
        self.pays(own, gateway, ApiError::unusable_key)
    }

    /// The key that pays for a request in the words of Gemini or of OpenAI, which brings its own as
    /// `x-goog-api-key`, as `?key=` or as a bearer token. The admin key may come in each of them.
    ///
    /// # Errors
    /// As for [`Caller::payer`].
    pub(super) fn relayed(
        self,
        headers: &HeaderMap,
        query: &str,
        gateway: &Gateway,
    ) -> Result<ApiKey, ApiError> {
        let keys = presented(headers, query);
        let is_admin = |key: &String| {
            let admin = gateway.config.admin_api_key.as_ref();
            admin.is_some_and(|admin| admin.matches(key.as_bytes()))
        };
        let caller = if keys.iter().any(is_admin) { Self::Admin } else { self };
        caller.pays(keys.first().map(String::as_str), gateway, ApiError::unusable_relayed_key)
    }

    fn pays(
        self,
        own: Option<&str>,
        gateway: &Gateway,
        unusable: fn() -> ApiError,
    ) -> Result<ApiKey, ApiError> {
        let servers = gateway.config.gemini_api_key.as_ref();
        if self == Self::Admin {
            return servers.cloned().ok_or_else(ApiError::no_server_key);
        }
        if let Some(own) = own {
            return ApiKey::new(own).map_err(|_| unusable());
        }
        let fallback = servers.filter(|_| gateway.config.environment_fallback);
        fallback.cloned().ok_or_else(ApiError::unauthenticated)
    }
}

/// The keys that a request in the words of Gemini or of OpenAI brings, without the blank ones.
pub(super) fn presented(headers: &HeaderMap, query: &str) -> Vec<String> {
    // One that is no text is a key all the same, if one that cannot be used.
    let text = |name| headers.get(name).map(|key| String::from_utf8_lossy(key.as_bytes()));
    let bearer = text(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.to_owned())
    });
    let google = text(API_KEY).map(Cow::into_owned);
    let in_query =
        parameters(query).filter(|parameter| is_key(parameter)).filter_map(|parameter| {
            let (_, value) = parameter.split_once('=')?;
            Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
        });
    [google, bearer]
        .into_iter()
        .flatten()
        .chain(in_query)
        .filter(|key| !key.trim().is_empty())
        .collect()
}

/// A query as it came, but for the key.
pub(super) fn without_key(query: &str) -> String {
    let rest: Vec<_> = parameters(query).filter(|parameter| !is_key(parameter)).collect();
    rest.join("&")
}

fn parameters(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|parameter| !parameter.is_empty())
}

fn is_key(parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    percent_decode_str(name).eq(*b"key")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_wherever_a_client_puts_it() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
        };
        for (headers, query, keys) in [
            (headers("x-goog-api-key", "a"), "alt=sse", &["a"][..]),
            (headers("authorization", "Bearer b"), "", &["b"]),
            (headers("authorization", "bearer b"), "key=c&key=d", &["b", "c", "d"]),
            (headers("authorization", "Basic b"), "k%65y=c%2Bd", &["c+d"]),
            (headers("x-goog-api-key", " "), "key=&keys=c&key", &[]),
            (headers("x-goog-api-key", "é"), "", &["é"]),
        ] {
            assert_eq!(presented(&headers, query), keys, "{query}");
        }
    }

    #[test]
    fn a_query_goes_on_as_it_came_without_its_key() {
        for (query, rest) in [
            ("key=secret", ""),
            ("alt=sse&key=secret&a=%20&b", "alt=sse&a=%20&b"),
            ("%6bey=secret&monkey=1&Key=2", "monkey=1&Key=2"),
        ] {
            assert_eq!(without_key(query), rest);
        }
    }
}
