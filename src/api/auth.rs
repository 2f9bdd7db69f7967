//! Which key pays: the server's for the admin key, else the caller's own, else the server's if the
//! fallback is on.

use axum::extract::FromRequestParts;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memchr2;
use percent_encoding::percent_decode;

use super::browser::{is_cross_site, is_trusted_host};
use super::buffered::with_body;
use super::credentials::Credentials;
use super::error::ApiError;
use crate::config::{AdminKey, FallbackScope};
use crate::gateway::Gateway;
use crate::gemini::{API_KEY, ApiKey, Model, USER_PROJECT};

/// The header of the admin key.
pub(super) const ADMIN_API_KEY: HeaderName = HeaderName::from_static("admin-api-key");

/// The schemes of `Authorization` that carry a key. Source for `Token`, which ephemeral tokens use:
/// Google's Python SDK 3.6.1.
const SCHEMES: [&str; 2] = ["bearer", "token"];

/// The query parameters that carry a key, with or without a dollar sign in front. Source: Google's
/// system parameters.
const KEY_PARAMETERS: [&str; 4] = ["key", "access_token", "oauth_token", "bearer_token"];

/// What the head of a request says about its sender.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    is_admin: bool,
    /// The caller's own key from the head of the request.
    own: Option<Result<ApiKey, KeyError>>,
    /// The project that is charged for calls with an access token.
    project: Option<HeaderValue>,
    fallback: Fallback,
}

/// Why a caller's own key is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyError {
    /// It is not a valid key.
    Invalid,
    /// The request has different keys.
    Several,
}

/// Whether the server's key pays for a request without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fallback {
    /// It pays.
    On,
    /// It does not pay, or the server has none.
    Off,
    /// A browser sent the request for a page of another origin.
    CrossSite,
    /// The `Host` header has an untrusted name.
    ForeignHost,
}

/// What a request uses its key for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To generate, embed, count tokens or list models.
    Generation,
    /// To use what belongs to the key: files, caches, jobs.
    Account,
    /// To create a credential that is valid outside this service. The server's key does that only for
    /// the administrator.
    Credential,
}

/// The key that pays for a relayed request.
#[derive(Debug)]
pub(super) struct Payer {
    /// The key.
    pub key: ApiKey,
    /// Why this key pays.
    pub tier: Tier,
}

/// Why a key pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// The request has the admin key, so the server's key pays.
    Admin,
    /// It is the caller's own key.
    Own,
    /// The request has no key, so the server's key pays.
    Fallback,
}

impl Caller {
    /// Reads the head of a request. A key is sent as `x-goog-api-key`, as a token in `Authorization`, or
    /// in the query, and so may the admin key. The same key in several places counts as one.
    pub(super) fn of(headers: &HeaderMap, query: Option<&str>, gateway: &Gateway) -> Self {
        let keys = presented(headers, query.unwrap_or_default());
        let is_admin =
            brings_admin_key(headers, gateway) || keys.iter().any(|key| is_admin_key(key, gateway));
        let project = headers.get(USER_PROJECT).cloned();
        let own = keys.split_first().map(|(key, others)| {
            let is_unique = others.iter().all(|other| other == key);
            if is_unique { own_key(key, project.clone(), gateway) } else { Err(KeyError::Several) }
        });
        Self { is_admin, own, project, fallback: Fallback::of(headers, gateway) }
    }

    /// The administrator, who is known by a session of the dashboard.
    pub(super) fn admin() -> Self {
        Self { is_admin: true, own: None, project: None, fallback: Fallback::Off }
    }

    /// Whether the request has the admin key.
    pub(super) fn is_admin(&self) -> bool {
        self.is_admin
    }

    /// Whether the request has a key of its own, or the admin key.
    pub(super) fn brings_key(&self) -> bool {
        self.is_admin || self.own.is_some()
    }

    /// The key that pays for a generation: the server's for the admin key, else the key in the body,
    /// else the key in the head, else the server's if the fallback is on.
    ///
    /// # Errors
    /// 401 if no key pays; 400 if the head has different keys; 500 if the request has the admin key and
    /// the server has no key; 422 if the key in the body is invalid.
    pub(super) fn payer(
        &self,
        credentials: Option<&Credentials>,
        gateway: &Gateway,
    ) -> Result<ApiKey, ApiError> {
        match credentials.and_then(Credentials::gemini_api_key) {
            Some(own) if !self.is_admin && !is_admin_key(own, gateway) => {
                let key = own_key(own, self.project.clone(), gateway);
                key.map_err(|_| ApiError::unusable_key())
            }
            Some(_) => servers_key(gateway).ok_or_else(ApiError::no_server_key),
            None => self.relayed(Purpose::Generation, gateway).map(|payer| payer.key),
        }
    }

