//! Claims items and records their results.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::params;
use tokio::time::Instant;

use super::commands::Context;
use super::results::checksum;
use super::rows;
use crate::jobs::model::{Answered, Job, JobNumber, JobState, ReplicaId};
use crate::jobs::store::StoreError;
use crate::jobs::store::claim::{Choice, Claimed, ClaimedBlock, Most};
use crate::jobs::store::row::{self, signed, unsigned};

pub(super) fn claim(
    context: &mut Context<'_>,
    job: JobNumber,
    replica: &ReplicaId,
    most: Most,
    (now, until): (Instant, Instant),
    time: Timestamp,
) -> Result<Claimed, StoreError> {
    let Some(mut row) = rows::find(context.sql, job)? else { return Ok(Claimed::default()) };
    if !matches!(row.state, JobState::Queued | JobState::Running) {
        return Ok(Claimed::default());
    }
    let mut found = unclaimed(context, job, most, now)?;
    for block in &mut found.blocks {
        read(context, job, block)?;
    }
    if row.state == JobState::Queued && !found.blocks.is_empty() {
        row.start(time);
        context.save(&row)?;
    }
    for block in &found.blocks {
        let unanswered = unsigned(block.items).saturating_sub(block.answered.len() as u64);
        context.claims.claim(job.0, block.first, replica, until, unanswered);
    }
    Ok(found)
}

/// The first blocks with unanswered items that nobody holds.
fn unclaimed(
    context: &Context<'_>,
    job: JobNumber,
    most: Most,
    now: Instant,
) -> Result<Claimed, StoreError> {
    let mut query = context.sql.prepare_cached(
        "SELECT number, first, items, bytes FROM blocks WHERE job = ?1 AND answered < items \
         ORDER BY first",
    )?;
    let mut rows = query.query([job.0])?;
    let mut choice = Choice::new(most);
    while let Some(row) = rows.next()? {
        let block = ClaimedBlock::new(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        if !context.claims.is_claimed(job.0, block.first, now) && !choice.offer(block) {
            break;
        }
    }
    Ok(choice.chosen())
}

/// Reads the lines of a block, and which of its items are answered.
fn read(context: &Context<'_>, job: JobNumber, block: &mut ClaimedBlock) -> Result<(), StoreError> {
    let mut lines = context.sql.prepare_cached("SELECT lines FROM payloads WHERE block = ?1")?;
    block.compressed = lines.query_row([block.key], |row| row.get(0))?;
    let mut answered = context.sql.prepare_cached(
        "SELECT item FROM results WHERE job = ?1 AND item >= ?2 AND item < ?3 ORDER BY item",
    )?;
    let end = block.first.saturating_add(block.items);
    let answered = answered.query_map(params![job.0, block.first, end], |row| row.get(0))?;
    for item in answered {
        block.answered.push(unsigned(item?));
    }
    Ok(())
}

/// A block of which items were answered.
struct Touched {
    number: i64,
    items: i64,
    answered: i64,
}

pub(super) fn record(
    context: &mut Context<'_>,
    job: JobNumber,
    results: &[Answered],
    now: Timestamp,
) -> Result<Option<Job>, StoreError> {
    let Some(mut row) = rows::find(context.sql, job)? else { return Ok(None) };
    let mut blocks = BTreeMap::new();
    if !row.state.has_ended() {
        blocks = insert(context, &mut row, results, now)?;
        context.save(&row)?;
    }
    let job = rows::job(context.sql, context.specs, row, 0)?;
    for (first, block) in blocks {
        context.claims.answered(job.number.0, first, unsigned(block.items - block.answered));
    }
    if job.state.has_ended() {
        context.claims.end(job.number.0);
    }
    let mut job = job;
    job.progress.claimed = context.claims.unanswered(job.number.0);
    Ok(Some(job))
}

/// Inserts the results of items that have none yet, and counts them. Returns the blocks of these items.
fn insert(
    context: &Context<'_>,
    row: &mut row::Row,
    results: &[Answered],
    now: Timestamp,
) -> Result<BTreeMap<i64, Touched>, StoreError> {
    let mut blocks: BTreeMap<i64, Touched> = BTreeMap::new();
    let mut inserted = 0;
    let sql = context.sql;
    let mut insert = sql.prepare_cached(
        "INSERT INTO results (job, item, line, failure, retryable, checksum) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (job, item) DO NOTHING",
    )?;
    let mut fail = sql.prepare_cached(
        "INSERT INTO failures (job, code, count, example) VALUES (?1, ?2, 1, ?3) \
         ON CONFLICT (job, code) DO UPDATE SET count = count + 1",
    )?;
    let total = row.total;
    for result in results.iter().filter(|result| result.index < total) {
        let item = signed(result.index);
        let line: &[u8] = &result.line;
        let sum = checksum(row.number, item, line);
        let values = params![row.number, item, line, result.failure, result.retryable, sum];
        if insert.execute(values)? == 0 {
            continue;
        }
        inserted += 1;
        row.add(result);
        if let Some(code) = &result.failure {
            fail.execute(params![row.number, code, item])?;
        }
        let known = blocks.range_mut(..=item).next_back();
        match known.filter(|(first, block)| item < **first + block.items) {
            Some((_, block)) => block.answered += 1,
            None => {
                let (first, mut block) = block_of(context, row.number, item)?;
                block.answered += 1;
                blocks.insert(first, block);
            }
        }
    }
    let mut update = sql.prepare_cached("UPDATE blocks SET answered = ?2 WHERE number = ?1")?;
    for block in blocks.values() {
        update.execute([block.number, block.answered])?;
    }
    row.added(inserted, now);
    Ok(blocks)
}

/// The block of an item.
fn block_of(context: &Context<'_>, job: i64, item: i64) -> Result<(i64, Touched), StoreError> {
    let mut query = context.sql.prepare_cached(
        "SELECT first, number, items, answered FROM blocks WHERE job = ?1 AND first <= ?2 \
         ORDER BY first DESC LIMIT 1",
    )?;
    let found = query.query_row([job, item], |row| {
        let block = Touched { number: row.get(1)?, items: row.get(2)?, answered: row.get(3)? };
        Ok((row.get(0)?, block))
    })?;
    Ok(found)
}
