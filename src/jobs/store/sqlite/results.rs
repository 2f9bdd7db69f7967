//! Reads results page by page.

use bytes::Bytes;
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use super::rows;
use crate::jobs::model::{JobState, Order, ResultPage, StoredResult};
use crate::jobs::store::StoreError;
use crate::jobs::store::query::Query;
use crate::jobs::store::row::{Row, damaged, signed, unsigned};

/// The index in which the results are found.
fn index(query: &Query) -> &'static str {
    match (query.order, query.only_failed) {
        (Order::Input, false) => "sqlite_autoindex_results_1",
        (Order::Input, true) => "failures_by_item",
        (Order::Completion, false) => "results_by_seq",
        (Order::Completion, true) => "failures_by_seq",
    }
}

fn statement(query: &Query) -> &'static str {
    match (query.order, query.only_failed) {
        (Order::Input, false) => {
            "SELECT item, seq, line, checksum FROM results WHERE job = ?1 AND item >= ?2 ORDER BY item"
        }
        (Order::Input, true) => {
            "SELECT item, seq, line, checksum FROM results WHERE job = ?1 AND item >= ?2 \
             AND failure IS NOT NULL ORDER BY item"
        }
        (Order::Completion, false) => {
            "SELECT item, seq, line, checksum FROM results WHERE job = ?1 AND seq > ?2 ORDER BY seq"
        }
        (Order::Completion, true) => {
            "SELECT item, seq, line, checksum FROM results WHERE job = ?1 AND seq > ?2 \
             AND failure IS NOT NULL ORDER BY seq"
        }
    }
}

pub(super) fn page(sql: &Connection, query: &Query) -> Result<ResultPage, StoreError> {
    // One view of both tables.
    let view = sql.unchecked_transaction()?;
    let Some(job) = rows::find(&view, query.job)? else {
        return Ok(ResultPage { results: Vec::new(), is_last: true });
    };
    let has_gaps = query.has_gaps(job.state);
    let mut statement = view.prepare_cached(statement(query))?;
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
        if row.get::<_, i64>(3)? != checksum(query.job.0, signed(index), &line) {
            return Err(damaged("a result was changed on the disk"));
        }
        bytes += line.len();
        expected = index.saturating_add(1);
        let next = match query.order {
            Order::Input => expected,
            Order::Completion => unsigned(row.get(1)?),
        };
        results.push(StoredResult { index, next, line: Bytes::from(line) });
    };
    let stops_early = has_more && results.is_empty() && query.limit > 0;
    if job.state == JobState::Completed && (stops_early || !has_more) {
        check_complete(&view, query, &job)?;
    }
    Ok(ResultPage { results, is_last: job.state.has_ended() && !has_more })
}

/// Checks at the end of the results that none is missing.
fn check_complete(sql: &Connection, query: &Query, job: &Row) -> Result<(), StoreError> {
    let failed = if query.only_failed { "AND failure IS NOT NULL" } else { "" };
    let count =
        format!("SELECT count(*) FROM results INDEXED BY {} WHERE job = ?1 {failed}", index(query));
    let found = sql.prepare_cached(&count)?.query_row([query.job.0], |row| row.get(0))?;
    let succeeded = if query.only_failed { 0 } else { job.progress.succeeded };
    if unsigned(found) == succeeded.saturating_add(job.progress.failed) {
        return Ok(());
    }
    Err(damaged("results are missing"))
}

/// The first bytes of a SHA-256, which is fast where the processor has instructions for it.
pub(super) fn checksum(job: i64, item: i64, line: &[u8]) -> i64 {
    let digest = Sha256::new()
        .chain_update(job.to_le_bytes())
        .chain_update(item.to_le_bytes())
        .chain_update(line)
        .finalize();
    i64::from_le_bytes(std::array::from_fn(|index| digest[index]))
}
