//! The proxy to Gemini, as its URL describes it.

use std::fmt;
use std::net::IpAddr;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

/// The longest user name or password, in bytes. Source: RFC 1929, section 2.
const MAX_SOCKS_CREDENTIAL: usize = 255;

/// A proxy. Neither `Debug` nor `Display` shows the user name or the password. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    intercept: Intercept,
    uri: Uri,
}

/// An invalid proxy URL. The error quotes nothing of it, since it may contain a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the URL of an http, https, socks5 or socks5h proxy without a path")]
pub struct InvalidProxy;

impl Proxy {
    /// The proxy at a URL, such as `http://user:password@proxy.example:3128`. Without a scheme it is
    /// an HTTP proxy. The user name and the password are percent-encoded. `None` if `no_proxy`
    /// excludes the upstream.
    ///
    /// # Errors
    /// [`InvalidProxy`], also if the proxy would not be used.
    pub fn parse(url: &str, no_proxy: &str, upstream: &Uri) -> Result<Option<Self>, InvalidProxy> {
        let url = checked(url).ok_or(InvalidProxy)?;
        let found =
            |no_proxy| Matcher::builder().all(&url).no(no_proxy).build().intercept(upstream);
        let intercept = found(String::new()).ok_or(InvalidProxy)?;
        let fits =
            |(user, password): (&str, &str)| user.len().max(password.len()) <= MAX_SOCKS_CREDENTIAL;
        if !intercept.raw_auth().is_none_or(fits) {
            return Err(InvalidProxy);
        }
        let uri = with_port(intercept.uri()).ok_or(InvalidProxy)?;
        let spared = no_proxy_entries(no_proxy, port(upstream));
        // The matcher supports `*` for names, but not for addresses.
        let all_are_spared = spared.contains(&"*");
        let is_used = !all_are_spared && found(spared.join(",")).is_some();
        Ok(is_used.then_some(Self { intercept, uri }))
    }

    /// The URL for connections to the proxy: `https` if the proxy itself uses TLS, else `http`.
    pub(super) fn address(&self) -> Uri {
        let mut parts = self.uri.clone().into_parts();
        if !self.speaks_tls() {
            parts.scheme = Some(Scheme::HTTP);
        }
        Uri::from_parts(parts).expect("only the scheme has changed")
    }

    /// Whether it is an HTTP proxy and not a SOCKS proxy.
    pub fn is_http(&self) -> bool {
        self.uri.scheme_str().is_some_and(|scheme| scheme.starts_with("http"))
    }

    /// Whether the connection to the proxy itself uses TLS.
    pub(super) fn speaks_tls(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }

    /// Whether host names are resolved here and not by the proxy.
    pub(super) fn resolves_here(&self) -> bool {
        self.uri.scheme_str() == Some("socks5")
    }

    /// The value of `Proxy-Authorization` for an HTTP proxy.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.intercept.basic_auth()
    }

    /// The user name and the password for a SOCKS proxy.
    pub(super) fn credentials(&self) -> Option<(&str, &str)> {
        self.intercept.raw_auth()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.authority().map_or("", |authority| authority.as_str()))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// Whether a URL's host is this machine. Such URLs never use a proxy, for which the name would mean the
/// proxy's own machine.
pub fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(is_loopback)
}

/// A valid proxy URL with its scheme in lower case. A password with a `/`, `#` or `?` is rejected: a URL
/// parser would read it as a host with a path, and so connect to another host.
fn checked(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let scheme = scheme.to_ascii_lowercase();
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let is_known = matches!(&*scheme, "http" | "https" | "socks5" | "socks5h");
    let is_clean = !authority.contains(['/', '?', '#']) && authority.matches('@').count() <= 1;
    (is_known && is_clean).then(|| format!("{scheme}://{authority}"))
}

/// A proxy's URL with an explicit port.
fn with_port(uri: &Uri) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    let authority = parts.authority.as_ref()?;
    let host = authority.host();
    let written = authority.as_str().strip_prefix(host)?;
    let port = match written.strip_prefix(':') {
        None | Some("") => default_port(uri),
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
    };
    if host.is_empty() {
        return None;
    }
    parts.authority = Some(format!("{host}:{port}").parse().ok()?);
    parts.path_and_query = Some(PathAndQuery::from_static("/"));
    Uri::from_parts(parts).ok()
}

/// The port of a URL.
pub(super) fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or_else(|| default_port(uri))
}

fn default_port(uri: &Uri) -> u16 {
    match uri.scheme_str() {
        Some("https") => 443,
        Some("socks5" | "socks5h") => 1080,
        _ => 80,
    }
}

