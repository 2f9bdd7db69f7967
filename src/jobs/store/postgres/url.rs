//! The URL of the database.

use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;

/// How long connecting may take, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the network may lose what is sent before the connection counts as broken.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(20);

/// The URL is not that of a PostgreSQL database. The error quotes nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a PostgreSQL URL")]
pub struct InvalidDatabaseUrl;

/// Reads a URL. Certificates are always verified where TLS is used, so the values of `sslmode` that ask for
/// it are as `require`.
pub(in crate::jobs::store) fn parse(url: &str) -> Result<Config, InvalidDatabaseUrl> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(InvalidDatabaseUrl);
    }
    let url = match url.split_once('?') {
        Some((base, options)) => {
            let options = options.split('&').map(|option| match option {
                "sslmode=verify-full" | "sslmode=verify-ca" => "sslmode=require",
                "sslmode=allow" => "sslmode=prefer",
                option => option,
            });
            format!("{base}?{}", options.collect::<Vec<_>>().join("&"))
        }
        None => url.to_owned(),
    };
    let mut config = Config::from_str(&url).map_err(|_| InvalidDatabaseUrl)?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(InvalidDatabaseUrl);
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(NETWORK_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name("gemini-concurrent-generation");
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::SslMode;

    use super::*;

    #[test]
    fn the_ssl_mode_is_that_of_the_url() {
        for (options, mode) in [
            ("", SslMode::Prefer),
            ("?sslmode=allow", SslMode::Prefer),
            ("?sslmode=disable", SslMode::Disable),
            ("?sslmode=require", SslMode::Require),
            ("?connect_timeout=3&sslmode=verify-full", SslMode::Require),
        ] {
            let config = parse(&format!("postgres://user:secret@db.example/jobs{options}"));
            assert_eq!(config.unwrap().get_ssl_mode(), mode, "{options}");
        }
    }

    #[test]
    fn other_urls_are_invalid() {
        for url in [
            "",
            "host=db",
            "mysql://db",
            "postgres://",
            "postgres://db:port/jobs",
            "postgres://db?sslmode=perhaps",
            "postgres://db?unknown=1",
        ] {
            assert_eq!(parse(url).err(), Some(InvalidDatabaseUrl), "{url}");
        }
    }
}
