//! Reads results page by page.

use bytes::Bytes;

use super::database::{Failure, Sql};
use super::rows;
use crate::jobs::model::{Order, ResultPage, StoredResult};
use crate::jobs::store::query::Query;
use crate::jobs::store::row::{Columns, signed, unsigned};

/// The rows of a page, and one more if there is one. Lines that do not fit are not read.
fn statement(query: &Query) -> String {
    let (column, from) = match query.order {
        Order::Input => ("item", ">="),
        Order::Completion => ("seq", ">"),
    };
    let failed = if query.only_failed { "AND failure IS NOT NULL" } else { "" };
    format!(
        "SELECT item, seq, CASE WHEN before < $4::bigint AND number <= $3::bigint OR number = 1 THEN line END \
         FROM (SELECT item, seq, line, row_number() OVER (ORDER BY {column}) AS number, \
         sum(octet_length(line)) OVER (ORDER BY {column}) - octet_length(line) AS before \
         FROM (SELECT item, seq, line FROM job_results WHERE job = $1 AND {column} {from} $2 \
         {failed} ORDER BY {column} LIMIT $3::bigint + 1) AS found) AS sized ORDER BY {column}"
    )
}

pub(super) async fn page(sql: &Sql<'_>, query: Query) -> Result<ResultPage, Failure> {
    // First the job: what it has when it has ended is complete.
    let Some(job) = rows::find(sql, query.job).await? else {
        return Ok(ResultPage { results: Vec::new(), is_last: true });
    };
    let has_gaps = query.has_gaps(job.state);
    let limit = i64::from(query.limit);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
        [&query.job.0, &signed(query.after), &limit, &signed(query.bytes as u64)];
    let mut page = ResultPage { results: Vec::new(), is_last: job.state.has_ended() };
    let mut expected = query.after;
    for found in sql.query(&statement(&query), &values).await? {
        let index = unsigned(found.whole(0)?);
        let line: Option<Vec<u8>> = found.try_get(2)?;
        let is_next = has_gaps || index == expected;
        let Some(line) = line.filter(|_| is_next && query.limit > 0) else {
            page.is_last = false;
            break;
        };
        expected = index.saturating_add(1);
        let next = match query.order {
            Order::Input => expected,
            Order::Completion => unsigned(found.whole(1)?),
        };
        page.results.push(StoredResult { index, next, line: Bytes::from(line) });
    }
    Ok(page)
}
