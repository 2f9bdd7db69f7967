//! Batches whose results are sent as lines, each as soon as it is there.

use std::mem;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use http::header::CONTENT_TYPE;
use serde::Serialize;

use super::{BatchRequest, BatchResult, BatchTotals, ItemIds, TotalUsage, prepare};
use crate::api::error::ApiError;
use crate::api::generation_request::{GenerationKind, GenerationRequest};
use crate::api::incoming::Incoming;
use crate::api::jobs::NDJSON;
use crate::gateway::Gateway;
use crate::generation::Generation;
use crate::generation::batch::{EachOutcome, Outcome, generate_each};
use crate::limits::Refused;
use crate::memory::Share;

/// How many results wait for a slow client. While that many wait, no further item is sent.
const UNREAD: usize = 64;

/// A batch that is being answered.
struct Answering<K: GenerationKind> {
    outcomes: EachOutcome<K::Generation>,
    /// The outcome that was read before the answer began.
    first: Option<(usize, OutcomeOf<K>)>,
    ids: Vec<ItemIds>,
    totals: BatchTotals,
    usage: TotalUsage,
    /// Whether the totals were sent.
    is_over: bool,
    _share: Share,
}

type OutcomeOf<K> = Outcome<<<K as GenerationKind>::Generation as Generation>::Value>;

/// Generates all items of a batch, and answers with a line for each as soon as it is there. The last line
/// has the totals.
///
/// # Errors
/// As for [`super::generate_batch`], before the first result.
pub(super) async fn stream_batch<K: GenerationKind>(
    gateway: &Gateway,
    mut incoming: Incoming<BatchRequest<GenerationRequest<K>>>,
) -> Result<Response, ApiError> {
    let share = mem::take(&mut incoming.share);
    let (items, ids) = prepare(gateway, incoming).await?;
    let totals = BatchTotals { total_requests: items.len(), ..BatchTotals::default() };
    let mut outcomes = generate_each(&gateway.dispatcher, &gateway.offload, items, UNREAD);
    let first = outcomes.next().await?;
    let usage = TotalUsage::default();
    let answering =
        Answering::<K> { outcomes, first, ids, totals, usage, is_over: false, _share: share };
    let lines = try_unfold(answering, async |mut answering| {
        let line = answering.next().await.inspect_err(|refused| {
            tracing::warn!(%refused, "a batch ended early");
        })?;
        Ok::<_, Refused>(line.map(|line| (line, answering)))
    });
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response())
}

impl<K: GenerationKind> Answering<K> {
    /// The next line.
    async fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        let next = match self.first.take() {
            Some(first) => Some(first),
            None if self.is_over => None,
            None => self.outcomes.next().await?,
        };
        let Some((index, outcome)) = next else {
            let usage = self.usage.sum();
            let totals = (!mem::replace(&mut self.is_over, true))
                .then(|| line(&BatchTotals { usage, ..self.totals }));
            return Ok(totals);
        };
        self.usage.add(outcome.usage());
        match outcome.result {
            Ok(_) => self.totals.successful_requests += 1,
            Err(_) => self.totals.failed_requests += 1,
        }
        let ids = self.ids.get_mut(index).map(mem::take).unwrap_or_default();
        Ok(Some(line(&BatchResult::<K::Response>::of(index, outcome, ids))))
    }
}

/// A value as a line.
pub(super) fn line(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).expect("a result is written to memory");
    line.push(b'\n');
    line.into()
}
