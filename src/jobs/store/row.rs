//! A job's row: how it is written in both databases, and what changes do to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::StoreError;
use crate::jobs::model::{
    Answered, Change, Failures, Job, JobId, JobNumber, JobSpec, JobState, Owner, PauseReason,
    Progress, Rate, SharedFields,
};
use crate::prices::NanoDollars;

/// The columns that [`Row::read`] reads, in its order.
pub(super) const COLUMNS: &str = "number, id, owner, state, reason, total, bytes, succeeded, failed, \
    input_tokens, output_tokens, cost, rate_weighted, rate_seconds, rate_at, created_at, started_at, \
    ended_at, has_webhook, announce_at, announcements";

/// States in which nobody sees a job.
pub(super) const UPLOADING: &str = "uploading";
pub(super) const DELETING: &str = "deleting";

/// A row of a query.
pub(super) trait Columns {
    fn whole(&self, column: usize) -> Result<i64, StoreError>;
    fn optional_whole(&self, column: usize) -> Result<Option<i64>, StoreError>;
    fn real(&self, column: usize) -> Result<f64, StoreError>;
    fn flag(&self, column: usize) -> Result<bool, StoreError>;
    fn optional_text(&self, column: usize) -> Result<Option<String>, StoreError>;

    fn text(&self, column: usize) -> Result<String, StoreError> {
        self.optional_text(column)?.ok_or_else(|| damaged("a job lacks a text"))
    }

    fn time(&self, column: usize) -> Result<Timestamp, StoreError> {
        time(self.whole(column)?)
    }

    fn optional_time(&self, column: usize) -> Result<Option<Timestamp>, StoreError> {
        self.optional_whole(column)?.map(time).transpose()
    }
}

/// A visible job without its options and without its failures by code.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub number: i64,
    pub id: JobId,
    pub owner: Owner,
    pub state: JobState,
    pub reason: Option<PauseReason>,
    pub total: u64,
    pub bytes: u64,
    pub progress: Progress,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub has_webhook: bool,
    /// When the end is announced next.
    pub announce_at: Option<Timestamp>,
    /// Attempts so far.
    pub announcements: i64,
}

impl Row {
    pub fn read(columns: &impl Columns) -> Result<Self, StoreError> {
        let count = |column| Ok::<_, StoreError>(unsigned(columns.whole(column)?));
        let id = columns.text(1)?;
        let state = columns.text(3)?;
        Ok(Self {
            number: columns.whole(0)?,
            id: JobId::parse(&id).ok_or_else(|| damaged("a job has an invalid id"))?,
            owner: read_owner(&columns.text(2)?)?,
            state: read_state(&state).ok_or_else(|| damaged("a job has an unknown state"))?,
            reason: columns.optional_text(4)?.map(read_reason),
            total: count(5)?,
            bytes: count(6)?,
            progress: Progress {
                succeeded: count(7)?,
                failed: count(8)?,
                claimed: 0,
                input_tokens: count(9)?,
                output_tokens: count(10)?,
                cost: NanoDollars(count(11)?),
                rate: Rate::from_parts((columns.real(12)?, columns.real(13)?, columns.whole(14)?)),
                failures: BTreeMap::new(),
            },
            created_at: columns.time(15)?,
            started_at: columns.optional_time(16)?,
            ended_at: columns.optional_time(17)?,
            has_webhook: columns.flag(18)?,
            announce_at: columns.optional_time(19)?,
            announcements: columns.whole(20)?,
        })
    }

    pub fn into_job(
        self,
        spec: Arc<JobSpec>,
        failures: BTreeMap<String, Failures>,
        claimed: u64,
    ) -> Job {
        Job {
            number: JobNumber(self.number),
            id: self.id,
            owner: self.owner,
            spec,
            total: self.total,
            bytes: self.bytes,
            state: self.state,
            reason: self.reason,
            progress: Progress { claimed, failures, ..self.progress },
            created_at: self.created_at,
            started_at: self.started_at,
            ended_at: self.ended_at,
        }
    }

    /// Makes a change if it applies. Returns whether it did.
    pub fn change(&mut self, change: Change, now: Timestamp) -> bool {
        use JobState::{Paused, Queued, Running};
        match (self.state, change) {
            (Queued | Running, Change::Pause(reason)) => {
                (self.state, self.reason) = (Paused, Some(reason));
            }
            (Paused, Change::Pause(PauseReason::Requested))
                if self.reason != Some(PauseReason::Requested) =>
            {
                self.reason = Some(PauseReason::Requested);
            }
            (Paused, Change::Resume) => {
                self.state = if self.started_at.is_some() { Running } else { Queued };
                self.reason = None;
            }
            (Queued | Running | Paused, Change::Cancel) => self.end(JobState::Cancelled, now),
            _ => return false,
        }
        true
    }

