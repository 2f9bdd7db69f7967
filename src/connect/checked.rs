//! Connects to hosts that callers name, if their addresses are public or allowed.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::Uri;
use http::uri::{PathAndQuery, Scheme};
use tokio::net::lookup_host;
use tokio::time::timeout;
use tower::{BoxError, Service};

use super::destinations::{AllowedDestinations, is_public, unbracketed};
use super::proxy::port;
use super::{CONNECT_TIMEOUT, UpstreamConnector, UpstreamStream};

/// How many addresses of a host are tried.
const MAX_ADDRESSES: usize = 4;

/// Finds the addresses of host names.
pub trait Resolver: Debug + Send + Sync {
    /// The addresses of a host.
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// Resolves names as other programs on this machine do.
#[derive(Debug, Clone, Copy)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let host = host.to_owned();
        Box::pin(async move {
            let found = lookup_host((&*host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Why a host was not connected to. Shows neither its name nor an address.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// The URL has no host.
    #[error("its URL has no host")]
    NoHost,
    /// The name has no addresses.
    #[error("its host name cannot be resolved")]
    Unresolved(#[source] Option<io::Error>),
    /// None of the addresses may be reached.
    #[error("its address is private or reserved, or public and reached without TLS")]
    NotPermitted,
    /// No address answered in time.
    #[error("the connection timed out")]
    TimedOut,
}

/// Makes the connections below HTTP or below TLS. Cheap to clone.
#[derive(Clone)]
pub struct CheckedConnector(Arc<Shared>);

struct Shared {
    allowed: AllowedDestinations,
    resolver: Arc<dyn Resolver>,
    /// To destinations that the operator allows.
    direct: UpstreamConnector,
    /// To public addresses.
    outside: UpstreamConnector,
}

impl CheckedConnector {
    pub(super) fn new(
        allowed: AllowedDestinations,
        resolver: Arc<dyn Resolver>,
        direct: UpstreamConnector,
        outside: UpstreamConnector,
    ) -> Self {
        Self(Arc::new(Shared { allowed, resolver, direct, outside }))
    }
}

impl Service<Uri> for CheckedConnector {
    type Response = UpstreamStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<UpstreamStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { shared.connect(destination).await })
    }
}

impl Shared {
    async fn connect(&self, destination: Uri) -> Result<UpstreamStream, BoxError> {
        let host = unbracketed(destination.host().ok_or(DestinationError::NoHost)?);
        let is_tls = destination.scheme() == Some(&Scheme::HTTPS);
        let addresses = self.addresses(host).await?;
        let permitted = addresses.into_iter().filter_map(|address| {
            let is_allowed = self.allowed.has_name(host) || self.allowed.has_address(address);
            match is_allowed {
                true => Some((address, &self.direct)),
                false => (is_tls && is_public(address)).then_some((address, &self.outside)),
            }
        });
        let permitted: Vec<_> = permitted.take(MAX_ADDRESSES).collect();
        let mut failure = BoxError::from(DestinationError::NotPermitted);
        for (address, connector) in &permitted {
            let mut connector = UpstreamConnector::clone(connector);
            // The connector sees no name, so it cannot resolve the name again.
            let connecting = connector.call(with_address(&destination, *address));
            match timeout(CONNECT_TIMEOUT / permitted.len() as u32, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = DestinationError::TimedOut.into(),
            }
        }
        Err(failure)
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DestinationError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        match self.resolver.resolve(host).await {
            Ok(addresses) if addresses.is_empty() => Err(DestinationError::Unresolved(None)),
            Ok(addresses) => Ok(addresses),
            Err(error) => Err(DestinationError::Unresolved(Some(error))),
        }
    }
}

/// A URL with an address in place of its host, for the connection only.
fn with_address(destination: &Uri, address: IpAddr) -> Uri {
    let mut parts = destination.clone().into_parts();
    let authority = SocketAddr::new(address, port(destination)).to_string();
    parts.authority = Some(authority.parse().expect("an address and a port"));
    parts.path_and_query = Some(PathAndQuery::from_static("/"));
    Uri::from_parts(parts).expect("it has a scheme, an authority and a path")
}
