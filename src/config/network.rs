//! The settings about the way to Gemini: `GEMINI_CA_FILE` and the variables that name a proxy.

use http::Uri;

use super::{GEMINI_CA_FILE, InvalidSetting, Lookup, setting};
use crate::connect::{Authorities, Proxy, is_loopback};

/// The variables that name a proxy, or say what is reached without one. They are every program's, and
/// so not among the settings.
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

/// In CGI scripts, `HTTP_PROXY` is the header `Proxy` of a request.
const IS_CGI: &str = "REQUEST_METHOD";

/// Reads the certificates of `GEMINI_CA_FILE`.
pub(super) fn authorities(settings: &Lookup<'_>) -> Result<Authorities, InvalidSetting> {
    let Some(path) = settings.optional(GEMINI_CA_FILE) else { return Ok(Authorities::default()) };
    Authorities::read(path.as_ref()).map_err(|expected| InvalidSetting {
        variable: GEMINI_CA_FILE.name,
        expected: expected.into(),
    })
}

/// The proxy through which a base URL is reached; none for one on this machine. Variables in lower
/// case go before those in upper case, as with curl.
pub(super) fn proxy(
    settings: &Lookup<'_>,
    base_url: &str,
) -> Result<Option<Proxy>, InvalidSetting> {
    let upstream: Uri = base_url.parse().expect("it was checked");
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
