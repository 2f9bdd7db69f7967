//! Reads jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, params};

use super::commands::Context;
use super::writer::Shared;
use crate::jobs::model::{Failures, Job, JobId, JobNumber, Owner, SharedFields};
use crate::jobs::store::StoreError;
use crate::jobs::store::row::{self, COLUMNS, Row, unsigned};
use crate::jobs::store::specs::Specs;

const VISIBLE: &str = "state NOT IN ('uploading', 'deleting')";

/// The row of a visible job.
pub(super) fn find(sql: &Connection, job: JobNumber) -> Result<Option<Row>, StoreError> {
    Ok(rows(sql, &format!("number = ?1 AND {VISIBLE}"), [job.0])?.pop())
}

fn rows(sql: &Connection, which: &str, values: impl Params) -> Result<Vec<Row>, StoreError> {
    let mut query = sql.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE {which}"))?;
    let mut rows = query.query(values)?;
    let mut found = Vec::new();
    while let Some(columns) = rows.next()? {
        found.push(Row::read(columns)?);
    }
    Ok(found)
}

/// Adds to a row what is kept apart from it.
pub(super) fn job(
    sql: &Connection,
    specs: &Specs,
    row: Row,
    claimed: u64,
) -> Result<Job, StoreError> {
    let spec = match specs.get(row.number) {
        Some(spec) => spec,
        None => {
            let query = "SELECT spec FROM jobs WHERE number = ?1";
            let text: String =
                sql.prepare_cached(query)?.query_row([row.number], |row| row.get(0))?;
            specs.keep(row.number, &text)?
        }
    };
    let failures = match row.progress.failed {
        0 => BTreeMap::new(),
        _ => failures(sql, row.number)?,
    };
    Ok(row.into_job(Arc::clone(&spec), failures, claimed))
}

fn failures(sql: &Connection, job: i64) -> Result<BTreeMap<String, Failures>, StoreError> {
    let mut query =
        sql.prepare_cached("SELECT code, count, example FROM failures WHERE job = ?1")?;
    let failures = query.query_map([job], |row| {
        let (count, example) = (row.get(1)?, row.get(2)?);
        Ok((row.get(0)?, Failures { count: unsigned(count), example: unsigned(example) }))
    })?;
    Ok(failures.collect::<Result<_, _>>()?)
}

impl Context<'_> {
    pub(super) fn job(&self, row: Row) -> Result<Job, StoreError> {
        let claimed = self.claims.unanswered(row.number);
        job(self.sql, self.specs, row, claimed)
    }

    /// Writes what may change of a job.
    pub(super) fn save(&self, row: &Row) -> Result<(), StoreError> {
        let (weighted, seconds, at) = row.progress.rate.to_parts();
        let mut update = self.sql.prepare_cached(
            "UPDATE jobs SET state = ?2, reason = ?3, succeeded = ?4, failed = ?5, input_tokens = ?6, \
             output_tokens = ?7, cost = ?8, rate_weighted = ?9, rate_seconds = ?10, rate_at = ?11, \
             started_at = ?12, ended_at = ?13, announce_at = ?14, announcements = ?15 WHERE number = ?1",
        )?;
        update.execute(params![
            row.number,
            row::state(row.state),
            row.reason.as_ref().map(row::reason),
            row::signed(row.progress.succeeded),
            row::signed(row.progress.failed),
            row::signed(row.progress.input_tokens),
            row::signed(row.progress.output_tokens),
            row::signed(row.progress.cost.0),
            weighted,
            seconds,
            at,
            row.started_at.map(Timestamp::as_millisecond),
            row.ended_at.map(Timestamp::as_millisecond),
            row.announce_at.map(Timestamp::as_millisecond),
            row.announcements,
        ])?;
        Ok(())
    }
}

fn with_specs(sql: &Connection, shared: &Shared, rows: Vec<Row>) -> Result<Vec<Job>, StoreError> {
    let jobs = rows.into_iter().map(|row| {
        let claimed = shared.unanswered(row.number);
        job(sql, &shared.specs, row, claimed)
    });
    jobs.collect()
}

pub(super) fn job_by_id(
    sql: &Connection,
    shared: &Shared,
    id: &JobId,
) -> Result<Option<Job>, StoreError> {
    // One view of all tables.
    let view = sql.unchecked_transaction()?;
    let rows = rows(&view, &format!("id = ?1 AND {VISIBLE}"), [id.as_str()])?;
    Ok(with_specs(&view, shared, rows)?.pop())
}

pub(super) fn shared_fields(sql: &Connection, job: JobNumber) -> Result<SharedFields, StoreError> {
    let query = "SELECT fields FROM shared_fields WHERE job = ?1";
    let text = sql.prepare_cached(query)?.query_row([job.0], |row| row.get(0)).optional()?;
    row::read_shared(text)
}

pub(super) fn jobs(
    sql: &Connection,
    shared: &Shared,
    owner: Option<&Owner>,
    before: Option<JobNumber>,
    limit: u32,
) -> Result<Vec<Job>, StoreError> {
    let before = before.map_or(i64::MAX, |before| before.0);
    let view = sql.unchecked_transaction()?;
    let rows = match owner {
        Some(owner) => {
            let which =
                format!("owner = ?1 AND number < ?2 AND {VISIBLE} ORDER BY number DESC LIMIT ?3");
            rows(&view, &which, params![row::owner(owner), before, limit])?
        }
        None => {
            let which = format!("number < ?1 AND {VISIBLE} ORDER BY number DESC LIMIT ?2");
            rows(&view, &which, params![before, limit])?
        }
    };
    with_specs(&view, shared, rows)
}

pub(super) fn open_jobs(sql: &Connection, shared: &Shared) -> Result<Vec<Job>, StoreError> {
    let view = sql.unchecked_transaction()?;
    let rows = rows(&view, "state IN ('queued', 'running', 'paused') ORDER BY number", [])?;
    with_specs(&view, shared, rows)
}

pub(super) fn ended_before(
    sql: &Connection,
    time: Timestamp,
    limit: u32,
) -> Result<Vec<JobNumber>, StoreError> {
    let mut query = sql.prepare_cached(&format!(
        "SELECT number FROM jobs WHERE ended_at < ?1 AND {VISIBLE} ORDER BY ended_at LIMIT ?2"
    ))?;
    let numbers = query.query_map(params![time.as_millisecond(), limit], |row| row.get(0))?;
    numbers.map(|number| Ok(JobNumber(number?))).collect()
}

/// The state of a job, also of a hidden one.
pub(super) fn any_state(sql: &Connection, job: JobNumber) -> Result<Option<String>, StoreError> {
    let mut query = sql.prepare_cached("SELECT state FROM jobs WHERE number = ?1")?;
    Ok(query.query_row([job.0], |row| row.get(0)).optional()?)
}
