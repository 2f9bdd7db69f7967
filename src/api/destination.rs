//! Where a request in the words of Gemini or of OpenAI leads, and what it costs.

mod counted;
mod free;
mod openai;
mod path;

use http::Method;
use http::request::Parts;

use super::auth::Purpose;
use super::error::ApiError;
use crate::gemini::Surface;

pub(super) use counted::{Counted, Target};
pub(super) use path::single_slashes;

/// Where a request leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    /// Whose words it is in.
    pub surface: Surface,
    /// The path at Gemini, escaped as it came.
    pub path: String,
    /// What it does with the key that pays for it.
    pub purpose: Purpose,
    /// The call that is counted; `None` where the request costs nothing.
    pub call: Option<Counted>,
}

/// Why a request leads nowhere, in the words of whose surface.
pub(super) type Misdirected = (Surface, ApiError);

impl Destination {
    /// Reads the path of a request. `/v1/chat/completions` and what else OpenAI alone has is
    /// OpenAI's. `/v1/models`, `/v1/files` and `/v1/batches` are of both: OpenAI's with a bearer
    /// token and without `x-goog-api-key`.
    ///
    /// Whatever is neither read nor deleted is counted, unless it is known to cost nothing. A path
    /// is read as Gemini reads it, with what is escaped in it, so that nothing generates past the
    /// limits under another spelling.
    ///
    /// # Errors
    /// 400 for a path that could lead elsewhere, and for a call of something that is no model; 404
    /// for what OpenAI has and Gemini has not.
    pub(super) fn of(head: &Parts) -> Result<Self, Misdirected> {
        let raw = single_slashes(head.uri.path());
        let plain = path::plain(&raw).map_err(|error| (Surface::Gemini, error))?;
        match openai::path(&raw, &plain, &head.headers) {
            Some(Ok(path)) => {
                let plain = path::plain(&path).map_err(|error| (Surface::OpenAi, error))?;
                Self::at(Surface::OpenAi, path, &plain, &head.method)
                    .map_err(|error| (Surface::OpenAi, error))
            }
            Some(Err(error)) => Err((Surface::OpenAi, error)),
            None => Self::at(Surface::Gemini, raw.into_owned(), &plain, &head.method)
                .map_err(|error| (Surface::Gemini, error)),
        }
    }

    fn at(surface: Surface, path: String, plain: &str, method: &Method) -> Result<Self, ApiError> {
        if matches!(*method, Method::GET | Method::HEAD | Method::DELETE)
            || free::is_free(method, plain)
        {
            let purpose = free::purpose_of(method, plain);
            return Ok(Self { surface, path, purpose, call: None });
        }
        let (call, purpose) = match surface {
            Surface::Gemini => Counted::of_gemini(plain)?,
            Surface::OpenAi => Counted::of_openai(plain),
        };
        Ok(Self { surface, path, purpose, call: Some(call) })
    }
}

#[cfg(test)]
mod tests;
