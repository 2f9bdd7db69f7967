//! The URL of a webhook.

use std::fmt;

use http::Uri;
use url::{Host, Url};

use crate::connect::{AllowedDestinations, is_loopback, is_public};

/// The longest URL, in bytes.
const MAX_URL: usize = 2048;

/// The URL of a webhook, checked. `Debug` and `Display` show its scheme, host and port only: the path
/// and the query may contain secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl {
    uri: Uri,
    origin: String,
}

/// Why a URL is not one for webhooks. The message quotes nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWebhookUrl {
    /// Messages could not be signed.
    #[error("webhooks are turned off here: the setting JOB_WEBHOOK_SECRET is missing")]
    NoSecret,
    /// It is too long.
    #[error("a webhook's URL has at most {MAX_URL} bytes")]
    TooLong,
    /// It is not a URL of HTTP.
    #[error("not an https URL")]
    NotHttp,
    /// It contains a user name or a password.
    #[error("a webhook's URL may not contain a user name or a password")]
    UserInfo,
    /// It is `http`, and the host is not one that may be reached without TLS.
    #[error("a webhook's URL must be https, unless JOB_WEBHOOK_ALLOW names its host")]
    NotHttps,
    /// The host is this machine, or its address is private or reserved.
    #[error(
        "a webhook's address may not be private or reserved, unless JOB_WEBHOOK_ALLOW names it"
    )]
    Private,
}

impl WebhookUrl {
    /// Reads a URL. The parser gives odd forms of IPv4 addresses, such as `0x7f.1` and `2130706433`,
    /// their usual one, so that they are checked like all others.
    pub(super) fn parse(
        text: &str,
        allowed: &AllowedDestinations,
    ) -> Result<Self, InvalidWebhookUrl> {
        if text.len() > MAX_URL {
            return Err(InvalidWebhookUrl::TooLong);
        }
        // The parser would remove these.
        if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(InvalidWebhookUrl::NotHttp);
        }
        let mut url = Url::parse(text).map_err(|_| InvalidWebhookUrl::NotHttp)?;
        if !matches!(url.scheme(), "http" | "https") || url.port() == Some(0) {
            return Err(InvalidWebhookUrl::NotHttp);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidWebhookUrl::UserInfo);
        }
        url.set_fragment(None);
        let uri: Uri = url.as_str().parse().map_err(|_| InvalidWebhookUrl::NotHttp)?;
        let is_tls = url.scheme() == "https";
        let host = url.host().ok_or(InvalidWebhookUrl::NotHttp)?;
        // Parsed as `http` does, a host must be the same.
        if uri.host() != Some(&*host.to_string()) {
            return Err(InvalidWebhookUrl::NotHttp);
        }
        let address = match host {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        };
        let is_allowed = allowed.has_name(&host.to_string())
            || address.is_some_and(|address| allowed.has_address(address));
        let is_private = address.map_or_else(|| is_loopback(&uri), |address| !is_public(address));
        // A name may turn out to have an allowed address.
        let may_be_allowed = is_allowed || (address.is_none() && allowed.has_networks());
        if is_private && !may_be_allowed {
            return Err(InvalidWebhookUrl::Private);
        }
        if !is_tls && !may_be_allowed {
            return Err(InvalidWebhookUrl::NotHttps);
        }
        Ok(Self { uri, origin: url.origin().ascii_serialization() })
    }

    /// The URL to send to.
    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }
}

