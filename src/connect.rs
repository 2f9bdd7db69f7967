//! Makes connections to other services over HTTP/1.1: with TLS if the URL asks for it, and to Gemini
//! through a proxy if the environment names one. URLs that come from callers lead only to public
//! addresses and to those that the operator allows.

mod authorities;
mod checked;
mod destinations;
mod proxy;
mod tunnel;
pub mod unreachable;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::{BoxError, Service};

pub use authorities::Authorities;
pub use checked::{CheckedConnector, DestinationError, Resolver, SystemResolver};
pub use destinations::{AllowedDestinations, InvalidDestination, is_public};
pub use proxy::{InvalidProxy, Proxy, is_loopback};
use tunnel::ProxyConnector;
pub use tunnel::ProxyError;

/// The timeout for making a connection, without the TLS handshake with the destination. Through a proxy it
/// includes everything up to the connection to the destination.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connector without a proxy, for HTTP/1.1 only.
///
/// # Errors
/// With `tls`, if the machine has no CA certificates.
pub fn connector(tls: bool) -> io::Result<HttpsConnector<HttpConnector>> {
    let config = Authorities::default().tls(tls)?;
    Ok(with_tls(config, tcp()))
}

/// A TLS configuration for other protocols than HTTP, with the system's CA certificates. If TLS is not
/// `needed`, the machine may have none.
///
/// # Errors
/// If TLS is needed and the machine has no CA certificates.
pub fn tls(needed: bool) -> io::Result<ClientConfig> {
    let authorities = Authorities::default();
    authorities.tls(true).or_else(|error| if needed { Err(error) } else { authorities.tls(false) })
}

/// A connector to Gemini, through a proxy if there is one, for HTTP/1.1 only. `tls` says whether Gemini is
/// reached over TLS.
///
/// # Errors
/// If TLS is needed and there are no CA certificates.
pub fn upstream_connector(
    tls: bool,
    proxy: Option<&Proxy>,
    authorities: &Authorities,
) -> io::Result<HttpsConnector<UpstreamConnector>> {
    let config = authorities.tls(tls || proxy.is_some_and(Proxy::speaks_tls))?;
    let proxy_connector =
        proxy.map(|proxy| ProxyConnector::new(proxy.clone(), with_tls(config.clone(), tcp())));
    Ok(with_tls(
        config,
        UpstreamConnector { tcp: tcp(), proxy_connector: proxy_connector.map(Arc::new) },
    ))
}

/// A connector to hosts that callers name, for HTTP/1.1 only. It connects to addresses that `allowed`
/// names, directly, and over TLS to public addresses, through the proxy if there is one. A name is
/// resolved once for a connection, and the connection leads to exactly the address that was checked.
///
/// # Errors
/// With `tls`, if the machine has no CA certificates and `authorities` has none either.
pub fn checked_connector(
    tls: bool,
    allowed: AllowedDestinations,
    resolver: Arc<dyn Resolver>,
    proxy: Option<&Proxy>,
    authorities: &Authorities,
) -> io::Result<HttpsConnector<CheckedConnector>> {
    let config = authorities.tls(tls)?;
    let proxy_connector =
        proxy.map(|proxy| ProxyConnector::new(proxy.clone(), with_tls(config.clone(), tcp())));
    let direct = UpstreamConnector { tcp: tcp(), proxy_connector: None };
    let outside = UpstreamConnector { tcp: tcp(), proxy_connector: proxy_connector.map(Arc::new) };
    Ok(with_tls(config, CheckedConnector::new(allowed, resolver, direct, outside)))
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.enforce_http(false);
    tcp
}

fn with_tls<C>(config: ClientConfig, connector: C) -> HttpsConnector<C> {
    let builder = HttpsConnectorBuilder::new().with_tls_config(config);
    builder.https_or_http().enable_http1().wrap_connector(connector)
}

/// Makes the connections below HTTP or below TLS with Gemini.
#[derive(Clone)]
pub struct UpstreamConnector {
    tcp: HttpConnector,
    proxy_connector: Option<Arc<ProxyConnector>>,
}

/// A connection to a destination or to a proxy.
type Io = MaybeHttpsStream<TokioIo<TcpStream>>;

/// A connection to Gemini, or to a proxy that forwards requests.
#[derive(Debug)]
pub struct UpstreamStream {
    io: Io,
    /// Whether it leads to a proxy that forwards each request. The first line of a request then has
    /// the whole URL.
    is_forwarded: bool,
}

impl Service<Uri> for UpstreamConnector {
    type Response = UpstreamStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<UpstreamStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        if let Some(proxy_connector) = &self.proxy_connector {
            let proxy_connector = Arc::clone(proxy_connector);
            return Box::pin(async move { Ok(proxy_connector.connect(destination).await?) });
        }
        let connecting = self.tcp.call(destination);
        Box::pin(async move {
            let io = MaybeHttpsStream::Http(connecting.await?);
            Ok(UpstreamStream { io, is_forwarded: false })
        })
    }
}

impl Connection for UpstreamStream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_forwarded)
    }
}

impl Read for UpstreamStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for UpstreamStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}
