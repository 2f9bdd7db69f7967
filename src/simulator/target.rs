//! The model that a call names and the key that it has.

use http::request::Parts;
use http::{HeaderMap, Uri, header};
use jiff::civil::Date;

use super::models;
use super::options::Options;
use super::refusal::ErrorResponse;
use super::stats::hash;

/// The prefixes of model names.
const FAMILIES: [&str; 4] = ["gemini-", "gemma-", "text-embedding-", "embedding-"];

/// The address of a call: `/v1beta/models/gemini-3.5-flash-lite:generateContent`.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub version: &'a str,
    /// `models`, `tunedModels` or `agents`.
    pub collection: &'a str,
    pub model: &'a str,
    pub method: &'a str,
}

impl<'a> Target<'a> {
    /// Reads the last three segments of a path. The method is empty when there is none.
    pub fn from_path(path: &'a str) -> Option<Self> {
        let mut segments = path.rsplitn(4, '/');
        let (last, collection, version) = (segments.next()?, segments.next()?, segments.next()?);
        let (model, method) = last.split_once(':').unwrap_or((last, ""));
        Some(Self { version, collection, model, method })
    }

    /// The resource name, such as `models/gemini-3.5-flash-lite`.
    pub fn resource(&self) -> String {
        format!("{}/{}", self.collection, self.model)
    }

    /// The model that answers.
    ///
    /// # Errors
    ///
    /// Refuses a model that does not exist or has retired.
    pub fn check_model(&self, options: &Options, today: Date) -> Result<&'a str, ErrorResponse> {
        let is_known = match self.collection {
            "tunedModels" | "agents" => true,
            _ => FAMILIES.iter().any(|family| self.model.starts_with(family)),
        };
        if options.models.iter().any(|model| model == self.model) {
            return Ok(self.model);
        }
        let retired = || ErrorResponse::model_retired(&self.resource());
        if self.model.contains("retired") {
            return Err(retired());
        }
        if options.models.is_empty() && is_known && !self.model.contains("unknown") {
            return models::answering(self.model, today).ok_or_else(retired);
        }
        Err(ErrorResponse::model_not_found(&self.resource(), self.version, self.method))
    }
}

/// The key of a call, from the header, as a bearer token or from the query.
pub(super) fn api_key<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    header(http::HeaderName::from_static("x-goog-api-key"))
        .or_else(|| header(header::AUTHORIZATION)?.strip_prefix("Bearer "))
        .or_else(|| header(header::AUTHORIZATION)?.strip_prefix("Token "))
        .or_else(|| query_value(uri, "key"))
        .or_else(|| query_value(uri, "access_token"))
        .filter(|key| !key.is_empty())
}

/// A query parameter, not decoded: keys and `alt=sse` need no decoding.
pub(super) fn query_value<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(candidate, _)| *candidate == name).map(|(_, value)| value)
}

/// Refuses a missing or unknown key.
pub(super) fn check_key<'a>(
    key: Option<&'a str>,
    options: &Options,
) -> Result<&'a str, ErrorResponse> {
    let key = key.ok_or_else(ErrorResponse::no_key)?;
    if key.starts_with("invalid") || options.bad_keys.iter().any(|bad| bad == key) {
        return Err(ErrorResponse::invalid_key());
    }
    Ok(key)
}

/// Identifies the key of a call, whose resources only that key may use.
///
/// # Errors
/// The key is missing or unknown.
pub(super) fn owner(parts: &Parts, options: &Options) -> Result<u64, ErrorResponse> {
    check_key(api_key(&parts.headers, &parts.uri), options).map(hash)
}

/// The version of the API in a path, such as `v1beta`.
pub(super) fn version(uri: &Uri) -> &str {
    uri.path().split('/').nth(1).unwrap_or_default()
}
