//! Reads results page by page.

use bytes::Bytes;
use rusqlite::{Connection, params};

use super::rows;
use crate::jobs::model::{JobNumber, JobState, Order, ResultPage, StoredResult};
use crate::jobs::store::StoreError;
use crate::jobs::store::row::{signed, unsigned};

/// Which results are read: see [`JobStore::results`](crate::jobs::JobStore::results).
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    pub job: JobNumber,
    pub order: Order,
    pub only_failed: bool,
    pub after: u64,
    pub limit: u32,
    pub bytes: usize,
}

impl Query {
    fn statement(&self) -> &'static str {
        match (self.order, self.only_failed) {
            (Order::Input, false) => {
                "SELECT item, seq, line FROM results WHERE job = ?1 AND item >= ?2 ORDER BY item"
            }
            (Order::Input, true) => {
                "SELECT item, seq, line FROM results WHERE job = ?1 AND item >= ?2 \
                 AND failure IS NOT NULL ORDER BY item"
            }
            (Order::Completion, false) => {
                "SELECT item, seq, line FROM results WHERE job = ?1 AND seq > ?2 ORDER BY seq"
            }
            (Order::Completion, true) => {
                "SELECT item, seq, line FROM results WHERE job = ?1 AND seq > ?2 \
                 AND failure IS NOT NULL ORDER BY seq"
            }
        }
    }
}

pub(super) fn page(sql: &Connection, query: &Query) -> Result<ResultPage, StoreError> {
    // One view of both tables.
    let view = sql.unchecked_transaction()?;
    let Some(job) = rows::find(&view, query.job)? else {
        return Ok(ResultPage { results: Vec::new(), is_last: true });
    };
    let has_gaps =
        query.only_failed || query.order == Order::Completion || job.state == JobState::Cancelled;
    let mut statement = view.prepare_cached(query.statement())?;
    let mut rows = statement.query(params![query.job.0, signed(query.after)])?;
    let mut results: Vec<StoredResult> = Vec::new();
    let (mut bytes, mut expected) = (0, query.after);
    let has_more = loop {
        let Some(row) = rows.next()? else { break false };
        let index = unsigned(row.get(0)?);
        let is_full = results.len() >= query.limit as usize || bytes >= query.bytes;
        if (is_full && !results.is_empty()) || query.limit == 0 || (!has_gaps && index != expected)
        {
            break true;
        }
        let line: Vec<u8> = row.get(2)?;
        bytes += line.len();
        expected = index.saturating_add(1);
        let next = match query.order {
            Order::Input => expected,
            Order::Completion => unsigned(row.get(1)?),
        };
        results.push(StoredResult { index, next, line: Bytes::from(line) });
    };
    Ok(ResultPage { results, is_last: job.state.has_ended() && !has_more })
}
