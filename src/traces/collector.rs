//! The HTTP client of the exporter, on the client that the rest of the gateway uses.
//!
//! The exporter has a thread of its own, and this client a runtime on that thread. So a slow receiver takes
//! no time of the threads that serve requests.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, PROXY_AUTHORIZATION};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::settings::Collector;
use super::trouble::Trouble;
use crate::connect::{Proxy, UpstreamConnector, unreachable, upstream_connector};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

type Http = legacy::Client<HttpsConnector<UpstreamConnector>, Full<Bytes>>;

/// Posts spans to a receiver.
pub(super) struct CollectorClient {
    runtime: Runtime,
    http: Http,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What an HTTP proxy that forwards requests is told.
    proxy_authorization: Option<HeaderValue>,
    time_limit: Duration,
    compresses: bool,
    trouble: Arc<Trouble>,
}

impl CollectorClient {
    /// A client of a receiver. Failures are noted as `trouble`.
    ///
    /// # Errors
    /// If TLS is needed and the machine has no CA certificates, or without memory for a runtime.
    pub fn new(collector: &Collector, trouble: Arc<Trouble>) -> io::Result<Self> {
        let Collector { url, headers, timeout, compresses, authorities, proxy } = collector;
        let is_tls = url.scheme() == Some(&Scheme::HTTPS);
        let connector = upstream_connector(is_tls, proxy.as_ref(), authorities)?;
        let forwarding = proxy.as_ref().filter(|proxy| proxy.is_http() && !is_tls);
        // Exports are seconds apart. An idle connection would not be noticed when it is closed, since the
        // runtime stands still between them.
        let http = legacy::Client::builder(TokioExecutor::new());
        let http = { http }.pool_max_idle_per_host(0).build(connector);
        Ok(Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            http,
            headers: headers.clone(),
            proxy_authorization: forwarding.and_then(Proxy::authorization).cloned(),
            time_limit: *timeout,
            compresses: *compresses,
            trouble,
        })
    }

    fn completed(&self, mut request: Request<Bytes>) -> io::Result<Request<Full<Bytes>>> {
        let headers = request.headers_mut();
        // The exporter's library has read the same from the environment.
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        if let Some(authorization) = &self.proxy_authorization {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        if !self.compresses {
            return Ok(request.map(Full::new));
        }
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.remove(CONTENT_LENGTH);
        let (head, body) = request.into_parts();
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&body)?;
        let packed = packed.finish()?;
        Ok(Request::from_parts(head, Full::new(packed.into())))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = self.http.request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

impl HttpClient for CollectorClient {
    /// Blocks its thread, which is the exporter's.
    fn send_bytes<'a, 'sent>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sent>>
    where
        'a: 'sent,
        Self: 'sent,
    {
        Box::pin(async move {
            let request = self.completed(request)?;
            let sent = async { timeout(self.time_limit, self.send(request)).await };
            let sent = self.runtime.block_on(sent).unwrap_or_else(|_| Err(TimedOut.into()));
            match &sent {
                Ok(response) if !response.status().is_success() => {
                    self.trouble.because(response.status().to_string());
                }
                Ok(_) => {}
                Err(error) => self.trouble.because(reason(&**error)),
            }
            sent
        })
    }
}

/// A reason that shows nothing of the network.
fn reason(error: &(dyn Error + 'static)) -> String {
    if error.is::<TimedOut>() {
        return error.to_string();
    }
    unreachable::reason(error).map_or("the connection broke".to_owned(), Into::into)
}

/// The receiver took too long.
#[derive(Debug, thiserror::Error)]
#[error("it did not answer in time")]
struct TimedOut;

impl fmt::Debug for CollectorClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectorClient").finish_non_exhaustive()
    }
}
