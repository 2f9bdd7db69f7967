//! Changes of jobs: their states, retries, deletions and announcements.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::database::{Failure, Sql};
use super::rows;
use crate::jobs::model::{Change, FailuresToRetry, Job, JobNumber};
use crate::jobs::store::retry::{MAX_RETRIED, Rest, Retried};
use crate::jobs::store::row::Columns;
use crate::jobs::store::specs::Specs;

pub(super) async fn change(
    sql: &Sql<'_>,
    specs: &Specs,
    job: JobNumber,
    change: Change,
    now: Timestamp,
) -> Result<Option<Job>, Failure> {
    let Some(mut row) = rows::lock(sql, job).await? else { return Ok(None) };
    if row.change(change, now) {
        rows::save(sql, &row).await?;
        if row.state.has_ended() {
            let statement = "UPDATE job_blocks SET replica = NULL, claim = NULL, lease_until = NULL \
                WHERE (job, first) IN (SELECT job, first FROM job_blocks \
                WHERE job = $1 AND replica IS NOT NULL ORDER BY first FOR UPDATE)";
            sql.execute(statement, &[&job.0]).await?;
        }
    }
    Ok(Some(rows::job(sql, specs, row).await?))
}

/// Removes results of failed items, some thousand at once.
pub(super) async fn retry(
    sql: &Sql<'_>,
    specs: &Specs,
    job: JobNumber,
    which: FailuresToRetry,
    from: Option<Rest>,
) -> Result<Retried, Failure> {
    let Some(mut row) = rows::lock(sql, job).await? else { return Ok(Retried::default()) };
    if from.is_none() && !row.state.has_ended() {
        return Ok(Retried { job: Some(rows::job(sql, specs, row).await?), next: None });
    }
    let through = match from {
        Some(rest) => rest.through,
        None => {
            let last = "SELECT coalesce(max(seq), 0) FROM job_results WHERE job = $1";
            sql.query_optional(last, &[&job.0]).await?.map_or(Ok(0), |row| row.whole(0))?
        }
    };
    let mut after = from.map_or(0, |rest| rest.after);
    let all = which == FailuresToRetry::All;
    let failed = sql
        .query(
            "SELECT seq, item, failure FROM job_results WHERE job = $1 AND failure IS NOT NULL \
             AND seq > $2 AND seq <= $3 AND (retryable OR $4) ORDER BY seq LIMIT $5",
            &[&job.0, &after, &through, &all, &(MAX_RETRIED as i64)],
        )
        .await?;
    let (mut items, mut codes) = (Vec::new(), BTreeMap::new());
    for result in &failed {
        after = result.whole(0)?;
        items.push(result.whole(1)?);
        *codes.entry(result.text(2)?).or_insert(0_i64) += 1;
    }
    let has_more = failed.len() == MAX_RETRIED;
    if !failed.is_empty() {
        let remove = "DELETE FROM job_results WHERE job = $1 AND item = ANY($2)";
        sql.execute(remove, &[&job.0, &items]).await?;
        uncount(sql, job, &items).await?;
    }
    if !failed.is_empty() || row.lacks_results() {
        row.queue_again(failed.len() as u64);
        rows::save(sql, &row).await?;
    }
    for (code, count) in codes {
        let statement = "UPDATE job_failures SET count = count - $3 WHERE job = $1 AND code = $2";
        sql.execute(statement, &[&job.0, &code, &count]).await?;
    }
    if !has_more {
        tidy_failures(sql, job).await?;
    }
    let next = has_more.then_some(Rest { after, through });
    Ok(Retried { job: Some(rows::job(sql, specs, row).await?), next })
}

/// These items are unanswered again.
async fn uncount(sql: &Sql<'_>, job: JobNumber, items: &[i64]) -> Result<(), Failure> {
    let statement = "UPDATE job_blocks AS block SET answered = block.answered - old.count, \
        is_done = false FROM (SELECT (SELECT block.first FROM job_blocks AS block \
        WHERE block.job = $1 AND block.first <= answered.item ORDER BY block.first DESC LIMIT 1) \
        AS first, count(*)::integer AS count FROM unnest($2::bigint[]) AS answered (item) GROUP BY 1) \
        AS old WHERE block.job = $1 AND block.first = old.first";
    sql.execute(statement, &[&job.0, &items]).await?;
    Ok(())
}

/// Drops codes without failed items, and names another item where the one named is asked again.
async fn tidy_failures(sql: &Sql<'_>, job: JobNumber) -> Result<(), Failure> {
    sql.execute("DELETE FROM job_failures WHERE job = $1 AND count <= 0", &[&job.0]).await?;
    let statement = "UPDATE job_failures AS failures SET example = coalesce((SELECT item \
        FROM job_results AS result WHERE result.job = $1 AND result.failure IS NOT NULL \
        AND result.failure = failures.code ORDER BY item LIMIT 1), example) WHERE job = $1";
    sql.execute(statement, &[&job.0]).await?;
    Ok(())
}

/// Makes a job invisible, so that it can be removed. Returns whether there is something to remove.
pub(super) async fn hide(sql: &Sql<'_>, job: JobNumber) -> Result<bool, Failure> {
    let statement = "UPDATE jobs SET state = 'deleting', \
        lease_until = clock_timestamp() + interval '1 minute' WHERE number = $1";
    Ok(sql.execute(statement, &[&job.0]).await? > 0)
}

pub(super) async fn due_announcements(
    sql: &Sql<'_>,
    specs: &Specs,
    now: Timestamp,
    lease: Duration,
    limit: u32,
) -> Result<Vec<(Job, u32)>, Failure> {
    let which = "announce_at <= $1 AND state IN ('completed', 'cancelled') \
        ORDER BY announce_at LIMIT $2 FOR UPDATE SKIP LOCKED";
    let rows = rows::rows(sql, which, &[&now.as_millisecond(), &i64::from(limit)]).await?;
    let mut due = Vec::with_capacity(rows.len());
    for mut row in rows {
        let attempts = u32::try_from(row.announcements).unwrap_or(u32::MAX);
        row.announcements = row.announcements.saturating_add(1);
        row.announce_at = Some(now.saturating_add(lease).unwrap_or(Timestamp::MAX));
        rows::save(sql, &row).await?;
        due.push((rows::job(sql, specs, row).await?, attempts));
    }
    Ok(due)
}

pub(super) async fn announced(
    sql: &Sql<'_>,
    job: JobNumber,
    ended_at: Timestamp,
    next_attempt: Option<Timestamp>,
) -> Result<(), Failure> {
    let statement = "UPDATE jobs SET announce_at = $3 \
        WHERE number = $1 AND ended_at = $2 AND announce_at IS NOT NULL";
    let next_attempt = next_attempt.map(Timestamp::as_millisecond);
    sql.execute(statement, &[&job.0, &ended_at.as_millisecond(), &next_attempt]).await?;
    Ok(())
}
