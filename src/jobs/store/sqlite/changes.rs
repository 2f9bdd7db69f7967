//! Changes of jobs: their states, retries, deletions and announcements.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::params;

use super::commands::Context;
use super::rows;
use crate::jobs::model::{Change, FailuresToRetry, Job, JobNumber};
use crate::jobs::store::StoreError;
use crate::jobs::store::retry::{MAX_RETRIED, Rest, Retried};

pub(super) fn change(
    context: &mut Context<'_>,
    job: JobNumber,
    change: Change,
    now: Timestamp,
) -> Result<Option<Job>, StoreError> {
    let Some(mut row) = rows::find(context.sql, job)? else { return Ok(None) };
    if row.change(change, now) {
        context.save(&row)?;
    }
    let has_ended = row.state.has_ended();
    let mut changed = context.job(row)?;
    if has_ended {
        changed.progress.claimed = 0;
        context.claims.end(job.0);
    }
    Ok(Some(changed))
}

/// Removes results of failed items, some thousand at once.
pub(super) fn retry(
    context: &mut Context<'_>,
    job: JobNumber,
    which: FailuresToRetry,
    from: Option<Rest>,
) -> Result<Retried, StoreError> {
    let Some(mut row) = rows::find(context.sql, job)? else { return Ok(Retried::default()) };
    if from.is_none() && !row.state.has_ended() {
        return Ok(Retried { job: Some(context.job(row)?), next: None });
    }
    let sql = context.sql;
    let through: i64 = match from {
        Some(rest) => rest.through,
        None => sql
            .prepare_cached("SELECT coalesce(max(seq), 0) FROM results WHERE job = ?1")?
            .query_row([job.0], |row| row.get(0))?,
    };
    let mut after = from.map_or(0, |rest| rest.after);
    let failed = {
        let mut query = sql.prepare_cached(
            "SELECT seq, item, failure FROM results WHERE job = ?1 AND failure IS NOT NULL \
             AND seq > ?2 AND seq <= ?3 AND (retryable OR ?4) ORDER BY seq LIMIT ?5",
        )?;
        let all = which == FailuresToRetry::All;
        let values = params![job.0, after, through, all, MAX_RETRIED as i64];
        let failed = query.query_map(values, |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
        })?;
        failed.collect::<Result<Vec<_>, _>>()?
    };
    let mut remove = sql.prepare_cached("DELETE FROM results WHERE seq = ?1")?;
    let mut block = sql.prepare_cached(
        "UPDATE blocks SET answered = answered - 1 WHERE job = ?1 AND first = \
         (SELECT max(first) FROM blocks WHERE job = ?1 AND first <= ?2)",
    )?;
    let mut count =
        sql.prepare_cached("UPDATE failures SET count = count - 1 WHERE job = ?1 AND code = ?2")?;
    for (seq, item, code) in &failed {
        remove.execute([seq])?;
        block.execute([job.0, *item])?;
        count.execute(params![job.0, code])?;
        after = *seq;
    }
    let has_more = failed.len() == MAX_RETRIED;
    if !failed.is_empty() || row.lacks_results() {
        row.queue_again(failed.len() as u64);
        context.save(&row)?;
    }
    if !has_more {
        tidy_failures(context, job)?;
    }
    let next = has_more.then_some(Rest { after, through });
    Ok(Retried { job: Some(context.job(row)?), next })
}

/// Drops codes without failed items, and names another item where the one named is asked again.
fn tidy_failures(context: &Context<'_>, job: JobNumber) -> Result<(), StoreError> {
    let sql = context.sql;
    sql.prepare_cached("DELETE FROM failures WHERE job = ?1 AND count <= 0")?.execute([job.0])?;
    let mut update = sql.prepare_cached(
        "UPDATE failures SET example = coalesce((SELECT item FROM results WHERE job = ?1 AND \
         failure IS NOT NULL AND failure = code ORDER BY item LIMIT 1), example) WHERE job = ?1",
    )?;
    update.execute([job.0])?;
    Ok(())
}

/// Makes a job invisible, so that it can be removed. Returns whether there is something to remove.
pub(super) fn hide(context: &mut Context<'_>, job: JobNumber) -> Result<bool, StoreError> {
    let mut update =
        context.sql.prepare_cached("UPDATE jobs SET state = 'deleting' WHERE number = ?1")?;
    let is_there = update.execute([job.0])? > 0;
    context.claims.end(job.0);
    Ok(is_there)
}

pub(super) fn due_announcements(
    context: &mut Context<'_>,
    now: Timestamp,
    lease: Duration,
    limit: u32,
) -> Result<Vec<(Job, u32)>, StoreError> {
    let mut query = context.sql.prepare_cached(
        "SELECT number FROM jobs WHERE announce_at <= ?1 AND state IN ('completed', 'cancelled') \
         ORDER BY announce_at LIMIT ?2",
    )?;
    let numbers = query
        .query_map(params![now.as_millisecond(), limit], |row| row.get::<_, i64>(0))?
        .collect::<Result<Vec<_>, _>>()?;
    let mut due = Vec::with_capacity(numbers.len());
    for number in numbers {
        let Some(mut row) = rows::find(context.sql, JobNumber(number))? else { continue };
        let attempts = u32::try_from(row.announcements).unwrap_or(u32::MAX);
        row.announcements = row.announcements.saturating_add(1);
        row.announce_at = Some(now.saturating_add(lease).unwrap_or(Timestamp::MAX));
        context.save(&row)?;
        due.push((context.job(row)?, attempts));
    }
    Ok(due)
}

pub(super) fn announced(
    context: &mut Context<'_>,
    job: JobNumber,
    ended_at: Timestamp,
    next_attempt: Option<Timestamp>,
) -> Result<(), StoreError> {
    let mut update = context.sql.prepare_cached(
        "UPDATE jobs SET announce_at = ?3 \
         WHERE number = ?1 AND ended_at = ?2 AND announce_at IS NOT NULL",
    )?;
    let next_attempt = next_attempt.map(Timestamp::as_millisecond);
    update.execute(params![job.0, ended_at.as_millisecond(), next_attempt])?;
    Ok(())
}
