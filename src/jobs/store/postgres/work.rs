//! Claims items and records their results.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::database::{Failure, Sql};
use super::rows;
use crate::jobs::model::{Answered, Job, JobNumber, JobState, ReplicaId};
use crate::jobs::store::StoreError;
use crate::jobs::store::claim::{Choice, Claimed, ClaimedBlock, Most};
use crate::jobs::store::row::{self, Columns, signed, unsigned};
use crate::jobs::store::specs::Specs;

/// The most blocks of one claim.
const MAX_BLOCKS: i64 = 32;

/// The process that claims, and the number of its claim.
#[derive(Debug)]
pub(super) struct Claimant {
    pub replica: ReplicaId,
    pub claim: i64,
    pub lease: Duration,
}

pub(super) async fn claim(
    sql: &Sql<'_>,
    job: JobNumber,
    claimant: &Claimant,
    most: Most,
    now: Timestamp,
) -> Result<Claimed, Failure> {
    let nothing = Claimed::default();
    let Some(mut row) = rows::find(sql, job).await? else { return Ok(nothing) };
    if row.state == JobState::Queued {
        // The job's row is locked before its blocks, as everywhere.
        let Some(locked) = rows::lock(sql, job).await? else { return Ok(nothing) };
        row = locked;
    }
    if !matches!(row.state, JobState::Queued | JobState::Running) {
        return Ok(nothing);
    }
    let found = sql
        .query(
            "SELECT first, items::bigint, bytes FROM job_blocks WHERE job = $1 AND NOT is_done \
             AND (replica IS NULL OR lease_until <= clock_timestamp()) \
             ORDER BY first LIMIT $2 FOR UPDATE SKIP LOCKED",
            &[&job.0, &MAX_BLOCKS],
        )
        .await?;
    let mut choice = Choice::new(most);
    for found in found {
        let first = found.whole(0)?;
        if !choice.offer(ClaimedBlock::new(first, first, found.whole(1)?, found.whole(2)?)) {
            break;
        }
    }
    let mut claimed = choice.chosen();
    let blocks = &mut claimed.blocks;
    if blocks.is_empty() {
        return Ok(claimed);
    }
    if row.state == JobState::Queued {
        row.start(now);
        rows::save(sql, &row).await?;
    }
    let firsts: Vec<i64> = blocks.iter().map(|block| block.first).collect();
    sql.execute(
        "UPDATE job_blocks SET replica = $3, claim = $4, \
         lease_until = clock_timestamp() + make_interval(secs => $5) \
         WHERE job = $1 AND first = ANY($2)",
        &[&job.0, &firsts, &claimant.replica.0, &claimant.claim, &claimant.lease.as_secs_f64()],
    )
    .await?;
    let lines = "SELECT lines FROM job_payloads WHERE job = $1 AND first = ANY($2) ORDER BY first";
    let lines = sql.query(lines, &[&job.0, &firsts]).await?;
    if lines.len() != blocks.len() {
        return Err(row::damaged("a block of items is missing").into());
    }
    for (block, found) in blocks.iter_mut().zip(lines) {
        block.compressed = found.try_get(0)?;
    }
    let answered = sql
        .query(
            "SELECT block.first, result.item FROM job_blocks AS block JOIN job_results AS result \
             ON result.job = block.job AND result.item >= block.first \
             AND result.item < block.first + block.items \
             WHERE block.job = $1 AND block.first = ANY($2) AND block.answered > 0 \
             ORDER BY result.item",
            &[&job.0, &firsts],
        )
        .await?;
    for found in answered {
        let first = found.whole(0)?;
        let item = unsigned(found.whole(1)?);
        if let Some(block) = blocks.iter_mut().find(|block| block.first == first) {
            block.answered.push(item);
        }
    }
    Ok(claimed)
}

/// `lost` are claims of the process whose outcome it never learned.
pub(super) async fn renew(
    sql: &Sql<'_>,
    replica: &ReplicaId,
    lost: &[i64],
    lease: Duration,
) -> Result<Vec<(JobNumber, u64)>, Failure> {
    sql.execute(
        "UPDATE jobs SET lease_until = clock_timestamp() + interval '10 minutes' \
         WHERE replica = $1 AND state = 'uploading'",
        &[&replica.0],
    )
    .await?;
    if !lost.is_empty() {
        sql.execute(
            "UPDATE job_blocks SET replica = NULL, claim = NULL, lease_until = NULL \
             WHERE (job, first) IN (SELECT job, first FROM job_blocks \
             WHERE replica = $1 AND claim = ANY($2) ORDER BY job, first FOR UPDATE)",
            &[&replica.0, &lost],
        )
        .await?;
    }
    // In the order in which results lock blocks.
    let held = sql
        .query(
            "UPDATE job_blocks SET lease_until = clock_timestamp() + make_interval(secs => $2) \
             WHERE (job, first) IN (SELECT job, first FROM job_blocks \
             WHERE replica = $1 ORDER BY job, first FOR UPDATE) RETURNING job, first",
            &[&replica.0, &lease.as_secs_f64()],
        )
        .await?;
    let held = held.iter().map(|row| Ok((JobNumber(row.whole(0)?), unsigned(row.whole(1)?))));
    let mut held = held.collect::<Result<Vec<_>, StoreError>>()?;
    held.sort_unstable();
    Ok(held)
}