    /// Its first items are claimed.
    pub fn start(&mut self, now: Timestamp) {
        self.state = JobState::Running;
        self.started_at.get_or_insert(now.max(self.created_at));
    }

    /// Adds a result.
    pub fn add(&mut self, result: &Answered) {
        let progress = &mut self.progress;
        let count = match result.failure {
            None => &mut progress.succeeded,
            Some(_) => &mut progress.failed,
        };
        *count = count.saturating_add(1);
        progress.input_tokens = progress.input_tokens.saturating_add(result.input_tokens);
        progress.output_tokens = progress.output_tokens.saturating_add(result.output_tokens);
        progress.cost = progress.cost.saturating_add(result.cost);
    }

    /// So many results were added. The job is completed if they were the last.
    pub fn added(&mut self, results: u64, now: Timestamp) {
        self.progress.rate = self.progress.rate.after(results, now);
        self.complete_if_all_are_answered(now);
    }

    pub fn complete_if_all_are_answered(&mut self, now: Timestamp) {
        let answered = self.progress.succeeded.saturating_add(self.progress.failed);
        if answered >= self.total && !self.state.has_ended() {
            self.end(JobState::Completed, now);
        }
    }

    /// Whether the job was cancelled with items that have no result.
    pub fn lacks_results(&self) -> bool {
        let answered = self.progress.succeeded.saturating_add(self.progress.failed);
        self.state == JobState::Cancelled && answered < self.total
    }

    /// Results of so many failed items were removed. A job that has ended is queued; one that goes on already,
    /// since this is a further part of a retry, stays as it is, such as paused.
    pub fn queue_again(&mut self, removed: u64) {
        self.progress.failed = self.progress.failed.saturating_sub(removed);
        if self.state.has_ended() {
            self.state = JobState::Queued;
            self.ended_at = None;
            (self.announce_at, self.announcements) = (None, 0);
        }
    }

    /// The clock may have been set back since the job came.
    fn end(&mut self, state: JobState, now: Timestamp) {
        let now = now.max(self.started_at.unwrap_or(self.created_at));
        (self.state, self.reason, self.ended_at) = (state, None, Some(now));
        (self.announce_at, self.announcements) = (self.has_webhook.then_some(now), 0);
    }
}

/// A number as SQL keeps it.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number as SQL kept it.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn time(millis: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(millis).map_err(|_| damaged("a job has an invalid time"))
}

pub(super) fn owner(owner: &Owner) -> String {
    match owner {
        Owner::Admin => "admin".to_owned(),
        Owner::Fallback => "fallback".to_owned(),
        Owner::Key(digest) => digest.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn read_owner(text: &str) -> Result<Owner, StoreError> {
    match text {
        "admin" => Ok(Owner::Admin),
        "fallback" => Ok(Owner::Fallback),
        digest => {
            let mut key = [0; 32];
            let is_hex = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
            for (byte, at) in key.iter_mut().zip((0..).step_by(2)).filter(|_| is_hex) {
                *byte = u8::from_str_radix(&digest[at..at + 2], 16).unwrap_or(0);
            }
            is_hex.then_some(Owner::Key(key)).ok_or_else(|| damaged("a job has an unknown owner"))
        }
    }
}

pub(super) fn state(state: JobState) -> &'static str {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Completed => "completed",
        JobState::Cancelled => "cancelled",
    }
}

fn read_state(text: &str) -> Option<JobState> {
    use JobState::{Cancelled, Completed, Paused, Queued, Running};
    [Queued, Running, Paused, Completed, Cancelled].into_iter().find(|it| state(*it) == text)
}

const REQUESTED: &str = "requested";
const KEY_NEEDED: &str = "key_needed";

pub(super) fn reason(reason: &PauseReason) -> &str {
    match reason {
        PauseReason::Requested => REQUESTED,
        PauseReason::KeyNeeded => KEY_NEEDED,
        PauseReason::Failing(code) => code,
    }
}

fn read_reason(text: String) -> PauseReason {
    match text.as_str() {
        REQUESTED => PauseReason::Requested,
        KEY_NEEDED => PauseReason::KeyNeeded,
        _ => PauseReason::Failing(text),
    }
}