    /// Why the key that [`payer`](Self::payer) gives pays.
    pub(super) fn paid_by(&self, credentials: Option<&Credentials>, gateway: &Gateway) -> Tier {
        match credentials.and_then(Credentials::gemini_api_key) {
            Some(own) if !self.is_admin && !is_admin_key(own, gateway) => Tier::Own,
            Some(_) => Tier::Admin,
            None if self.is_admin => Tier::Admin,
            None if self.own.is_some() => Tier::Own,
            None => Tier::Fallback,
        }
    }

    /// The key that pays for a relayed request.
    ///
    /// # Errors
    /// 401 if no key pays, or the key is invalid; 400 for different keys; 500 if the request has the
    /// admin key and the server has no key.
    pub(super) fn relayed(&self, purpose: Purpose, gateway: &Gateway) -> Result<Payer, ApiError> {
        if self.is_admin {
            let key = servers_key(gateway).ok_or_else(ApiError::no_server_key)?;
            return Ok(Payer { key, tier: Tier::Admin });
        }
        if let Some(own) = &self.own {
            let key = own.clone().map_err(|error| match error {
                KeyError::Invalid => ApiError::unusable_relayed_key(),
                KeyError::Several => ApiError::several_keys(),
            })?;
            return Ok(Payer { key, tier: Tier::Own });
        }
        match self.fallback {
            Fallback::On if purpose.is_open_to_all(gateway) => {}
            Fallback::On => return Err(ApiError::beyond_fallback()),
            Fallback::Off => return Err(ApiError::unauthenticated()),
            Fallback::CrossSite => return Err(ApiError::cross_site()),
            Fallback::ForeignHost => return Err(ApiError::foreign_host()),
        }
        let key = servers_key(gateway).ok_or_else(ApiError::unauthenticated)?;
        Ok(Payer { key, tier: Tier::Fallback })
    }
}

impl Fallback {
    fn of(headers: &HeaderMap, gateway: &Gateway) -> Self {
        let config = &gateway.config;
        if !config.environment_fallback || config.gemini_api_key.is_none() {
            Self::Off
        } else if is_cross_site(headers, &config.cors_origins) {
            Self::CrossSite
        } else if !is_trusted_host(headers, config) {
            Self::ForeignHost
        } else {
            Self::On
        }
    }
}

impl Purpose {
    fn is_open_to_all(self, gateway: &Gateway) -> bool {
        match self {
            Self::Generation => true,
            Self::Account => gateway.config.fallback_scope == FallbackScope::All,
            Self::Credential => false,
        }
    }
}

fn servers_key(gateway: &Gateway) -> Option<ApiKey> {
    gateway.config.gemini_api_key.clone()
}

fn is_admin_key(key: &str, gateway: &Gateway) -> bool {
    let admin = gateway.config.admin_api_key.as_ref();
    admin.is_some_and(|admin| admin.matches(key.as_bytes()))
}

/// A caller's own key, with the project that it charges. A key that contains the admin key is invalid,
/// because the admin key would be sent to Gemini with it.
fn own_key(key: &str, project: Option<HeaderValue>, gateway: &Gateway) -> Result<ApiKey, KeyError> {
    let holds = |text: &[u8]| holds_admin_key(text, gateway);
    if holds(key.as_bytes()) || project.as_ref().is_some_and(|project| holds(project.as_bytes())) {
        return Err(KeyError::Invalid);
    }
    let key = ApiKey::new(key).map_err(|_| KeyError::Invalid)?;
    Ok(key.charging(project))
}

/// Whether a text contains the admin key: as it is, or percent-encoded once or twice.
pub(super) fn holds_admin_key(text: &[u8], gateway: &Gateway) -> bool {
    let Some(admin) = &gateway.config.admin_api_key else { return false };
    if admin.is_in(text) {
        return true;
    }
    if memchr2(b'%', b'+', text).is_none() {
        return false;
    }
    let once: Vec<u8> = percent_decode(text).collect();
    let spaced: Vec<u8> =
        text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    let spaced: Vec<u8> = percent_decode(&spaced).collect();
    let twice: Vec<u8> = percent_decode(&once).collect();
    [once, spaced, twice].iter().any(|text| admin.is_in(text))
}

/// Checks the name of a model before it is sent to Gemini.
///
/// # Errors
/// 401 if it contains the admin key.
pub(super) fn check_model(model: &Model, gateway: &Gateway) -> Result<(), ApiError> {
    match holds_admin_key(model.as_str().as_bytes(), gateway) {
        true => Err(ApiError::misplaced_admin_key()),
        false => Ok(()),
    }
}

