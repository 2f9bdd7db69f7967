//! A whole body in memory.

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::error::ApiError;
use crate::memory::Share;

/// A body of more bytes than this is processed on a blocking thread. That takes milliseconds, in which
/// the serving thread serves its other connections.
const LARGE_BODY: usize = 256 * 1024;

/// A whole body, and its share of the memory budget.
pub(crate) struct Buffered {
    pub bytes: Bytes,
    pub share: Share,
}

impl AsRef<[u8]> for Buffered {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Processes a body: on a blocking thread if it is large.
///
/// # Errors
/// 500 if `work` panics there.
pub(super) async fn with_body<T: Send + 'static>(
    body: Bytes,
    work: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<T, ApiError> {
    if body.len() <= LARGE_BODY {
        return Ok(work(&body));
    }
    spawn_blocking(move || work(&body)).await.map_err(|_| ApiError::internal())
}
