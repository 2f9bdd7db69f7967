//! Where a request in Gemini's or OpenAI's form goes, and what it counts as.

mod counted;
mod free;
mod openai;
mod path;

use http::Method;
use http::request::Parts;

use super::auth::Purpose;
use super::error::ApiError;
use crate::gemini::{InteractionPath, Surface};

pub(super) use counted::{CountedCall, ModelSource};
pub(super) use free::{JobStatus, UPLOAD_ID, continues_upload};
pub(super) use path::single_slashes;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    /// The API in whose form it is.
    pub surface: Surface,
    /// The path at Gemini, escaped as it came.
    pub path: String,
    /// What it uses the key for.
    pub purpose: Purpose,
    /// The call that goes through admission; `None` where the request costs nothing.
    pub call: Option<CountedCall>,
    /// Whether it makes Google run agents later, past this service.
    pub schedules_runs: bool,
    /// What its answer tells of batch jobs.
    pub jobs: Option<JobStatus>,
}

/// Why a path cannot be relayed, and the surface in whose form the client is told.
pub(super) type InvalidPath = (Surface, ApiError);

impl Destination {
    /// Reads the path of a request. `/v1/chat/completions` and the other paths that only OpenAI has
    /// are OpenAI's. Both have `/v1/models`, `/v1/files` and `/v1/batches`: these are OpenAI's with
    /// a bearer token and without `x-goog-api-key`.
    ///
    /// A request that neither reads nor deletes is counted, unless it is known to cost nothing. A
    /// path is decoded as Gemini decodes it, so that no other spelling of it bypasses the limits.
    ///
    /// # Errors
    /// 400 for a path that could be read in two ways, and for a method of something that cannot be
    /// a model; 404 for a path of OpenAI's that Gemini does not serve.
    pub(super) fn of(head: &Parts) -> Result<Self, InvalidPath> {
        let raw = single_slashes(head.uri.path());
        let plain = path::plain(&raw).map_err(|error| (surface_of(&raw), error))?;
        match openai::path(&raw, &plain, &head.headers) {
            Some(Ok(path)) => {
                let plain = path::plain(&path).map_err(|error| (Surface::OpenAi, error))?;
                Self::at(Surface::OpenAi, path, &plain, head)
                    .map_err(|error| (Surface::OpenAi, error))
            }
            Some(Err(error)) => Err((Surface::OpenAi, error)),
            None => {
                let surface = surface_of(&plain);
                if surface == Surface::Interactions {
                    path::check_slashes(&raw).map_err(|error| (surface, error))?;
                }
                Self::at(surface, raw.into_owned(), &plain, head).map_err(|error| (surface, error))
            }
        }
    }

    fn at(surface: Surface, path: String, plain: &str, head: &Parts) -> Result<Self, ApiError> {
        let method = &head.method;
        let free = |path| {
            let purpose = free::purpose_of(method, plain);
            let schedules_runs = free::schedules_runs(method, plain);
            let jobs = free::job_status(method, plain);
            Self { surface, path, purpose, call: None, schedules_runs, jobs }
        };
        if matches!(*method, Method::GET | Method::HEAD | Method::DELETE)
            || free::is_free(method, plain)
        {
            return Ok(free(path));
        }
        let (call, purpose) = match surface {
            Surface::Gemini | Surface::Interactions => CountedCall::of_gemini(plain)?,
            Surface::OpenAi => CountedCall::of_openai(plain),
        };
        if call.takes_file && continues_upload(plain, head.uri.query().unwrap_or_default()) {
            return Ok(free(path));
        }
        Ok(Self { surface, path, purpose, call: Some(call), schedules_runs: false, jobs: None })
    }
}

/// The surface of a path of Gemini's.
fn surface_of(path: &str) -> Surface {
    match InteractionPath::of(path) {
        Some(_) => Surface::Interactions,
        None => Surface::Gemini,
    }
}

#[cfg(test)]
mod tests;