pub(super) async fn release(
    sql: &Sql<'_>,
    replica: &ReplicaId,
    job: Option<JobNumber>,
) -> Result<(), Failure> {
    sql.execute(
        "UPDATE job_blocks SET replica = NULL, claim = NULL, lease_until = NULL \
         WHERE (job, first) IN (SELECT job, first FROM job_blocks \
         WHERE replica = $1 AND ($2::bigint IS NULL OR job = $2) ORDER BY job, first FOR UPDATE)",
        &[&replica.0, &job.map(|job| job.0)],
    )
    .await?;
    Ok(())
}

/// Results column by column.
#[derive(Debug, Default)]
struct NewResults<'a> {
    items: Vec<i64>,
    lines: Vec<&'a [u8]>,
    failures: Vec<Option<&'a str>>,
    retryable: Vec<bool>,
}

pub(super) async fn record(
    sql: &Sql<'_>,
    specs: &Specs,
    job: JobNumber,
    results: &[Answered],
    now: Timestamp,
) -> Result<Option<Job>, Failure> {
    let Some(mut row) = rows::lock(sql, job).await? else { return Ok(None) };
    if !row.state.has_ended() {
        insert(sql, &mut row, results, now).await?;
        rows::save(sql, &row).await?;
    }
    Ok(Some(rows::job(sql, specs, row).await?))
}

/// Inserts the results of items that have none yet, and counts them.
async fn insert(
    sql: &Sql<'_>,
    row: &mut row::Row,
    results: &[Answered],
    now: Timestamp,
) -> Result<(), Failure> {
    let (job, total) = (row.number, row.total);
    // Of several results of one item, the first counts.
    let mut by_item = BTreeMap::new();
    let mut new = NewResults::default();
    for result in results.iter().filter(|result| result.index < total) {
        if by_item.contains_key(&signed(result.index)) {
            continue;
        }
        by_item.insert(signed(result.index), result);
        new.items.push(signed(result.index));
        new.lines.push(&result.line);
        new.failures.push(result.failure.as_deref());
        new.retryable.push(result.retryable);
    }
    let inserted = sql
        .query(
            "INSERT INTO job_results (job, item, line, failure, retryable) \
             SELECT $1, new.item, new.line, new.failure, new.retryable \
             FROM unnest($2::bigint[], $3::bytea[], $4::text[], $5::boolean[]) WITH ORDINALITY \
             AS new (item, line, failure, retryable, number) ORDER BY new.number \
             ON CONFLICT (job, item) DO NOTHING RETURNING item",
            &[&job, &new.items, &new.lines, &new.failures, &new.retryable],
        )
        .await?;
    let inserted: Vec<i64> = inserted.iter().map(|row| row.whole(0)).collect::<Result<_, _>>()?;
    let mut failures: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for item in &inserted {
        let Some(result) = by_item.get(item) else { continue };
        row.add(result);
        if let Some(code) = &result.failure {
            failures.entry(code).or_insert((0, *item)).0 += 1;
        }
    }
    for (code, (count, example)) in failures {
        sql.execute(
            "INSERT INTO job_failures (job, code, count, example) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (job, code) DO UPDATE SET count = job_failures.count + excluded.count",
            &[&job, &code, &count, &example],
        )
        .await?;
    }
    count(sql, job, &inserted).await?;
    row.added(inserted.len() as u64, now);
    Ok(())
}

/// Counts answered items in their blocks. A block without unanswered items is no longer held.
async fn count(sql: &Sql<'_>, job: i64, items: &[i64]) -> Result<(), Failure> {
    let blocks = sql
        .query(
            "SELECT (SELECT block.first FROM job_blocks AS block \
             WHERE block.job = $1 AND block.first <= answered.item \
             ORDER BY block.first DESC LIMIT 1) AS first, count(*)::integer \
             FROM unnest($2::bigint[]) AS answered (item) GROUP BY 1 ORDER BY 1",
            &[&job, &items],
        )
        .await?;
    let (mut firsts, mut counts) = (Vec::new(), Vec::new());
    for block in &blocks {
        firsts.push(block.whole(0)?);
        counts.push(block.try_get::<_, i32>(1)?);
    }
    let lock = "SELECT first FROM job_blocks WHERE job = $1 AND first = ANY($2) ORDER BY first \
        FOR UPDATE";
    sql.query(lock, &[&job, &firsts]).await?;
    sql.execute(
        "UPDATE job_blocks AS block SET answered = block.answered + new.count, \
         is_done = block.answered + new.count >= block.items, \
         replica = CASE WHEN block.answered + new.count < block.items THEN block.replica END, \
         claim = CASE WHEN block.answered + new.count < block.items THEN block.claim END, \
         lease_until = CASE WHEN block.answered + new.count < block.items THEN block.lease_until END \
         FROM unnest($2::bigint[], $3::integer[]) AS new (first, count) \
         WHERE block.job = $1 AND block.first = new.first",
        &[&job, &firsts, &counts],
    )
    .await?;
    Ok(())
}
