//! Reads and writes jobs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use tokio_postgres::types::ToSql;

use super::database::{Failure, Sql};
use crate::jobs::model::{Failures, Job, JobId, JobNumber, JobSpec, Owner, SharedFields};
use crate::jobs::store::StoreError;
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
    let job = jobs_of(sql, specs, vec![row]).await?.pop();
    Ok(job.ok_or_else(|| row::damaged("a job has vanished"))?)
}

/// The same for several rows, with as many queries.
async fn jobs_of(sql: &Sql<'_>, specs: &Specs, rows: Vec<Row>) -> Result<Vec<Job>, Failure> {
    let numbers: Vec<i64> = rows.iter().map(|row| row.number).collect();
    let failed: Vec<i64> =
        (rows.iter().filter(|row| row.progress.failed > 0)).map(|row| row.number).collect();
    let mut failures = failures(sql, &failed).await?;
    let claimed = claimed(sql, &numbers).await?;
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        let number = row.number;
        let spec = spec(sql, specs, number).await?;
        let failures = failures.remove(&number).unwrap_or_default();
        let claimed = claimed.get(&number).copied().unwrap_or_default();
        jobs.push(row.into_job(spec, failures, claimed));
    }
    Ok(jobs)
}

async fn spec(sql: &Sql<'_>, specs: &Specs, job: i64) -> Result<Arc<JobSpec>, Failure> {
    if let Some(spec) = specs.get(job) {
        return Ok(spec);
    }
    let found = sql.query_optional("SELECT spec FROM jobs WHERE number = $1", &[&job]).await?;
    let found = found.ok_or_else(|| row::damaged("a job has no options"))?;
    Ok(specs.keep(job, &found.text(0)?)?)
}

/// The failed items of jobs by error code.
async fn failures(
    sql: &Sql<'_>,
    jobs: &[i64],
) -> Result<HashMap<i64, BTreeMap<String, Failures>>, Failure> {
    let mut failures: HashMap<i64, BTreeMap<String, Failures>> = HashMap::new();
    if jobs.is_empty() {
        return Ok(failures);
    }
    let query = "SELECT job, code, count, example FROM job_failures WHERE job = ANY($1)";
    for found in sql.query(query, &[&jobs]).await? {
        let (count, example) = (unsigned(found.whole(2)?), unsigned(found.whole(3)?));
        let of_job = failures.entry(found.whole(0)?).or_default();
        of_job.insert(found.text(1)?, Failures { count, example });
    }
    Ok(failures)
}

/// How many items of jobs are claimed and have no result.
async fn claimed(sql: &Sql<'_>, jobs: &[i64]) -> Result<HashMap<i64, u64>, Failure> {
    let query = "SELECT job, sum(items - answered)::bigint FROM job_blocks \
        WHERE job = ANY($1) AND replica IS NOT NULL AND lease_until > clock_timestamp() GROUP BY job";
    let found = sql.query(query, &[&jobs]).await?;
    let claimed = found.iter().map(|row| Ok((row.whole(0)?, unsigned(row.whole(1)?))));
    Ok(claimed.collect::<Result<_, StoreError>>()?)
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

pub(super) async fn shared_fields(sql: &Sql<'_>, job: JobNumber) -> Result<SharedFields, Failure> {
    let query = format!("SELECT shared FROM jobs WHERE number = $1 AND {VISIBLE}");
    let found = sql.query_optional(&query, &[&job.0]).await?;
    let text = found.map(|row| row.optional_text(0)).transpose()?.flatten();
    Ok(row::read_shared(text)?)
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
