//! Explains why a connection failed, without showing anything of the network: no address, no port, no
//! name.

use std::borrow::Cow;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::iter::successors;

use rustix::io::Errno;
use rustls::CertificateError;

use super::{DestinationError, ProxyError};

/// The reason for a failed connection, if the errors tell.
pub fn reason(error: &(dyn Error + 'static)) -> Option<Cow<'static, str>> {
    causes(error).find_map(|error| {
        if let Some(error) = error.downcast_ref::<ProxyError>() {
            let source = error.source().and_then(reason).map(|reason| format!(": {reason}"));
            return Some(format!("{error}{}", source.unwrap_or_default()).into());
        }
        if let Some(error) = error.downcast_ref::<DestinationError>() {
            return Some(error.to_string().into());
        }
        // The connector's error type is private.
        if error.to_string() == "dns error" {
            return Some("its host name cannot be resolved".into());
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(of_tls(error).into());
        }
        of_io(error.downcast_ref()?).map(Into::into)
    })
}

/// An error and its sources, outermost first, on one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<_> = causes(error).map(ToString::to_string).collect();
    causes.join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| (**error).source())
}

fn of_io(error: &io::Error) -> Option<&'static str> {
    // `source` skips the error that an I/O error wraps.
    if let Some(inner) = error.get_ref() {
        let of_tls = || inner.downcast_ref().map(of_tls);
        return inner.downcast_ref().and_then(of_io).or_else(of_tls);
    }
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    if matches!(errno, Some(Errno::MFILE | Errno::NFILE)) {
        return Some("the gateway has no file descriptors left");
    }
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => "the connection was refused",
        ErrorKind::TimedOut => "the connection timed out",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "the network is unreachable",
        ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => "the connection was closed",
        _ => return None,
    })
}

fn of_tls(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                "its certificate has expired, or is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name"
            }
            _ => "its certificate is not trusted on this machine",
        },
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS",
        _ => "the TLS handshake failed",
    }
}

#[cfg(test)]
mod tests {
    use rustls::InvalidMessage;

    use super::*;

    #[test]
    fn the_reason_for_a_failed_connection_is_given() {
        let tls = |error: rustls::Error| io::Error::new(ErrorKind::InvalidData, error);
        let untrusted = |error| tls(rustls::Error::InvalidCertificate(error));
        for (error, expected) in [
            (ErrorKind::ConnectionRefused.into(), Some("the connection was refused")),
            (ErrorKind::TimedOut.into(), Some("the connection timed out")),
            (io::Error::from_raw_os_error(24), Some("the gateway has no file descriptors left")),
            (io::Error::other("10.0.0.1:443 is odd"), None),
            (
                untrusted(CertificateError::UnknownIssuer),
                Some("its certificate is not trusted on this machine"),
            ),
            (
                untrusted(CertificateError::Expired),
                Some("its certificate has expired, or is not valid yet"),
            ),
            (
                untrusted(CertificateError::NotValidForName),
                Some("its certificate is for another name"),
            ),
            (
                // The connector wraps errors like this.
                io::Error::other(tls(InvalidMessage::InvalidContentType.into())),
                Some("the server does not speak TLS"),
            ),
            (tls(rustls::Error::DecryptError), Some("the TLS handshake failed")),
        ] {
            assert_eq!(reason(&error).as_deref(), expected, "{error}");
        }
    }
}