/// Refuses a body that contains the admin key, before it is sent to Gemini. `body` is called only if
/// bodies are searched for the key.
///
/// # Errors
/// 401 if the body contains the admin key.
pub(super) async fn check_text(
    body: impl FnOnce() -> Bytes,
    gateway: &Gateway,
) -> Result<(), ApiError> {
    let admin = gateway.config.admin_api_key.clone();
    let Some(admin) = admin.filter(AdminKey::is_looked_for_in_texts) else { return Ok(()) };
    match with_body(body(), move |body| admin.is_in_long_text(body)).await? {
        true => Err(ApiError::misplaced_admin_key()),
        false => Ok(()),
    }
}

fn brings_admin_key(headers: &HeaderMap, gateway: &Gateway) -> bool {
    let known = headers.get(&ADMIN_API_KEY).zip(gateway.config.admin_api_key.as_ref());
    known.is_some_and(|(header, key)| key.matches(header.as_bytes()))
}

/// The keys in the head of a request, trimmed and without blank ones, as [`ApiKey`] sends them.
fn presented(headers: &HeaderMap, query: &str) -> Vec<String> {
    // A value that is not UTF-8 still counts as a key, so it is rejected rather than ignored.
    let texts = |name: HeaderName| {
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()))
    };
    let tokens = texts(AUTHORIZATION).filter_map(|value| {
        let (scheme, token) = value.split_once([' ', '\t'])?;
        let is_known = SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known));
        is_known.then(|| token.trim().to_owned())
    });
    let in_query = parameters(query).filter(|parameter| is_key(parameter));
    let in_query = in_query.filter_map(|parameter| parameter.split_once('='));
    let in_query = in_query.map(|(_, value)| decoded(value).trim().to_owned());
    texts(API_KEY)
        .map(|key| key.trim().to_owned())
        .chain(tokens)
        .chain(in_query)
        .filter(|key| !key.is_empty())
        .collect()
}

/// A query without its key, otherwise unchanged.
pub(super) fn without_key(query: &str) -> String {
    let rest: Vec<_> = parameters(query).filter(|parameter| !is_key(parameter)).collect();
    rest.join("&")
}

/// The parameters of a query, `name=value`, not decoded.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|parameter| !parameter.is_empty())
}

/// Decodes a name or a value in a query. Source: WHATWG, URL,
/// "application/x-www-form-urlencoded parsing".
pub(super) fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_decode(text.as_bytes()).decode_utf8_lossy().into_owned()
}

/// The decoded name of a parameter.
pub(super) fn name_of(parameter: &str) -> String {
    decoded(parameter.split('=').next().unwrap_or_default())
}

pub(super) fn is_key(parameter: &str) -> bool {
    let name = name_of(parameter);
    KEY_PARAMETERS.contains(&name.strip_prefix('$').unwrap_or(&name))
}

/// Proof that a request has the admin key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admin;

impl FromRequestParts<Gateway> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, ApiError> {
        if brings_admin_key(&parts.headers, gateway) {
            Ok(Self)
        } else {
            Err(ApiError::not_admin())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_headers_and_in_the_query() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
        };
        for (headers, query, keys) in [
            (headers("x-goog-api-key", "a"), "alt=sse", &["a"][..]),
            (headers("authorization", "Bearer b"), "", &["b"]),
            (headers("authorization", "bearer b"), "key=c&key=d", &["b", "c", "d"]),
            (headers("authorization", "Basic b"), "k%65y=c%2Bd", &["c+d"]),
            (headers("authorization", "Token auth_tokens/b"), "", &["auth_tokens/b"]),
            (headers("authorization", "Bearer b"), "access_token=c", &["b", "c"]),
            (headers("authorization", "Bearer   b"), "key=c%20&key=%09d+", &["b", "c", "d"]),
            (headers("x-goog-api-key", " "), "key=&keys=c&key", &[]),
            (headers("x-goog-api-key", "é"), "", &["é"]),
        ] {
            assert_eq!(presented(&headers, query), keys, "{query}");
        }
        let mut two = headers("x-goog-api-key", "a");
        two.append(API_KEY, "b".parse().unwrap());
        assert_eq!(presented(&two, ""), ["a", "b"]);
    }

    #[test]
    fn the_key_is_removed_from_a_query_and_the_rest_is_unchanged() {
        for (query, rest) in [
            ("key=secret", ""),
            ("alt=sse&key=secret&a=%20&b", "alt=sse&a=%20&b"),
            ("%6bey=secret&monkey=1&Key=2", "monkey=1&Key=2"),
            ("access_token=a&alt=json&oauth_token=b&bearer_token=c", "alt=json"),
            ("$key=a&%24key=b&$alt=json&$access_token=c", "$alt=json"),
        ] {
            assert_eq!(without_key(query), rest);
        }
    }
}
