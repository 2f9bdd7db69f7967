//! Stores new jobs.

use rusqlite::{OptionalExtension, params};

use jiff::Timestamp;

use super::commands::Context;
use super::rows;
use crate::jobs::model::{JobNumber, NewBlock, NewJob, Totals};
use crate::jobs::store::row::{self, DELETING, UPLOADING, no_upload, signed};
use crate::jobs::store::{Committed, StoreError, payload};

/// A block that is ready to be written.
pub(super) struct Compressed {
    first: i64,
    items: u32,
    bytes: i64,
    lines: Vec<u8>,
}

pub(super) fn compress(blocks: Vec<NewBlock>) -> Result<Vec<Compressed>, StoreError> {
    let compressed = blocks.into_iter().map(|block| {
        Ok(Compressed {
            first: signed(block.first),
            items: block.items,
            bytes: signed(block.lines.len() as u64),
            lines: payload::compress(&block.lines)?,
        })
    });
    compressed.collect()
}

pub(super) fn begin(context: &mut Context<'_>, job: &NewJob) -> Result<JobNumber, StoreError> {
    context.files.check_room(job.spec.shared_bytes as u64)?;
    let spec = serde_json::to_string(&job.spec).map_err(|_| row::damaged("invalid options"))?;
    let mut insert = context.sql.prepare_cached(
        "INSERT INTO jobs (id, owner, spec, idempotency_key, state, created_at, has_webhook) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let number = insert.insert(params![
        job.id.as_str(),
        row::owner(&job.owner),
        spec,
        job.idempotency_key,
        UPLOADING,
        job.created_at.as_millisecond(),
        job.spec.webhook_url.is_some(),
    ])?;
    if let Some(fields) = row::shared(&job.shared)? {
        let insert = "INSERT INTO shared_fields (job, fields) VALUES (?1, ?2)";
        context.sql.prepare_cached(insert)?.execute(params![number, fields])?;
    }
    Ok(JobNumber(number))
}

pub(super) fn append(
    context: &mut Context<'_>,
    job: JobNumber,
    blocks: &[Compressed],
) -> Result<(), StoreError> {
    if rows::any_state(context.sql, job)?.as_deref() != Some(UPLOADING) {
        return Err(no_upload());
    }
    let bytes: usize = blocks.iter().map(|block| block.lines.len()).sum();
    *context.appended += bytes as u64;
    context.files.check_room(*context.appended)?;
    let mut insert_block = context
        .sql
        .prepare_cached("INSERT INTO blocks (job, first, items, bytes) VALUES (?1, ?2, ?3, ?4)")?;
    let mut insert_lines =
        context.sql.prepare_cached("INSERT INTO payloads (block, lines) VALUES (?1, ?2)")?;
    for block in blocks {
        let number = insert_block.insert(params![job.0, block.first, block.items, block.bytes])?;
        insert_lines.execute(params![number, block.lines])?;
    }
    Ok(())
}

pub(super) fn commit(
    context: &mut Context<'_>,
    job: JobNumber,
    totals: Totals,
    now: Timestamp,
) -> Result<Committed, StoreError> {
    match rows::any_state(context.sql, job)?.as_deref() {
        Some(UPLOADING) => {}
        None | Some(DELETING) => return Err(no_upload()),
        Some(_) => return accepted(context, job, now),
    }
    let items: Option<i64> = context
        .sql
        .prepare_cached("SELECT sum(items) FROM blocks WHERE job = ?1")?
        .query_row([job.0], |row| row.get(0))?;
    if items.unwrap_or(0) != signed(totals.items) {
        return Err(row::damaged("the items of a job are not those that were counted"));
    }
    let same: Option<(i64, Option<[u8; 32]>)> = context
        .sql
        .prepare_cached(
            "SELECT other.number, other.content FROM jobs AS this JOIN jobs AS other \
             ON other.owner = this.owner AND other.idempotency_key = this.idempotency_key \
             WHERE this.number = ?1 AND this.idempotency_key IS NOT NULL \
             AND other.state NOT IN ('uploading', 'deleting')",
        )?
        .query_row([job.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((number, content)) = same {
        abandon(context, job)?;
        if content != Some(totals.content) {
            return Ok(Committed::Conflict);
        }
        let row = rows::find(context.sql, JobNumber(number))?.ok_or_else(no_upload)?;
        return Ok(Committed::Same(Box::new(context.job(row)?)));
    }
    let mut update = context.sql.prepare_cached(
        "UPDATE jobs SET state = 'queued', total = ?2, bytes = ?3, content = ?4 WHERE number = ?1",
    )?;
    update.execute(params![job.0, signed(totals.items), signed(totals.bytes), totals.content])?;
    accepted(context, job, now)
}

fn accepted(
    context: &mut Context<'_>,
    job: JobNumber,
    now: Timestamp,
) -> Result<Committed, StoreError> {
    let mut row = rows::find(context.sql, job)?.ok_or_else(no_upload)?;
    if row.total == 0 && !row.state.has_ended() {
        row.complete_if_all_are_answered(now);
        context.save(&row)?;
    }
    Ok(Committed::New(Box::new(context.job(row)?)))
}

pub(super) fn abandon(context: &mut Context<'_>, job: JobNumber) -> Result<(), StoreError> {
    let mut update = context.sql.prepare_cached(
        "UPDATE jobs SET state = 'deleting' WHERE number = ?1 AND state = 'uploading'",
    )?;
    if update.execute([job.0])? > 0 {
        context.to_erase.push(job.0);
    }
    Ok(())
}
