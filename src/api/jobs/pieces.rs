//! The bytes of an upload as they come, piece by piece.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt, try_unfold};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::api::encoding::{ANY_RATIO, Coding, MAX_RATIO, PieceDecoder};
use crate::api::error::ApiError;
use crate::memory::{BodyBudget, Share};

/// The pieces of an upload. After an error there is none.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, ApiError>>;

/// How many of the first bytes of a file tell how it is encoded.
const MAGIC: usize = 4;

/// The pieces of a body. Each has to come within a time of the last one.
pub(super) fn received(body: Body, time_limit: Duration) -> Pieces {
    let pieces = try_unfold(body, move |mut body| async move {
        loop {
            let frame = timeout(time_limit, body.frame()).await;
            let frame = frame.map_err(|_| ApiError::body_too_slow(time_limit))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| ApiError::body_broken())?;
            if let Ok(piece) = frame.into_data() {
                return Ok(Some((piece, body)));
            }
        }
    });
    pieces.boxed()
}

/// The pieces of a body, decoded.
pub(super) fn decoded(pieces: Pieces, coding: Coding, budget: &Arc<BodyBudget>) -> Pieces {
    decoded_or(ApiError::not_decoded, pieces, coding, budget)
}

/// The same, with the error for what is not in its encoding.
fn decoded_or(
    invalid: fn(&str) -> ApiError,
    pieces: Pieces,
    coding: Coding,
    budget: &Arc<BodyBudget>,
) -> Pieces {
    let decoded = Decoded {
        pieces,
        coding,
        invalid,
        decoder: None,
        input: Bytes::new(),
        taken: 0,
        given: 0,
        window: budget.share(),
    };
    let pieces = try_unfold(decoded, async |mut decoded| {
        Ok(decoded.next().await?.map(|piece| (piece, decoded)))
    });
    pieces.boxed()
}

/// The pieces of a file, decoded if it is a gzip or a zstd file. Neither starts as JSON does.
///
/// # Errors
/// The first pieces did not come.
pub(super) async fn unpacked(
    mut pieces: Pieces,
    budget: &Arc<BodyBudget>,
) -> Result<Pieces, ApiError> {
    let mut start = Vec::new();
    while start.len() < MAGIC
        && let Some(piece) = pieces.try_next().await?
    {
        start.extend_from_slice(&piece);
    }
    let coding = match *start {
        [0x1f, 0x8b, ..] => Some(Coding::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Coding::Zstd),
        _ => None,
    };
    let first = futures_util::stream::iter([Ok(Bytes::from(start))]);
    let pieces = first.chain(pieces).boxed();
    Ok(match coding {
        Some(coding) => decoded_or(ApiError::file_not_decoded, pieces, coding, budget),
        None => pieces,
    })
}

/// An encoded upload that is being decoded.
struct Decoded {
    pieces: Pieces,
    coding: Coding,
    /// The error for what is not in this encoding.
    invalid: fn(&str) -> ApiError,
    /// From the first bytes on.
    decoder: Option<PieceDecoder>,
    /// What has come and is not decoded yet.
    input: Bytes,
    /// Bytes before and after decoding.
    taken: usize,
    given: usize,
    /// The memory of the decoder.
    window: Share,
}

impl Decoded {
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let invalid = || (self.invalid)(self.coding.name());
            if let Some(decoder) = &mut self.decoder
                && let Some(piece) = decoder.next(&mut self.input).map_err(|_| invalid())?
            {
                self.given = self.given.saturating_add(piece.len());
                if self.given > ANY_RATIO.max(self.taken.saturating_mul(MAX_RATIO)) {
                    return Err(ApiError::expands_too_much(MAX_RATIO));
                }
                return Ok(Some(piece));
            }
            let Some(piece) = self.pieces.try_next().await? else {
                let is_complete = self.decoder.as_ref().is_some_and(PieceDecoder::is_complete);
                return if is_complete { Ok(None) } else { Err(invalid()) };
            };
            self.taken = self.taken.saturating_add(piece.len());
            self.input = match self.input.is_empty() {
                true => piece,
                false => [&self.input[..], &piece].concat().into(),
            };
            // Two bytes tell whether deflate has a header.
            if self.decoder.is_none() && self.input.len() >= 2 {
                let size = self.coding.window(&self.input).ok_or_else(invalid)?;
                self.window.grow(size)?;
                let decoder = PieceDecoder::new(self.coding, &self.input);
                self.decoder = Some(decoder.map_err(|_| invalid())?);
            }
        }
    }
}