/// The entries of `NO_PROXY` in the matcher's syntax. Users also write white space between entries,
/// `*.example.com`, brackets around an IPv6 address, and a port, which must match the upstream's.
fn no_proxy_entries(no_proxy: &str, upstream_port: u16) -> Vec<&str> {
    let entries = no_proxy.split(|c: char| c == ',' || c.is_whitespace());
    let entries = entries.filter_map(|entry| {
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse::<u16>().ok()?))
            }
            _ => (entry, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        port.is_none_or(|port| port == upstream_port).then_some(host)
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, no_proxy: &str, upstream: &str) -> Result<Option<Proxy>, InvalidProxy> {
        Proxy::parse(url, no_proxy, &upstream.parse().unwrap())
    }

    #[test]
    fn a_proxy_is_shown_only_with_its_host_and_port() {
        for (url, shown) in [
            ("http://proxy.example:3128", "proxy.example:3128"),
            ("proxy.example:3128/", "proxy.example:3128"),
            ("HTTP://proxy.example", "proxy.example:80"),
            ("https://user:secret@proxy.example", "proxy.example:443"),
            ("user:secret@proxy.example:3128", "proxy.example:3128"),
            ("socks5h://secret@[::1]", "[::1]:1080"),
            ("socks5://user:secret@10.0.0.1:9050", "10.0.0.1:9050"),
        ] {
            let proxy = parse(url, "", "https://g.example").unwrap().expect(url);
            assert_eq!(proxy.to_string(), shown, "{url}");
            assert!(!format!("{proxy:?}").contains("secret"));
        }
    }

    #[test]
    fn credentials_are_decoded() {
        let proxy = parse("http://us%40er:p%2Fw@p.example", "", "https://g.example");
        let proxy = proxy.unwrap().unwrap();
        let authorization = proxy.authorization().unwrap();
        assert_eq!(authorization, "Basic dXNAZXI6cC93");
        assert!(authorization.is_sensitive());
        let proxy = parse("socks5://us%40er:p%2Fw@p.example", "", "https://g.example");
        assert_eq!(proxy.unwrap().unwrap().credentials(), Some(("us@er", "p/w")));
    }

    #[test]
    fn an_ambiguous_url_is_invalid() {
        let long = format!("socks5://user:{}@p.example", "x".repeat(256));
        for url in [
            "",
            "://",
            "http://",
            "ftp://p.example",
            "socks4://p.example",
            "http://p.example/path",
            "http://p.example?query",
            "http://user:12#secret@p.example:3128",
            "http://user:pass/word@p.example:3128",
            "http://user:p@ss@p.example:3128",
            "http://p.example:0",
            "http://p.example:99999",
            "http://p.example:port",
            "http://p example",
            &long,
        ] {
            assert_eq!(parse(url, "", "https://g.example").err(), Some(InvalidProxy), "{url}");
        }
    }

    #[test]
    fn no_proxy_excludes_hosts_suffixes_addresses_and_networks() {
        for (no_proxy, upstream, is_spared) in [
            ("", "https://g.example", false),
            ("*", "https://g.example", true),
            ("x.example, *", "http://10.1.2.3", true),
            ("g.example", "https://g.example", true),
            ("G.Example", "https://g.example", true),
            ("example", "https://g.example", true),
            (".example", "https://g.example", true),
            ("*.example", "https://g.example", true),
            ("other.example, g.example", "https://g.example", true),
            ("other.example g.example", "https://g.example", true),
            ("ample", "https://g.example", false),
            ("x.g.example", "https://g.example", false),
            ("g.example:443", "https://g.example", true),
            ("g.example:8443", "https://g.example", false),
            ("g.example:8443", "https://g.example:8443", true),
            ("10.1.0.0/16", "http://10.1.2.3", true),
            ("10.1.0.0/16", "http://10.2.2.3", false),
            ("10.1.2.3", "http://10.1.2.3:8080", true),
            ("10.1.2.3:80", "http://10.1.2.3", true),
            ("2001:db8::/32", "http://[2001:db8::1]", true),
            ("[2001:db8::1]", "http://[2001:db8::1]", true),
            ("[2001:db8::1]:81", "http://[2001:db8::1]", false),
            ("2001:db8::1", "http://[2001:db8::1]", true),
        ] {
            let proxy = parse("http://p.example", no_proxy, upstream).unwrap();
            assert_eq!(proxy.is_none(), is_spared, "{no_proxy} {upstream}");
        }
    }

    #[test]
    fn this_machine_is_recognized_by_its_names() {
        for (url, is_this_machine) in [
            ("http://localhost:5005", true),
            ("http://LOCALHOST", true),
            ("http://g.localhost.", true),
            ("http://127.0.0.2", true),
            ("http://[::1]:80", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), is_this_machine, "{url}");
        }
    }
}
