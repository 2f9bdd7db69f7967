//! Connections to other services: HTTP/1.1, with TLS where the URL asks for it.

use std::io;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore, crypto::ring};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What makes the connections, which never offer anything but HTTP/1.1.
///
/// # Errors
/// With `tls`, where the machine has no CA certificates.
pub fn connector(tls: bool) -> io::Result<HttpsConnector<HttpConnector>> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.enforce_http(false);
    let builder = HttpsConnectorBuilder::new();
    let builder = if tls {
        builder.with_provider_and_native_roots(ring::default_provider())?
    } else {
        builder.with_tls_config(no_tls())
    };
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}

/// TLS that trusts nobody, for a base URL without TLS: it spares the machine's CA certificates,
/// which take a while to read and are absent from some images.
fn no_tls() -> ClientConfig {
    ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions of TLS")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}
