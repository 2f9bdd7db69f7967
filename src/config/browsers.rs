//! Settings for browsers and for use of the server's key: `ENVIRONMENT_FALLBACK_SCOPE`, `CORS_ORIGINS`
//! and `ALLOWED_HOSTS`.

use std::str::FromStr;

use http::{HeaderValue, Uri};

use super::{ALLOWED_HOSTS, CORS_ORIGINS, InvalidSetting, Lookup, invalid};

/// What requests without a key may do with the server's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackScope {
    /// Everything that the key allows at Gemini.
    All,
    /// Generate, embed, count tokens, and list models.
    Generation,
}

impl FromStr for FallbackScope {
    type Err = ();

    fn from_str(scope: &str) -> Result<Self, ()> {
        match scope {
            "all" => Ok(Self::All),
            "generation" => Ok(Self::Generation),
            _ => Err(()),
        }
    }
}

/// The origins whose web pages may read answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// Every origin. Its pages need their own key; otherwise any page that somebody on this network
    /// visits could spend the server's.
    Any,
    /// These origins, as browsers write them in `Origin`; none by default. Their pages may also
    /// spend the server's key, like any other client.
    These(Vec<HeaderValue>),
}

impl CorsOrigins {
    /// Whether pages of an origin may read answers.
    pub fn allow(&self, origin: &HeaderValue) -> bool {
        *self == Self::Any || self.name(origin)
    }

    /// Whether an origin is named, so that its pages may spend the server's key.
    pub fn name(&self, origin: &HeaderValue) -> bool {
        matches!(self, Self::These(origins) if origins.contains(origin))
    }

    /// Whether no origin is allowed.
    pub fn are_none(&self) -> bool {
        *self == Self::These(Vec::new())
    }

    pub(super) fn read(settings: &Lookup<'_>) -> Result<Self, InvalidSetting> {
        const EXPECTED: &str = "* or origins separated by commas, such as https://app.example or http://localhost:5173";
        let origins = settings.list(CORS_ORIGINS);
        if origins == ["*"] {
            return Ok(Self::Any);
        }
        let origins = origins.iter().map(|origin| origin_header(origin));
        let origins: Option<_> = origins.collect();
        origins.map(Self::These).ok_or_else(|| invalid(CORS_ORIGINS, EXPECTED))
    }
}

/// An origin as browsers write it: scheme, host and port in lower case, and nothing else.
fn origin_header(origin: &str) -> Option<HeaderValue> {
    let origin = origin.to_ascii_lowercase();
    let uri: Uri = origin.parse().ok()?;
    let written = format!("{}://{}", uri.scheme_str()?, uri.authority()?);
    (written == origin && !origin.contains('@')).then(|| HeaderValue::try_from(origin).ok())?
}

/// Reads the names of `ALLOWED_HOSTS`.
pub(super) fn allowed_hosts(settings: &Lookup<'_>) -> Result<Vec<String>, InvalidSetting> {
    const EXPECTED: &str = "host names without ports, separated by commas";
    let hosts = settings.list(ALLOWED_HOSTS);
    let is_name = |host: &String| {
        host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    if hosts.iter().all(is_name) { Ok(hosts) } else { Err(invalid(ALLOWED_HOSTS, EXPECTED)) }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn read(name: &'static str, value: &str) -> Result<Config, InvalidSetting> {
        Config::read(|variable| (variable == name).then(|| value.to_owned()))
    }

    #[test]
    fn origins_are_read_in_the_form_that_browsers_send() {
        let origins = |value: &str| read("CORS_ORIGINS", value).unwrap().cors_origins;
        assert!(origins("").are_none());
        assert_eq!(origins("*"), CorsOrigins::Any);
        let two = origins("https://App.example , http://localhost:5173");
        for (origin, allowed) in [
            ("https://app.example", true),
            ("http://localhost:5173", true),
            ("http://app.example", false),
            ("https://app.example:8443", false),
            ("http://localhost", false),
            ("null", false),
        ] {
            assert_eq!(two.allow(&HeaderValue::from_static(origin)), allowed, "{origin}");
        }
        let evil = HeaderValue::from_static("https://evil.example");
        let any = origins("*");
        assert!(any.allow(&evil) && !any.name(&evil), "its pages need their own key");
        for wrong in ["app.example", "https://app.example/", "https://a/b", "*,https://a", "null"] {
            assert_eq!(read("CORS_ORIGINS", wrong).unwrap_err().variable, "CORS_ORIGINS");
        }
    }

    #[test]
    fn allowed_hosts_have_no_port() {
        let hosts = read("ALLOWED_HOSTS", "gateway.internal,gw").unwrap().allowed_hosts;
        assert_eq!(hosts, ["gateway.internal", "gw"]);
        for wrong in ["gw:5004", "http://gw", "a b"] {
            assert_eq!(read("ALLOWED_HOSTS", wrong).unwrap_err().variable, "ALLOWED_HOSTS");
        }
    }

    #[test]
    fn the_fallback_scope_is_all_or_generation() {
        let scope = |value: &str| {
            read("ENVIRONMENT_FALLBACK_SCOPE", value).map(|config| config.fallback_scope)
        };
        assert_eq!(scope(""), Ok(FallbackScope::All));
        assert_eq!(scope("generation"), Ok(FallbackScope::Generation));
        assert!(scope("files").is_err());
    }
}
