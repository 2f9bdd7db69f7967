//! Connects through a proxy, up to the point where the destination answers.

use std::future::ready;
use std::io;

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::SocksV5;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tower::{BoxError, Service, service_fn};

use super::proxy::port;
use super::{CONNECT_TIMEOUT, Io, Proxy, UpstreamStream};

/// The longest head of a response to CONNECT, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Why a proxy did not connect. Contains neither its address nor anything that the proxy wrote.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The connection to the proxy failed.
    #[error("the proxy cannot be reached")]
    Unreachable(#[source] BoxError),
    /// The proxy requires credentials, or rejected them.
    #[error("the proxy requires a user name and a password, or rejects those it was given (407)")]
    Unauthorized,
    /// The proxy answered CONNECT with this status.
    #[error("the proxy refused to connect ({0})")]
    Refused(StatusCode),
    /// The SOCKS handshake failed for this reason.
    #[error("the proxy did not connect ({0})")]
    Socks(String),
    /// The name could not be resolved here, as `socks5` requires.
    #[error("its host name cannot be resolved on this machine")]
    Unresolved(#[source] Option<io::Error>),
    /// The connection broke, or the proxy speaks another protocol.
    #[error("the proxy closed the connection, or is not an HTTP proxy")]
    Broken(#[source] hyper::Error),
    /// The proxy sent unexpected data, or the destination's URL has no host.
    #[error("the proxy did not open a tunnel")]
    NoTunnel,
    /// The proxy did not connect before the timeout.
    #[error("the proxy did not connect in time")]
    TimedOut,
}

/// Connects through a proxy.
pub(super) struct ProxyConnector {
    proxy: Proxy,
    address: Uri,
    connector: HttpsConnector<HttpConnector>,
}

impl ProxyConnector {
    pub(super) fn new(proxy: Proxy, connector: HttpsConnector<HttpConnector>) -> Self {
        Self { address: proxy.address(), proxy, connector }
    }

    /// Connects to a destination; for `http` through an HTTP proxy, to the proxy.
    pub(super) async fn connect(&self, destination: Uri) -> Result<UpstreamStream, ProxyError> {
        let connected = timeout(CONNECT_TIMEOUT, self.handshake(destination)).await;
        connected.unwrap_or(Err(ProxyError::TimedOut))
    }

    async fn handshake(&self, destination: Uri) -> Result<UpstreamStream, ProxyError> {
        let host = destination.host().ok_or(ProxyError::NoTunnel)?;
        let authority = format!("{host}:{}", port(&destination));
        // Resolve first: the proxy may not wait once it is connected.
        let authority = match self.proxy.resolves_here() {
            true => resolve(&authority).await?,
            false => authority,
        };
        let io = self.connector.clone().call(self.address.clone()).await;
        let io = io.map_err(ProxyError::Unreachable)?;
        let is_forwarded = self.proxy.is_http() && destination.scheme() == Some(&Scheme::HTTP);
        let io = if is_forwarded {
            io
        } else if self.proxy.is_http() {
            tunnel(io, &authority, self.proxy.authorization()).await?
        } else {
            socks(io, &self.proxy, &authority).await?
        };
        Ok(UpstreamStream { io, is_forwarded })
    }
}

async fn resolve(authority: &str) -> Result<String, ProxyError> {
    let found = lookup_host(authority).await;
    let mut found = found.map_err(|error| ProxyError::Unresolved(Some(error)))?;
    found.next().map(|address| address.to_string()).ok_or(ProxyError::Unresolved(None))
}

/// Opens a tunnel with CONNECT. hyper-util's own tunnel does not report the status of a refusal.
async fn tunnel(
    io: Io,
    authority: &str,
    authorization: Option<&HeaderValue>,
) -> Result<Io, ProxyError> {
    let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(io).await;
    let (mut sender, connection) = handshake.map_err(ProxyError::Broken)?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .header(header::HOST, authority)
        .body(Empty::<Bytes>::new());
    let mut request = request.map_err(|_| ProxyError::NoTunnel)?;
    if let Some(authorization) = authorization {
        request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
    }
    let response = sender.send_request(request).await.map_err(ProxyError::Broken)?;
    match response.status() {
        status if status.is_success() => {}
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => return Err(ProxyError::Unauthorized),
        status => return Err(ProxyError::Refused(status)),
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(ProxyError::Broken)?;
    let parts = upgraded.downcast::<Io>().map_err(|_| ProxyError::NoTunnel)?;
    // In TLS the client sends first, so bytes that are already here come from the proxy.
    parts.read_buf.is_empty().then_some(parts.io).ok_or(ProxyError::NoTunnel)
}

async fn socks(io: Io, proxy: &Proxy, authority: &str) -> Result<Io, ProxyError> {
    let destination: Uri = authority.parse().map_err(|_| ProxyError::NoTunnel)?;
    let mut io = Some(io);
    let connected = service_fn(move |_: Uri| ready(io.take().ok_or(())));
    let mut socks = SocksV5::new(proxy.address(), connected);
    if let Some((user, password)) = proxy.credentials() {
        socks = socks.with_auth(user.to_owned(), password.to_owned());
    }
    let connected = socks.call(destination).await;
    connected.map_err(|error| ProxyError::Socks(error.to_string().replace("SOCKS error", "SOCKS5")))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::connect::{Authorities, tcp, with_tls};

    #[tokio::test(start_paused = true)]
    async fn a_silent_proxy_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let destination = Uri::from_static("https://g.example");
        for scheme in ["http", "socks5h"] {
            let url = format!("{scheme}://{address}");
            let proxy = Proxy::parse(&url, "", &destination).unwrap().unwrap();
            let connector = with_tls(Authorities::default().tls(false).unwrap(), tcp());
            let failed = ProxyConnector::new(proxy, connector).connect(destination.clone()).await;
            assert!(matches!(failed, Err(ProxyError::TimedOut)), "{failed:?}");
        }
    }
}
