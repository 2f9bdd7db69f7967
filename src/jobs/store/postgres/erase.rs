//! Removes jobs in steps that are short enough for others to wait. While it lasts, the replica renews
//! its lease of the job; if it dies, another one goes on.

use super::database::{Failure, Sql};
use crate::jobs::model::JobNumber;
use crate::jobs::store::row::Columns;

/// The most jobs that are taken over at once.
const MAX_TAKEN: i64 = 4;

/// Removes some of a hidden job. Returns whether more is left.
pub(super) async fn step(sql: &Sql<'_>, job: JobNumber) -> Result<bool, Failure> {
    let renew = "UPDATE jobs SET lease_until = clock_timestamp() + interval '1 minute' \
        WHERE number = $1 AND state = 'deleting'";
    if sql.execute(renew, &[&job.0]).await? == 0 {
        return Ok(false);
    }
    for statement in [
        "DELETE FROM job_results WHERE job = $1 AND item IN \
         (SELECT item FROM job_results WHERE job = $1 LIMIT 1000)",
        "DELETE FROM job_payloads WHERE job = $1 AND first IN \
         (SELECT first FROM job_payloads WHERE job = $1 LIMIT 200)",
        "DELETE FROM job_blocks WHERE job = $1 AND first IN \
         (SELECT first FROM job_blocks WHERE job = $1 LIMIT 1000)",
        "DELETE FROM job_failures WHERE job = $1",
    ] {
        if sql.execute(statement, &[&job.0]).await? > 0 {
            return Ok(true);
        }
    }
    sql.execute("DELETE FROM jobs WHERE number = $1", &[&job.0]).await?;
    Ok(false)
}

/// Takes over jobs whose replica died while it uploaded or removed them.
pub(super) async fn take_over(sql: &Sql<'_>) -> Result<Vec<JobNumber>, Failure> {
    let found = sql
        .query(
            "UPDATE jobs SET state = 'deleting', \
             lease_until = clock_timestamp() + interval '1 minute' \
             WHERE number IN (SELECT number FROM jobs WHERE state IN ('uploading', 'deleting') \
             AND coalesce(lease_until, '-infinity') <= clock_timestamp() \
             ORDER BY number LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING number",
            &[&MAX_TAKEN],
        )
        .await?;
    Ok(found.iter().map(|row| row.whole(0).map(JobNumber)).collect::<Result<_, _>>()?)
}
