//! The enqueued tokens of batch jobs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, Full, Limited};
use tokio::time::timeout;

use super::{Call, CallError, Dispatcher};
use crate::gemini::{
    ApiKey, Forward, JobScanner, Payload, SendContext, Surface, file_size, job_name,
};
use crate::limits::{EnqueuedTokens, Resource};

/// How long to wait for the size of a file.
const SIZE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest description of a file that is read, in bytes.
const MAX_DESCRIPTION: usize = 64 * 1024;

/// Bytes per token of a file of requests. Source: Gemini API docs, "Understand and count tokens".
const BYTES_PER_TOKEN: u64 = 4;

impl Dispatcher {
    /// Whether a call creates a batch job whose tokens are limited.
    pub fn enqueues(&self, call: &Call) -> bool {
        let payer = self.projects.payer(call.key());
        call.kind().enqueues() && self.limiter.limits_enqueued(&payer, call.model().as_str())
    }

    /// Waits until there is room for the tokens of a batch job. `file` is the file with its
    /// requests, where they are not in its body. `None` where its tokens are not limited.
    ///
    /// # Errors
    /// [`CallError::Refused`].
    pub async fn reserve_enqueued(
        &self,
        call: &Call,
        file: Option<&str>,
    ) -> Result<Option<EnqueuedTokens>, CallError> {
        let (tokens, at_least) = match file {
            Some(file) => (self.file_tokens(call.key(), file).await, 0),
            None => {
                let estimate = call.estimate();
                (estimate.cost[Resource::InputTokens], estimate.at_least)
            }
        };
        let (payer, model) = (self.projects.payer(call.key()), call.model().as_str());
        let deadline = call.deadline();
        Ok(self.limiter.reserve_enqueued(&payer, model, tokens, at_least, deadline).await?)
    }

    /// Lets a job hold its tokens that was created by this answer. The tokens of a job whose name is
    /// unknown are given back: its end could not be told.
    pub(super) async fn hold_enqueued(&self, tokens: EnqueuedTokens, answer: Option<&Bytes>) {
        match answer.and_then(|answer| job_name(answer)) {
            Some(job) => tokens.held_by(&self.limiter, &job).await,
            None => tracing::warn!("the answer to a batch job does not name it"),
        }
    }

    /// The tokens of a file, from its size; 0 if that is unknown.
    async fn file_tokens(&self, key: &ApiKey, file: &str) -> u64 {
        let Ok(path) = format!("/v1beta/{file}").parse() else { return 0 };
        let request = Forward {
            surface: Surface::Gemini,
            method: Method::GET,
            path,
            headers: HeaderMap::new(),
            streams: false,
            is_read: false,
            runs_on: false,
        };
        let described = async {
            let payload = Payload::Buffered(Full::default());
            let response = self
                .client
                .pass(&request, Some(key), payload, SendContext::default())
                .await
                .ok()?;
            let body = Limited::new(response.into_body(), MAX_DESCRIPTION).collect().await.ok()?;
            file_size(&body.to_bytes())
        };
        let size = timeout(SIZE_TIMEOUT, described).await.ok().flatten();
        size.unwrap_or_default().div_ceil(BYTES_PER_TOKEN)
    }

    /// A job has ended: it gives its tokens back.
    pub async fn job_ended(&self, key: &ApiKey, job: &str) {
        if self.limiter.has_enqueued() {
            // If the store is unavailable, its tokens come free after two days.
            let _ = self.limiter.job_ended(&self.projects.payer(key), job).await;
        }
    }

    /// A reader of the passing bytes of a status or a list of batch jobs: jobs that have ended give
    /// their tokens back. `None` if no job holds any.
    pub fn job_watch(&self, key: &ApiKey) -> Option<impl FnMut(&[u8]) + Send + use<>> {
        let payer = self.projects.payer(key);
        let limiter = Arc::clone(&self.limiter);
        let mut scanner = JobScanner::default();
        self.limiter.has_enqueued().then_some(move |bytes: &[u8]| {
            let ended = scanner.scan(bytes);
            if ended.is_empty() {
                return;
            }
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move {
                for job in ended {
                    if limiter.job_ended(&payer, &job).await.is_err() {
                        // The next status reports it again.
                        return;
                    }
                }
            });
        })
    }
}
