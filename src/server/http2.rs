//! One connection over HTTP/2: many requests at once, each of which is a stream.
//!
//! Clients speak it with prior knowledge (RFC 9113, section 3.3); with TLS it is the proxy in front
//! that does. What floods a connection without a request in it ends it: streams that are reset at
//! once, CONTINUATION frames without end, tiny pieces of bodies (see `h2::server::Builder`).

mod answer;
mod streams;

use std::future::poll_fn;
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

use super::Limits;
use super::connection::{BUFFER, Io, LINGER_PAUSE, poll_timer};
use super::connections::{Open, OpenStream};
use super::exchange::{RequestBody, drain};
use super::state::State;
use answer::{AnswerBody, Sending};
use streams::Streams;

/// How many requests a connection has at once. All connections together have as many as there may
/// be connections, so that more of them cost no memory.
const MAX_STREAMS: u32 = 256;

/// How many bytes of a request's body may come that nobody has asked for yet.
const STREAM_WINDOW: u32 = 2 * BUFFER as u32;

/// The same for all requests of a connection: one whose body nobody reads holds up no other.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// How large the headers of a request may be, as over HTTP/1.
const MAX_HEADERS: u32 = 2 * BUFFER as u32;

/// How long a client has to take note that a connection closes which has no request.
const GOAWAY_TIME: Duration = LINGER_PAUSE;

/// Serves a connection to the end that is given back: `None` where it was cut off.
pub(super) async fn http2(
    io: Io,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
    open: &Open,
) -> Option<hyper::Result<()>> {
    let state = &open.state;
    state.set_http2();
    let streams = Streams::new(limits.client_timeout);
    let service = service_fn(|request: Request<Incoming>| {
        let stream = open.stream(!request.body().is_end_stream());
        exchange(router.clone(), request, stream)
    });
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(BUFFER)
        // A client that is there answers a ping.
        .keep_alive_interval(limits.client_timeout)
        .keep_alive_timeout(limits.client_timeout)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut running = pin!(streams.run());
    let mut goaway = None;
    loop {
        tokio::select! {
            // The connection first, and the streams that it began next: the state is what it is
            // afterwards.
            biased;
            result = &mut connection => return Some(result),
            never = &mut running => match never {},
            () = state.asked_to_leave() => return None,
            () = idle(state, limits, goaway) => {
                if goaway.is_some() {
                    return None;
                }
            }
            () = shutdown.cancelled(), if goaway.is_none() => {}
        }
        // It takes no new requests, and ends with the last of those it has.
        goaway = Some(Instant::now());
        connection.as_mut().graceful_shutdown();
    }
}

/// Waits until the connection has had no request for as long as it may.
async fn idle(state: &State, limits: Limits, goaway: Option<Instant>) {
    let mut timer = pin!(sleep(limits.client_timeout));
    poll_fn(|context| {
        let deadline = match goaway {
            None => state.deadline(&limits),
            Some(begun) => state.idle_since().map(|since| since.max(begun) + GOAWAY_TIME),
        };
        let Some(deadline) = deadline else { return Poll::Pending };
        poll_timer(timer.as_mut(), deadline, context)
    })
    .await;
}

/// Answers one request, unless there is no room for it: the client may send it again then.
async fn exchange(
    router: Router,
    request: Request<Incoming>,
    stream: Option<OpenStream>,
) -> Result<Response<AnswerBody>, h2::Error> {
    let stream = stream.ok_or(Reason::REFUSED_STREAM)?;
    let sending = Sending::of_this_stream();
    // To read a body that the client has not begun to send would ask for it.
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
        // Some clients lose an answer whose stream is reset behind it, as it is where more is left.
        drain(rest).await;
    }
    Ok(response.map(|body| AnswerBody::new(body, sending, stream)))
}

/// A request as it is over HTTP/1: its URL is a path, and the host is in a header. Where it has a
/// header too that names another host, it has two.
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
    fn the_authority_becomes_the_one_host() {
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
