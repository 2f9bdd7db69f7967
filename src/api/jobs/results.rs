//! The results of a job, as lines.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream::try_unfold;
use http::HeaderValue;
use http::header::CONTENT_TYPE;

use super::query::Query;
use crate::api::error::ApiError;
use crate::gateway::Gateway;
use crate::jobs::{Job, JobId, JobNumber, Order, ResultPage, StoreError, StoredResult, Watch};

/// The parameters of `GET /jobs/{job_id}/results`.
pub(super) const PARAMETERS: &[&str] = &["order", "after", "follow", "only"];

/// How many results, and about how many bytes of them, are read at once.
const PAGE: u32 = 512;
const PAGE_BYTES: usize = 256 * 1024;

/// The type of lines of JSON.
pub(in crate::api) const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// Which results are read, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ResultQuery {
    pub order: Order,
    pub only_failed: bool,
    /// The position after which reading begins.
    pub after: u64,
    /// Whether reading goes on until the job has ended.
    pub follows: bool,
}

impl ResultQuery {
    /// Reads the parameters.
    ///
    /// # Errors
    /// 422 for parameters that cannot be used.
    pub(super) fn read(query: Option<&str>) -> Result<Self, ApiError> {
        let query = Query::read(query, PARAMETERS)?;
        let by_completion = query.is_second("order", ["input", "completion"])?;
        let order = if by_completion { Order::Completion } else { Order::Input };
        Ok(Self {
            order,
            only_failed: query.is_second("only", ["all", "failed"])?,
            after: query.number("after", i64::MAX as u64)?.unwrap_or_default(),
            follows: query.is_second("follow", ["false", "true"])?,
        })
    }
}

/// Why the results of a job ended early.
#[derive(Debug, thiserror::Error)]
pub(in crate::api) enum ResultsEnded {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job was deleted meanwhile.
    #[error("the job was deleted")]
    Deleted,
    /// This process ends before the job.
    #[error("the gateway is shutting down")]
    ShuttingDown,
}

/// Reads the results of a job page by page.
#[derive(Debug)]
pub(crate) struct ResultReader {
    gateway: Gateway,
    id: JobId,
    number: JobNumber,
    query: ResultQuery,
    is_over: bool,
    watch: Watch,
}

impl ResultReader {
    /// Reads the results of a job.
    pub(crate) fn of(job: &Job, query: ResultQuery, gateway: &Gateway) -> Self {
        let watch = gateway.jobs.watch(job.number);
        let (gateway, id) = (gateway.clone(), job.id.clone());
        Self { gateway, id, number: job.number, query, is_over: false, watch }
    }

    /// The next results; `None` after the last one.
    ///
    /// # Errors
    /// [`ResultsEnded`].
    pub(in crate::api) async fn next(&mut self) -> Result<Option<ResultPage>, ResultsEnded> {
        let ResultQuery { order, only_failed, follows, .. } = self.query;
        if order == Order::Input && only_failed && follows && !self.is_over {
            self.ended().await?;
        }
        let store = self.gateway.jobs.store();
        while !self.is_over {
            let is_last_look = self.watch.is_over();
            let after = self.query.after;
            let page =
                store.results(self.number, order, only_failed, after, PAGE, PAGE_BYTES).await?;
            if let Some(last) = page.results.last() {
                self.query.after = last.next;
                self.is_over = page.is_last;
                return Ok(Some(page));
            }
            // A job that is gone has no results and looks as if it had ended.
            if store.job(self.id.clone()).await?.is_none() {
                return Err(ResultsEnded::Deleted);
            }
            self.is_over = page.is_last || !follows;
            if !self.is_over {
                wait(&mut self.watch, is_last_look).await?;
            }
        }
        Ok(None)
    }
}

impl ResultReader {
    /// Waits until the job has ended. Until then, an item before one that has failed may fail as well.
    async fn ended(&mut self) -> Result<(), ResultsEnded> {
        let store = self.gateway.jobs.store();
        loop {
            let is_last_look = self.watch.is_over();
            let job = store.job(self.id.clone()).await?.ok_or(ResultsEnded::Deleted)?;
            if job.state.has_ended() {
                return Ok(());
            }
            wait(&mut self.watch, is_last_look).await?;
        }
    }
}

/// Waits until there may be something new, unless there will be nothing.
async fn wait(watch: &mut Watch, is_last_look: bool) -> Result<(), ResultsEnded> {
    if is_last_look {
        return Err(ResultsEnded::ShuttingDown);
    }
    watch.changed().await;
    Ok(())
}

/// Answers with results as lines, page by page.
pub(crate) fn lines(reader: ResultReader) -> Response {
    let pages = try_unfold(reader, async |mut reader| {
        let page = reader.next().await.inspect_err(report)?;
        Ok::<_, ResultsEnded>(page.map(|page| (reader.joined(&page), reader)))
    });
    ([(CONTENT_TYPE, NDJSON)], Body::from_stream(pages)).into_response()
}

/// The longest text that is added to a line, in bytes.
const ADDED: usize = 32;

impl ResultReader {
    /// The lines of a page. In the order of completion, each says where reading continues after it; in
    /// input order its index does.
    pub(in crate::api) fn joined(&self, page: &ResultPage) -> Bytes {
        let size = page.results.iter().map(|result| result.line.len() + ADDED).sum();
        let mut lines = BytesMut::with_capacity(size);
        for StoredResult { line, next, .. } in &page.results {
            match line.strip_suffix(b"}") {
                Some(open) if self.query.order == Order::Completion => {
                    lines.extend_from_slice(open);
                    lines.extend_from_slice(format!(",\"position\":{next}}}\n").as_bytes());
                }
                _ => {
                    lines.extend_from_slice(line);
                    lines.extend_from_slice(b"\n");
                }
            }
        }
        lines.freeze()
    }
}

/// The client sees a connection that breaks. The log says why.
pub(in crate::api) fn report(error: &ResultsEnded) {
    tracing::warn!(%error, "the results of a job ended early");
}