/// What logs show of a URL: its scheme, host and port.
pub(super) fn origin(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) => url.origin().ascii_serialization(),
        Err(_) => "an invalid URL".to_owned(),
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, allowed: &[&str]) -> Result<WebhookUrl, InvalidWebhookUrl> {
        WebhookUrl::parse(url, &AllowedDestinations::parse(allowed.iter().copied()).unwrap())
    }

    #[test]
    fn a_url_is_shown_without_its_path_and_query() {
        let url = parse("https://Hooks.Example:8443/services/secret?token=secret#secret", &[]);
        let url = url.unwrap();
        assert_eq!(url.to_string(), "https://hooks.example:8443");
        assert!(!format!("{url:?}").contains("secret"));
        let sent = "https://hooks.example:8443/services/secret?token=secret";
        assert_eq!(url.uri().to_string(), sent);
    }

    #[test]
    fn urls_of_public_hosts_are_accepted() {
        for url in [
            "https://hooks.example",
            "https://hooks.example:444/path?query",
            "https://bücher.example/ä",
            "https://8.8.8.8/",
            "https://[2606:4700:4700::1111]:8443/",
            // Resolved, and checked, for each delivery.
            "https://intranet/",
        ] {
            parse(url, &[]).expect(url);
        }
    }

    #[test]
    fn every_form_of_a_private_address_is_refused() {
        for host in [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "gateway.localhost",
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "127.0.1",
            "0177.0.0.1",
            "0x7f.0.0.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "017700000001",
            "%31%32%37.0.0.1",
            "１２７.0.0.1",
            "127。0。0。1",
            "①②⑦.⓪.⓪.①",
            "0",
            "0.0.0.0",
            "10.0.0.1",
            "10.1",
            "167772161",
            "100.64.0.1",
            "169.254.169.254",
            "0xa9fea9fe",
            "2852039166",
            "169.16689662",
            "172.16.0.1",
            "192.0.2.1",
            "192.168.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::127.0.0.1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::FFFF:169.254.169.254]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b:1::1]",
            "[2001::a00:1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
        ] {
            let url = format!("https://{host}:8443/");
            assert_eq!(parse(&url, &[]), Err(InvalidWebhookUrl::Private), "{host}");
        }
    }

    #[test]
    fn what_is_no_https_url_is_refused() {
        use InvalidWebhookUrl::{NotHttp, NotHttps, TooLong, UserInfo};
        let long = format!("https://hooks.example/{}", "x".repeat(MAX_URL));
        for (url, expected) in [
            ("", NotHttp),
            ("hooks.example", NotHttp),
            ("//hooks.example/", NotHttp),
            ("/path", NotHttp),
            ("ftp://hooks.example/", NotHttp),
            ("file:///etc/passwd", NotHttp),
            ("gopher://127.0.0.1:6379/_", NotHttp),
            ("unix:/run/docker.sock", NotHttp),
            ("data:,x", NotHttp),
            ("https://", NotHttp),
            ("https:///", NotHttp),
            ("https://hooks.example:0/", NotHttp),
            ("https://hooks.example:99999/", NotHttp),
            ("https://hooks.example/\r\nHost: x", NotHttp),
            ("https://hooks.exa\tmple/", NotHttp),
            (" https://hooks.example/", NotHttp),
            ("https://ho oks.example/", NotHttp),
            ("https://[fe80::1%25eth0]/", NotHttp),
            ("https://1.2.3.4.5/", NotHttp),
            ("https://256.256.256.256/", NotHttp),
            ("https://user@hooks.example/", UserInfo),
            ("https://user:secret@hooks.example/", UserInfo),
            ("https://:secret@hooks.example/", UserInfo),
            ("https://hooks.example@127.0.0.1/", UserInfo),
            ("http://hooks.example/", NotHttps),
            ("http://8.8.8.8/", NotHttps),
            (&long, TooLong),
        ] {
            assert_eq!(parse(url, &[]), Err(expected), "{url}");
        }
    }

    #[test]
    fn allowed_hosts_and_addresses_may_be_private_and_plain() {
        let allowed = ["hooks.internal", "localhost", "10.0.0.0/8", "::1"];
        for url in [
            "http://hooks.internal:8080/",
            "http://HOOKS.internal./",
            "http://localhost/",
            "https://10.1.2.3/",
            "http://10.1.2.3/",
            "http://0x0a010203/",
            "http://[::ffff:10.1.2.3]/",
            "http://[::1]:8080/",
            // May have an address in 10.0.0.0/8, which is checked for each delivery.
            "http://other.internal/",
        ] {
            parse(url, &allowed).expect(url);
        }
        for url in ["https://127.0.0.1/", "http://192.168.0.1/", "https://[::2]/"] {
            assert_eq!(parse(url, &allowed), Err(InvalidWebhookUrl::Private), "{url}");
        }
        let plain = parse("http://8.8.8.8/", &allowed);
        assert_eq!(plain, Err(InvalidWebhookUrl::NotHttps));
        let other = parse("http://other.internal/", &["hooks.internal"]);
        assert_eq!(other, Err(InvalidWebhookUrl::NotHttps));
    }
}
