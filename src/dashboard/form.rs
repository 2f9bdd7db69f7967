//! The fields of a form.

use std::fmt;

use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use tokio::time::timeout;
use url::form_urlencoded;

use super::failure::PageError;
use crate::api::{ApiError, Buffered, collect};
use crate::gateway::Gateway;
use crate::memory::Share;

/// The largest form, in bytes.
const MAX_FORM: usize = 256 * 1024;

/// How many fields a form has at most.
const MAX_FIELDS: usize = 64;

const FORM: &str = "application/x-www-form-urlencoded";

/// The fields of a form. `Debug` shows none, since one may be a key.
pub(super) struct Form {
    fields: Vec<(String, String)>,
    /// The form's share of the memory for bodies.
    _share: Share,
}

impl Form {
    /// Reads a form.
    ///
    /// # Errors
    /// 415 if the body is no form; 413 if it is too large; 408 if it does not arrive in time; 503 if there
    /// is no memory for it.
    pub async fn read(
        headers: &HeaderMap,
        body: Body,
        gateway: &Gateway,
    ) -> Result<Self, PageError> {
        let is_form = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_form = is_form.and_then(|value| value.split(';').next());
        if !is_form.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(FORM)) {
            return Err(PageError::not_a_form());
        }
        let body = collect(body, MAX_FORM, MAX_FORM, gateway.bodies.share());
        let body = timeout(gateway.config.client_timeout, body).await;
        let Buffered { bytes, share } =
            body.map_err(|_| PageError::form_too_slow())?.map_err(not_read)?;
        let fields = form_urlencoded::parse(&bytes).into_owned().take(MAX_FIELDS).collect();
        Ok(Self { fields, _share: share })
    }

    /// The value of a field; empty if it is missing.
    pub fn get(&self, name: &str) -> &str {
        self.fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value)
    }
}

/// The error of a form that was not read whole. One that is too large may also break off.
fn not_read(error: ApiError) -> PageError {
    match error.table_code().status() {
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST => PageError::form_too_large(),
        _ => error.into(),
    }
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Form(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_shows_no_field_in_debug_output() {
        let fields = vec![("key".to_owned(), "the-admin-key".to_owned())];
        let form = Form { fields, _share: Share::default() };
        assert_eq!((form.get("key"), format!("{form:?}")), ("the-admin-key", "Form(…)".to_owned()));
    }
}
