//! Errors as pages.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use maud::html;

use super::{format, layout};
use crate::api::{ApiError, Code};
use crate::memory::OverBudget;

/// The longest message, in characters. Some quote what was sent.
const MAX_MESSAGE: usize = 1000;

/// An error as a page shows it.
#[derive(Debug, Clone)]
pub(super) struct PageError {
    status: StatusCode,
    message: String,
    retry_after: Option<Duration>,
}

impl PageError {
    /// An error with a status and a sentence.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    /// The same error, with the time after which another attempt can succeed.
    pub fn after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// No such page, job or semaphore.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "There is no such page.")
    }

    /// The error of the page of a job or a semaphore. It may be gone though another page showed it.
    pub fn of_page(error: ApiError) -> Self {
        let gone = |what| {
            let message = format!("There is no such {what}. It may have been deleted.");
            Self::new(StatusCode::NOT_FOUND, message)
        };
        match error.table_code() {
            Code::JobNotFound => gone("job"),
            Code::SemaphoreNotFound => gone("semaphore"),
            _ => error.into(),
        }
    }

    /// There is a semaphore with the name of a new one.
    pub fn semaphore_exists() -> Self {
        let message = "There is a semaphore with this name. Change its limit on its own page.";
        Self::new(StatusCode::CONFLICT, message)
    }

    /// A page of another origin has sent the request.
    pub fn cross_site() -> Self {
        Self::new(StatusCode::FORBIDDEN, "A page of another site has sent this request.")
    }

    /// The request is for a host name that may not be this service's.
    pub fn foreign_host() -> Self {
        let message = "The dashboard is not served under this host name. Add it to ALLOWED_HOSTS.";
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// The form has not the token of its session.
    pub fn forged() -> Self {
        let message = "The form is out of date, or another page has sent it. Reload the page and \
                       send the form again.";
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// The body is no form.
    pub fn not_a_form() -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "The request is not a form.")
    }

    /// The form is too large, or incomplete.
    pub fn form_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "The form is too large, or it is incomplete.")
    }

    /// A schema is not JSON.
    pub fn not_json(error: &serde_json::Error) -> Self {
        let message = format!("The JSON Schema is not JSON: {error}.");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    /// Only another replica knows the account.
    pub fn of_other_replica() -> Self {
        let message = "This replica has not used the account since its start. Another replica has, \
                       and only that one can reset what it learned.";
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The form did not arrive in time.
    pub fn form_too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "The form did not arrive in time.")
    }

    /// What went wrong, in a sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Sets the headers of the error.
    pub fn mark(&self, response: &mut Response) {
        *response.status_mut() = self.status;
        if let Some(wait) = self.retry_after {
            let seconds = HeaderValue::from(wait.as_secs().saturating_add(1));
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
    }
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> Self {
        let (status, retry_after) = (error.table_code().status(), error.retry_after());
        let message = format::at_most(&error.into_text(), MAX_MESSAGE);
        Self { status, message, retry_after }
    }
}

impl From<OverBudget> for PageError {
    fn from(error: OverBudget) -> Self {
        ApiError::from(error).into()
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let mut response = layout::bare(
            title,
            html! {},
            html! {
                p { (self.message) }
                p { a href="/dashboard" { "Back to the overview" } }
            },
        );
        self.mark(&mut response);
        response
    }
}

/// The answer for a path that is not a page.
pub(super) async fn unknown_page() -> PageError {
    PageError::not_found()
}

/// The answer for a page that is not there for this method.
pub(super) async fn wrong_method() -> PageError {
    PageError::new(StatusCode::METHOD_NOT_ALLOWED, "This address takes other requests only.")
}
