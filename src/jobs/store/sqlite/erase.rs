//! Removes jobs from the disk, in steps that are short enough for others to wait.
//!
//! `secure_delete` overwrites what is deleted with zeros. The write-ahead log still has earlier versions
//! of pages until it is truncated at the end.

use rusqlite::Connection;

use crate::jobs::store::StoreError;

/// The most rows of a step, and about the most bytes.
const MAX_ROWS: usize = 512;
pub(super) const MAX_BYTES: i64 = 4 << 20;

/// The same when there is little room on the disk.
const MAX_BYTES_IF_TIGHT: i64 = 256 << 10;

/// The most pages that a step gives back to the file system.
const MAX_PAGES: i64 = 1024;

/// The same when there is little room on the disk.
const MAX_PAGES_IF_TIGHT: i64 = 64;

/// How far a step came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    More,
    /// A reader needs the log.
    Busy,
    Done,
}

/// Jobs whose upload or deletion was interrupted.
pub(super) fn hidden_jobs(sql: &Connection) -> Result<Vec<i64>, StoreError> {
    let mut query =
        sql.prepare("SELECT number FROM jobs WHERE state IN ('uploading', 'deleting')")?;
    let numbers = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(numbers)
}

/// Removes some of a hidden job. A deletion writes to the log first; if the disk is tight, it writes little
/// at once, and the log is emptied before each step.
pub(super) fn step(sql: &Connection, job: i64, is_tight: bool) -> Result<Step, StoreError> {
    let (max_bytes, max_pages) = match is_tight {
        true => (MAX_BYTES_IF_TIGHT, MAX_PAGES_IF_TIGHT),
        false => (MAX_BYTES, MAX_PAGES),
    };
    if is_tight {
        truncate_log(sql)?;
    }
    let results =
        some(sql, "SELECT seq, length(line) FROM results WHERE job = ?1", job, max_bytes)?;
    if !results.is_empty() {
        delete(sql, &["DELETE FROM results WHERE seq = ?1"], &results)?;
        return Ok(Step::More);
    }
    let blocks = some(sql, "SELECT number, bytes FROM blocks WHERE job = ?1", job, max_bytes)?;
    if !blocks.is_empty() {
        let statements =
            ["DELETE FROM payloads WHERE block = ?1", "DELETE FROM blocks WHERE number = ?1"];
        delete(sql, &statements, &blocks)?;
        return Ok(Step::More);
    }
    let statements = [
        "DELETE FROM failures WHERE job = ?1",
        "DELETE FROM shared_fields WHERE job = ?1",
        "DELETE FROM jobs WHERE number = ?1",
    ];
    delete(sql, &statements, &[job])?;
    let free: i64 = sql.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    if free > 0 {
        let mut vacuum = sql.prepare(&format!("PRAGMA incremental_vacuum({max_pages})"))?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
        return Ok(Step::More);
    }
    Ok(if truncate_log(sql)? { Step::Done } else { Step::Busy })
}

/// Copies the log into the database and empties it. Returns whether no reader prevented it.
pub(super) fn truncate_log(sql: &Connection) -> Result<bool, StoreError> {
    let is_busy: bool = sql.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    Ok(!is_busy)
}

/// Keys of rows that one step removes.
fn some(sql: &Connection, query: &str, job: i64, max_bytes: i64) -> Result<Vec<i64>, StoreError> {
    let mut query = sql.prepare_cached(query)?;
    let mut rows = query.query([job])?;
    let (mut keys, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()?
        && keys.len() < MAX_ROWS
        && bytes < max_bytes
    {
        keys.push(row.get(0)?);
        bytes += row.get::<_, i64>(1)?;
    }
    Ok(keys)
}

/// Runs statements for each key in one transaction.
fn delete(sql: &Connection, statements: &[&str], keys: &[i64]) -> Result<(), StoreError> {
    let transaction = sql.unchecked_transaction()?;
    for statement in statements {
        let mut statement = transaction.prepare_cached(statement)?;
        for key in keys {
            statement.execute([key])?;
        }
    }
    Ok(transaction.commit()?)
}
