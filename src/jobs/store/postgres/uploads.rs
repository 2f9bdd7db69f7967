//! Stores new jobs.

use jiff::Timestamp;

use super::database::{Failure, Sql};
use super::rows;
use crate::jobs::model::{JobNumber, NewBlock, NewJob, ReplicaId, Totals};
use crate::jobs::store::row::{self, Columns, DELETING, UPLOADING, no_upload, signed};
use crate::jobs::store::specs::Specs;
use crate::jobs::store::{Committed, StoreError, payload};

/// Blocks that are ready to be written, column by column.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    first: Vec<i64>,
    items: Vec<i32>,
    bytes: Vec<i64>,
    lines: Vec<Vec<u8>>,
}

impl Blocks {
    pub fn compress(blocks: Vec<NewBlock>) -> Result<Self, StoreError> {
        let mut compressed = Self::default();
        for block in blocks {
            compressed.first.push(signed(block.first));
            compressed.items.push(i32::try_from(block.items).unwrap_or(i32::MAX));
            compressed.bytes.push(signed(block.lines.len() as u64));
            compressed.lines.push(payload::compress(&block.lines)?);
        }
        Ok(compressed)
    }
}

pub(super) async fn begin(
    sql: &Sql<'_>,
    job: &NewJob,
    replica: &ReplicaId,
) -> Result<JobNumber, Failure> {
    let spec = serde_json::to_string(&job.spec).map_err(|_| row::damaged("invalid options"))?;
    let idempotency_key = job.idempotency_key.as_ref().map(|key| &key[..]);
    let number = sql
        .query(
            "INSERT INTO jobs (id, owner, spec, shared, idempotency_key, state, created_at, \
             has_webhook, replica, lease_until) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, clock_timestamp() + interval '10 minutes') \
             RETURNING number",
            &[
                &job.id.as_str(),
                &row::owner(&job.owner),
                &spec,
                &row::shared(&job.shared)?,
                &idempotency_key,
                &UPLOADING,
                &job.created_at.as_millisecond(),
                &job.spec.webhook_url.is_some(),
                &replica.0,
            ],
        )
        .await?;
    let number = number.first().ok_or_else(no_upload)?.whole(0)?;
    Ok(JobNumber(number))
}

pub(super) async fn append(sql: &Sql<'_>, job: JobNumber, blocks: &Blocks) -> Result<(), Failure> {
    let kept = "UPDATE jobs SET lease_until = clock_timestamp() + interval '10 minutes' \
        WHERE number = $1 AND state = 'uploading'";
    if sql.execute(kept, &[&job.0]).await? == 0 {
        return Err(no_upload().into());
    }
    // Items that came before a broken answer are the same.
    sql.execute(
        "INSERT INTO job_blocks (job, first, items, bytes) \
         SELECT $1, * FROM unnest($2::bigint[], $3::integer[], $4::bigint[]) ON CONFLICT DO NOTHING",
        &[&job.0, &blocks.first, &blocks.items, &blocks.bytes],
    )
    .await?;
    sql.execute(
        "INSERT INTO job_payloads (job, first, lines) \
         SELECT $1, * FROM unnest($2::bigint[], $3::bytea[]) ON CONFLICT DO NOTHING",
        &[&job.0, &blocks.first, &blocks.lines],
    )
    .await?;
    Ok(())
}

pub(super) async fn commit(
    sql: &Sql<'_>,
    specs: &Specs,
    job: JobNumber,
    totals: Totals,
    now: Timestamp,
) -> Result<Committed, Failure> {
    let this = "SELECT state, owner, idempotency_key FROM jobs WHERE number = $1 FOR UPDATE";
    let this = sql.query_optional(this, &[&job.0]).await?.ok_or_else(no_upload)?;
    match this.text(0)?.as_str() {
        UPLOADING => {}
        DELETING => return Err(no_upload().into()),
        _ => return accepted(sql, specs, job, now).await,
    }
    let items = "SELECT coalesce(sum(items), 0)::bigint FROM job_blocks WHERE job = $1";
    let items = sql.query_optional(items, &[&job.0]).await?;
    if items.ok_or_else(no_upload)?.whole(0)? != signed(totals.items) {
        let message = "the items of a job are not those that were counted";
        return Err(row::damaged(message).into());
    }
    let key: Option<Vec<u8>> = this.try_get(2)?;
    let owner = this.text(1)?;
    let same = sql
        .query_optional(
            "SELECT number, content FROM jobs WHERE owner = $1 AND idempotency_key = $2 \
             AND state NOT IN ('uploading', 'deleting')",
            &[&owner, &key],
        )
        .await?;
    if let Some(same) = same {
        abandon(sql, job).await?;
        let content: Option<Vec<u8>> = same.try_get(1)?;
        if content.as_deref() != Some(&totals.content[..]) {
            return Ok(Committed::Conflict);
        }
        let row = rows::find(sql, JobNumber(same.whole(0)?)).await?.ok_or_else(no_upload)?;
        return Ok(Committed::Same(Box::new(rows::job(sql, specs, row).await?)));
    }
    // Another replica may commit a job with the same key now: then this fails, and is tried again.
    sql.execute(
        "UPDATE jobs SET state = 'queued', total = $2, bytes = $3, content = $4, replica = NULL, \
         lease_until = NULL WHERE number = $1",
        &[&job.0, &signed(totals.items), &signed(totals.bytes), &&totals.content[..]],
    )
    .await?;
    accepted(sql, specs, job, now).await
}

async fn accepted(
    sql: &Sql<'_>,
    specs: &Specs,
    job: JobNumber,
    now: Timestamp,
) -> Result<Committed, Failure> {
    let mut row = rows::find(sql, job).await?.ok_or_else(no_upload)?;
    if row.total == 0 && !row.state.has_ended() {
        row.complete_if_all_are_answered(now);
        rows::save(sql, &row).await?;
    }
    Ok(Committed::New(Box::new(rows::job(sql, specs, row).await?)))
}

/// Returns whether there was an upload.
pub(super) async fn abandon(sql: &Sql<'_>, job: JobNumber) -> Result<bool, Failure> {
    let statement = "UPDATE jobs SET state = 'deleting' WHERE number = $1 AND state = 'uploading'";
    Ok(sql.execute(statement, &[&job.0]).await? > 0)
}
