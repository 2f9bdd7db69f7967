//! Serves one connection over HTTP/2, on which each request is a stream.
//!
//! Clients use it with prior knowledge (RFC 9113, section 3.3); with TLS, the proxy in front does. Floods
//! without a request end the connection: streams that are reset at once, endless CONTINUATION frames,
//! tiny pieces of bodies (see `h2::server::Builder`).

mod answer;
mod streams;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use axum::Router;
use h2::Reason;
use http::header::{EXPECT, HOST};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::ServerLimits;
use super::connections::{ConnectionGuard, RequestGuard};
use super::exchange::{RequestBody, drain, with_peer};
use super::state::State;
use super::stream::{BUFFER, Io, LINGER_PAUSE};
use super::timer::poll_timer;
use answer::{Http2Body, SendProgress};
use streams::Streams;

/// The most requests on a connection at once. The limit of connections bounds the requests on all of them
/// together, so a higher value would not cost more memory.
const MAX_STREAMS: u32 = 256;

/// How many bytes of a request's body may arrive before they are read.
const STREAM_WINDOW: u32 = 2 * BUFFER as u32;

/// The same for all requests of a connection, so that an unread body blocks no other request.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// The largest headers of a request, as over HTTP/1.
const MAX_HEADERS: u32 = 2 * BUFFER as u32;

/// How long a client without a request has to notice that its connection closes.
const GOAWAY_TIME: Duration = LINGER_PAUSE;

/// Serves a connection. Returns the result, or `None` if it was cut off.
pub(super) async fn http2(
    io: Io,
    peer: Option<SocketAddr>,
    router: Router,
    limits: ServerLimits,
    shutdown: CancellationToken,
    open: &ConnectionGuard,
) -> Option<hyper::Result<()>> {
    let state = &open.state;
    state.set_http2();
    let streams = Streams::new(limits.client_timeout);
    let service = service_fn(|request: Request<Incoming>| {
        let stream = open.stream(!request.body().is_end_stream());
        exchange(router.clone(), with_peer(request, peer), stream)
    });
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(BUFFER)
        // A client that is still connected answers a ping.
        .keep_alive_interval(limits.client_timeout)
        .keep_alive_timeout(limits.client_timeout)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut running = pin!(streams.run());
    let mut goaway = None;
    loop {
        tokio::select! {
            // The connection first, then the streams that it started, because they update the
            // state.
            biased;
            result = &mut connection => return Some(result),
            never = &mut running => match never {},
            () = state.close_requested() => return None,
            () = idle(state, limits, goaway) => {
                if goaway.is_some() {
                    return None;
                }
            }
            () = shutdown.cancelled(), if goaway.is_none() => {}
        }
        // Take no new requests, and end with the last current one.
        goaway = Some(Instant::now());
        connection.as_mut().graceful_shutdown();
    }
}

/// Waits until the connection has exceeded its idle time.
async fn idle(state: &State, limits: ServerLimits, goaway: Option<Instant>) {
    let mut timer = pin!(sleep(limits.client_timeout));
    poll_fn(|context| {
        let deadline = match goaway {
            None => state.deadline(&limits),
            Some(started) => state.idle_since().map(|since| since.max(started) + GOAWAY_TIME),
        };
        let Some(deadline) = deadline else { return Poll::Pending };
        poll_timer(timer.as_mut(), deadline, context)
    })
    .await;
}

/// Answers one request. Without room it is refused, and the client may send it again.
async fn exchange(
    router: Router,
    request: Request<Incoming>,
    stream: Option<RequestGuard>,
) -> Result<Response<Http2Body>, h2::Error> {
    let stream = stream.ok_or(Reason::REFUSED_STREAM)?;
    let sending = SendProgress::current();
    // Reading a body with `Expect: 100-continue` would make the client send it.
    let drains = !request.headers().contains_key(EXPECT);
    let unread = Arc::new(Mutex::new(None));
    let on_body_over = {
        let (over, unread) = (stream.on_body_over(), Arc::clone(&unread));
        move |rest| {
            over();
            *unread.lock().unwrap_or_else(PoisonError::into_inner) = rest;
        }
    };
    let request = in_origin_form(request).map(|body| RequestBody::of(body, on_body_over));
    let Ok(response) = router.oneshot(request).await;
    let rest = unread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(rest) = rest.filter(|_| drains) {
        // A stream with unread input is reset, and some clients then lose the answer.
        drain(rest).await;
    }
    Ok(response.map(|body| Http2Body::new(body, sending, stream)))
}

/// Converts a request to the form of HTTP/1: its URL is a path, and the host is in a header. If a `Host`
/// header already names another host, the request has two.
fn in_origin_form<B>(mut request: Request<B>) -> Request<B> {
    let authority = request.uri().authority();
    let authority = authority.and_then(|host| HeaderValue::try_from(host.as_str()).ok());
    if let Some(authority) = authority {
        let host = request.headers().get(HOST);
        if host.is_none_or(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())) {
            request.headers_mut().append(HOST, authority);
        }
    }
    if let Some(path) = request.uri().path_and_query() {
        *request.uri_mut() = Uri::from(path.clone());
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_becomes_the_host_header() {
        let hosts = |uri: &str, host: Option<&str>| {
            let request = Request::builder().uri(uri);
            let request =
                host.into_iter().fold(request, |request, host| request.header(HOST, host));
            let request = in_origin_form(request.body(()).unwrap());
            let hosts = request.headers().get_all(HOST).iter();
            let hosts: Vec<_> = hosts.map(|host| host.to_str().unwrap().to_owned()).collect();
            (request.uri().to_string(), hosts.join(" "))
        };
        let is = |uri: &str, host, expected: (&str, &str)| {
            assert_eq!(hosts(uri, host), (expected.0.to_owned(), expected.1.to_owned()));
        };
        is("http://a:1/p?q", None, ("/p?q", "a:1"));
        is("http://a:1/p?q", Some("A:1"), ("/p?q", "A:1"));
        is("http://a:1/", Some("b"), ("/", "b a:1"));
        is("/p", Some("b"), ("/p", "b"));
        is("/p", None, ("/p", ""));
    }
}
