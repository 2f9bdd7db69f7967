//! Reads and writes jobs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tokio_postgres::types::ToSql;

use super::database::{Failure, Sql};
use crate::jobs::model::{Failures, Job, JobId, JobNumber, Owner};
use crate::jobs::store::row::{self, COLUMNS, Columns, Row, unsigned};
use crate::jobs::store::specs::Specs;

const VISIBLE: &str = "state NOT IN ('uploading', 'deleting')";

/// The row of a visible job.
pub(super) async fn find(sql: &Sql<'_>, job: JobNumber) -> Result<Option<Row>, Failure> {
    Ok(rows(sql, &format!("number = $1 AND {VISIBLE}"), &[&job.0]).await?.pop())
}

/// The same, locked until the end of the transaction.
pub(super) async fn lock(sql: &Sql<'_>, job: JobNumber) -> Result<Option<Row>, Failure> {
    Ok(rows(sql, &format!("number = $1 AND {VISIBLE} FOR UPDATE"), &[&job.0]).await?.pop())
}

pub(super) async fn rows(
    sql: &Sql<'_>,
    which: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, Failure> {
    let rows = sql.query(&format!("SELECT {COLUMNS} FROM jobs WHERE {which}"), values).await?;
    Ok(rows.iter().map(Row::read).collect::<Result<_, _>>()?)
}

/// Adds to a row what is kept apart from it.
pub(super) async fn job(sql: &Sql<'_>, specs: &Specs, row: Row) -> Result<Job, Failure> {
    let number = row.number;
    let spec = match specs.get(number) {
        Some(spec) => spec,
        None => {
            let found = sql.query("SELECT spec FROM jobs WHERE number = $1", &[&number]).await?;
            let found = found.first().ok_or_else(|| row::damaged("a job has no options"))?;
            specs.keep(number, &found.text(0)?)?
        }
    };
    let mut failures = BTreeMap::new();
    let query = "SELECT code, count, example FROM job_failures WHERE job = $1";
    for found in sql.query(query, &[&number]).await? {
        let (count, example) = (unsigned(found.whole(1)?), unsigned(found.whole(2)?));
        failures.insert(found.text(0)?, Failures { count, example });
    }
    let claimed = sql
        .query(
            "SELECT coalesce(sum(items - answered), 0)::bigint FROM job_blocks \
             WHERE job = $1 AND replica IS NOT NULL AND lease_until > clock_timestamp()",
            &[&number],
        )
        .await?;
    let claimed = claimed.first().map(|row| row.whole(0)).transpose()?.unwrap_or(0);
    Ok(row.into_job(spec, failures, unsigned(claimed)))
}

async fn jobs_of(sql: &Sql<'_>, specs: &Specs, rows: Vec<Row>) -> Result<Vec<Job>, Failure> {
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        jobs.push(job(sql, specs, row).await?);
    }
    Ok(jobs)
}

/// Writes what may change of a job.
pub(super) async fn save(sql: &Sql<'_>, row: &Row) -> Result<(), Failure> {
    let (weighted, seconds, at) = row.progress.rate.to_parts();
    let statement = "UPDATE jobs SET state = $2, reason = $3, succeeded = $4, failed = $5, \
        input_tokens = $6, output_tokens = $7, cost = $8, rate_weighted = $9, rate_seconds = $10, \
        rate_at = $11, started_at = $12, ended_at = $13, announce_at = $14, announcements = $15 \
        WHERE number = $1";
    sql.execute(
        statement,
        &[
            &row.number,
            &row::state(row.state),
            &row.reason.as_ref().map(row::reason),
            &row::signed(row.progress.succeeded),
            &row::signed(row.progress.failed),
            &row::signed(row.progress.input_tokens),
            &row::signed(row.progress.output_tokens),
            &row::signed(row.progress.cost.0),
            &weighted,
            &seconds,
            &at,
            &row.started_at.map(Timestamp::as_millisecond),
            &row.ended_at.map(Timestamp::as_millisecond),
            &row.announce_at.map(Timestamp::as_millisecond),
            &row.announcements,
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn job_by_id(
    sql: &Sql<'_>,
    specs: &Specs,
    id: &JobId,
) -> Result<Option<Job>, Failure> {
    let rows = rows(sql, &format!("id = $1 AND {VISIBLE}"), &[&id.as_str()]).await?;
    Ok(jobs_of(sql, specs, rows).await?.pop())
}

pub(super) async fn jobs(
    sql: &Sql<'_>,
    specs: &Specs,
    owner: Option<&Owner>,
    before: Option<JobNumber>,
    limit: u32,
) -> Result<Vec<Job>, Failure> {
    let (before, limit) = (before.map_or(i64::MAX, |before| before.0), i64::from(limit));
    let rows = match owner {
        Some(owner) => {
            let which =
                format!("owner = $1 AND number < $2 AND {VISIBLE} ORDER BY number DESC LIMIT $3");
            rows(sql, &which, &[&row::owner(owner), &before, &limit]).await?
        }
        None => {
            let which = format!("number < $1 AND {VISIBLE} ORDER BY number DESC LIMIT $2");
            rows(sql, &which, &[&before, &limit]).await?
        }
    };
    jobs_of(sql, specs, rows).await
}

pub(super) async fn open_jobs(sql: &Sql<'_>, specs: &Specs) -> Result<Vec<Job>, Failure> {
    let which = "state IN ('queued', 'running', 'paused') ORDER BY number";
    let rows = rows(sql, which, &[]).await?;
    jobs_of(sql, specs, rows).await
}

pub(super) async fn ended_before(
    sql: &Sql<'_>,
    time: Timestamp,
    limit: u32,
) -> Result<Vec<JobNumber>, Failure> {
    let query = format!(
        "SELECT number FROM jobs WHERE ended_at < $1 AND {VISIBLE} ORDER BY ended_at LIMIT $2"
    );
    let found = sql.query(&query, &[&time.as_millisecond(), &i64::from(limit)]).await?;
    Ok(found.iter().map(|row| row.whole(0).map(JobNumber)).collect::<Result<_, _>>()?)
}