/// Shared fields as they are stored; nothing if there are none.
pub(super) fn shared(fields: &SharedFields) -> Result<Option<String>, StoreError> {
    let text = (!fields.is_empty()).then(|| serde_json::to_string(fields)).transpose();
    text.map_err(|_| damaged("invalid options"))
}

pub(super) fn read_shared(text: Option<String>) -> Result<SharedFields, StoreError> {
    let fields = text.map(|text| serde_json::from_str(&text)).transpose();
    Ok(fields.map_err(|_| damaged("the options of a job are unreadable"))?.unwrap_or_default())
}

pub(super) fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(what.to_owned())
}

/// The job to which items are added is not there: the process was taken for dead.
pub(super) fn no_upload() -> StoreError {
    StoreError::Unavailable("the job was removed before all of its items came".to_owned())
}

pub(super) fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn queued(total: u64) -> Row {
        Row {
            number: 1,
            id: JobId::random(),
            owner: Owner::Admin,
            state: JobState::Queued,
            reason: None,
            total,
            bytes: 0,
            progress: Progress::default(),
            created_at: at(1000),
            started_at: None,
            ended_at: None,
            has_webhook: true,
            announce_at: None,
            announcements: 0,
        }
    }

    #[test]
    fn changes_follow_the_states() {
        let failing = PauseReason::Failing("account_unfunded".to_owned());
        let mut row = queued(2);
        assert!(!row.change(Change::Resume, at(1001)));
        assert!(row.change(Change::Pause(PauseReason::KeyNeeded), at(1001)));
        assert!(!row.change(Change::Pause(failing.clone()), at(1001)));
        assert_eq!((row.state, &row.reason), (JobState::Paused, &Some(PauseReason::KeyNeeded)));
        assert!(row.change(Change::Pause(PauseReason::Requested), at(1001)));
        assert!(!row.change(Change::Pause(PauseReason::Requested), at(1001)));
        assert!(row.change(Change::Resume, at(1001)));
        assert_eq!((row.state, &row.reason), (JobState::Queued, &None));
        row.start(at(1002));
        assert!(
            row.change(Change::Pause(failing), at(1003)) && row.change(Change::Resume, at(1003))
        );
        assert_eq!(row.state, JobState::Running);
        assert!(row.change(Change::Cancel, at(1004)) && !row.change(Change::Cancel, at(1005)));
        assert_eq!((row.ended_at, row.announce_at), (Some(at(1004)), Some(at(1004))));
        assert!(!row.change(Change::Resume, at(1006)));
    }

    #[test]
    fn a_job_that_is_paused_during_a_retry_stays_paused() {
        let mut row = queued(2);
        row.progress.failed = 2;
        row.complete_if_all_are_answered(at(1001));
        row.queue_again(1);
        assert_eq!((row.state, row.ended_at, row.announce_at), (JobState::Queued, None, None));
        row.change(Change::Pause(PauseReason::Requested), at(1002));
        row.queue_again(1);
        assert_eq!((row.state, row.progress.failed), (JobState::Paused, 0));
        assert_eq!(row.reason, Some(PauseReason::Requested));
    }

    #[test]
    fn times_do_not_run_back_with_the_clock() {
        let mut row = queued(0);
        row.start(at(500));
        row.added(0, at(400));
        assert_eq!((row.started_at, row.ended_at), (Some(at(1000)), Some(at(1000))));
    }

    #[test]
    fn numbers_are_kept_up_to_the_largest_of_sql() {
        assert_eq!(signed(u64::MAX), i64::MAX);
        assert_eq!(unsigned(-1), 0);
        let mut row = queued(3);
        let result = Answered {
            index: 0,
            line: bytes::Bytes::new(),
            failure: None,
            retryable: false,
            input_tokens: u64::MAX,
            output_tokens: u64::MAX,
            cost: NanoDollars(u64::MAX),
        };
        row.add(&result);
        row.add(&result);
        assert_eq!(row.progress.cost, NanoDollars(u64::MAX));
    }

    #[test]
    fn owners_and_reasons_are_read_as_they_were_written() {
        for it in [Owner::Admin, Owner::Fallback, Owner::Key([0xa7; 32]), Owner::Key([0; 32])] {
            assert_eq!(read_owner(&owner(&it)), Ok(it));
        }
        assert!(read_owner("é").is_err() && read_owner(&"é".repeat(32)).is_err());
        for it in [PauseReason::Requested, PauseReason::Failing("x".to_owned())] {
            assert_eq!(read_reason(reason(&it).to_owned()), it);
        }
    }
}
