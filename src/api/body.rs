//! Reads a whole body: in time, within its size limit and within the memory budget.

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::buffered::Buffered;
use super::encoding::{Coding, decoded, in_utf8};
use super::error::ApiError;
use crate::gateway::Gateway;
use crate::memory::Share;

/// Reads a whole body and decodes it. It holds its share of the memory budget until its last clone is
/// dropped.
///
/// # Errors
/// As for [`buffer`].
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    gateway: &Gateway,
) -> Result<Bytes, ApiError> {
    Ok(Bytes::from_owner(buffer(headers, body, gateway).await?))
}

/// Reads a whole body and decodes it.
///
/// # Errors
/// 400 if the body is incomplete or cannot be decoded, 408 if it does not arrive in time, 413 if it is
/// too large, 415 for an unsupported encoding, 503 if the memory budget is used up.
pub(super) async fn buffer(
    headers: &HeaderMap,
    body: Body,
    gateway: &Gateway,
) -> Result<Buffered, ApiError> {
    let limit = gateway.config.max_body_bytes.min(gateway.bodies.largest());
    let coding = Coding::of(headers)?;
    let time_limit = gateway.config.client_timeout;
    let content_length = headers.get(CONTENT_LENGTH);
    let content_length =
        content_length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if content_length.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::body_too_large(limit));
    }
    let expected = content_length.and_then(|length| usize::try_from(length).ok()).unwrap_or(limit);
    let body = collect(body, limit, expected, gateway.bodies.share());
    let body = timeout(time_limit, body).await;
    let body = body.unwrap_or_else(|_| Err(ApiError::body_too_slow(time_limit)))?;
    let Buffered { bytes, share } = match coding {
        Some(coding) => decoded(coding, body, limit, headers, gateway).await?,
        None => body,
    };
    Ok(Buffered { bytes: in_utf8(bytes)?, share })
}

/// Reads a body of at most `limit` bytes, and probably `expected` bytes. Its share of the memory grows as
/// the body arrives, so a large `Content-Length` alone takes none.
///
/// # Errors
/// 400 if the body is incomplete, 413 if it is too large, 503 if the memory budget is used up.
pub(crate) async fn collect(
    mut body: Body,
    limit: usize,
    expected: usize,
    mut share: Share,
) -> Result<Buffered, ApiError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::body_broken())?.into_data() else { continue };
        if data.len() > limit - whole.len() {
            return Err(ApiError::body_too_large(limit));
        }
        share.grow(data.len())?;
        if whole.is_empty() && body.is_end_stream() {
            return Ok(Buffered { bytes: data, share });
        }
        append(&mut whole, &data, expected);
    }
    Ok(Buffered { bytes: whole.into(), share })
}

/// Copies a piece, because a small piece would keep its whole receive buffer alive.
fn append(whole: &mut Vec<u8>, piece: &[u8], expected: usize) {
    let needed = whole.len() + piece.len();
    if needed > whole.capacity() {
        let capacity = (2 * whole.capacity()).min(expected).max(needed);
        whole.reserve_exact(capacity - whole.len());
    }
    whole.extend_from_slice(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_given_the_capacity_of_its_content_length_and_no_more() {
        let mut whole = Vec::new();
        for _ in 0..10 {
            append(&mut whole, &[0; 100], 1000);
            assert!(whole.capacity() <= 1000);
        }
        append(&mut whole, &[0; 100], 1000);
        assert_eq!(whole.len(), 1100);
    }
}
