//! Settings for the connection to Gemini: `GEMINI_CA_FILE` and the proxy variables.

use http::Uri;

use super::{GEMINI_CA_FILE, InvalidSetting, Lookup, setting};
use crate::connect::{Authorities, Proxy, is_loopback};

/// The variables for proxies. Many programs share them, so they are not among the settings.
pub const PROXY_VARIABLES: &[&str] = &[
    "https_proxy",
    "HTTPS_PROXY",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];

/// Set for CGI scripts, where `HTTP_PROXY` comes from the request's `Proxy` header.
const IS_CGI: &str = "REQUEST_METHOD";

/// Reads the certificates of `GEMINI_CA_FILE`.
pub(super) fn authorities(settings: &Lookup<'_>) -> Result<Authorities, InvalidSetting> {
    let Some(path) = settings.optional(GEMINI_CA_FILE) else { return Ok(Authorities::default()) };
    Authorities::read(path.as_ref()).map_err(|expected| InvalidSetting {
        variable: GEMINI_CA_FILE.name,
        expected: expected.into(),
    })
}

/// The proxy for a base URL; none for a base URL on this machine. As in curl, variables in lower case
/// take precedence.
pub(super) fn proxy(
    settings: &Lookup<'_>,
    base_url: &str,
) -> Result<Option<Proxy>, InvalidSetting> {
    let upstream: Uri = base_url.parse().expect("the base URL was checked");
    let own = match upstream.scheme_str() {
        Some("https") => ["https_proxy", "HTTPS_PROXY"],
        _ if (settings.variable)(IS_CGI).is_some() => ["http_proxy", "http_proxy"],
        _ => ["http_proxy", "HTTP_PROXY"],
    };
    let mut names = own.into_iter().chain(["all_proxy", "ALL_PROXY"]);
    let value = |name| settings.optional(setting(name, "", "secret", ""));
    let Some((variable, url)) = names.find_map(|name| Some((name, value(name)?))) else {
        return Ok(None);
    };
    if is_loopback(&upstream) {
        return Ok(None);
    }
    let no_proxy = value("no_proxy").or_else(|| value("NO_PROXY")).unwrap_or_default();
    Proxy::parse(&url, &no_proxy, &upstream)
        .map_err(|invalid| InvalidSetting { variable, expected: invalid.to_string().into() })
}
