//! Requests for generations: who sent them, and their bodies.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequest;
use http::{Extensions, HeaderMap, HeaderName, Request};
use serde::de::DeserializeOwned;

use super::auth::Caller;
use super::error::ApiError;
use super::json;
use crate::dispatch::CallObserver;
use crate::gateway::Gateway;
use crate::memory::Share;

/// The header that names a semaphore, for requests whose body does not.
pub(super) const EXTERNAL_SEMAPHORE_ID: HeaderName =
    HeaderName::from_static("x-external-semaphore-id");

/// The semaphore that a header names.
pub(super) fn semaphore_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(EXTERNAL_SEMAPHORE_ID)?;
    Some(String::from_utf8_lossy(id.as_bytes()).into_owned())
}

/// A request for one or many generations.
#[derive(Debug)]
pub(super) struct Incoming<T> {
    pub caller: Caller,
    /// The semaphore that the header names.
    pub semaphore: Option<String>,
    pub body: T,
    /// The body's share of the memory budget, held until the request is answered.
    pub share: Share,
    /// Who is told what happens to its calls.
    pub observer: Option<Arc<dyn CallObserver>>,
}

/// The observer of a request's calls, if it has one.
pub(crate) fn observer(extensions: &Extensions) -> Option<Arc<dyn CallObserver>> {
    extensions.get().cloned()
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<Gateway> for Incoming<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, gateway: &Gateway) -> Result<Self, ApiError> {
        let caller = Caller::of(request.headers(), request.uri().query(), gateway);
        if caller.is_admin() {
            // The server's key pays whatever the body says. If there is none, the body is not read.
            caller.payer(None, gateway)?;
        }
        let semaphore = semaphore_id(request.headers());
        let observer = observer(request.extensions());
        let (body, share) = json::read(request, gateway).await?;
        Ok(Self { caller, semaphore, body, share, observer })
    }
}
