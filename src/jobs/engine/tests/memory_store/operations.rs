//! The operations of the store in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{MemoryStore, Stand, StoredBlock};
use crate::jobs::store::Stored;
use crate::jobs::{
    Answered, Block, Change, Claimed, Committed, FailuresToRetry, Job, JobId, JobNumber, JobState,
    JobStore, NewBlock, NewJob, Order, Owner, Progress, ReplicaId, ResultPage, SharedFields,
    StoreError, StoredResult, Totals,
};

impl JobStore for MemoryStore {
    fn is_shared(&self) -> bool {
        self.lock().settings.is_shared
    }

    fn begin(&self, job: NewJob, _: ReplicaId) -> Stored<JobNumber> {
        self.change_with(move |state| {
            state.begun += 1;
            let number = JobNumber(state.begun);
            let NewJob { id, owner, spec, shared, created_at, .. } = job;
            let job = Job {
                number,
                id,
                owner,
                spec: spec.into(),
                total: 0,
                bytes: 0,
                state: JobState::Queued,
                reason: None,
                progress: Progress::default(),
                created_at,
                started_at: None,
                ended_at: None,
            };
            let stand = Stand {
                job,
                shared,
                committed: false,
                blocks: BTreeMap::new(),
                finished: BTreeMap::new(),
                results: BTreeMap::new(),
            };
            state.jobs.insert(number, stand);
            number
        })
    }

    fn append(&self, job: JobNumber, blocks: Vec<NewBlock>) -> Stored<()> {
        self.change_with(move |state| {
            let stand = state.jobs.get_mut(&job).unwrap();
            for NewBlock { first, lines, items } in blocks {
                let block = StoredBlock { lines, items: items.into(), claim: None };
                stand.blocks.insert(first, block);
            }
        })
    }

    fn commit(&self, job: JobNumber, totals: Totals) -> Stored<Committed> {
        self.change_with(move |state| {
            let stand = state.jobs.get_mut(&job).unwrap();
            stand.committed = true;
            (stand.job.total, stand.job.bytes) = (totals.items, totals.bytes);
            Committed::New(Box::new(stand.job.clone()))
        })
    }

    fn abandon(&self, job: JobNumber) -> Stored<()> {
        self.delete(job)
    }

    fn job(&self, id: JobId) -> Stored<Option<Job>> {
        self.change_with(move |state| {
            state.jobs.values().map(|stand| &stand.job).find(|job| job.id == id).cloned()
        })
    }

    fn shared_fields(&self, job: JobNumber) -> Stored<SharedFields> {
        self.change_with(move |state| {
            state.counted.shared_fields += 1;
            state.jobs.get(&job).map(|stand| stand.shared.clone()).unwrap_or_default()
        })
    }

    fn jobs(&self, _: Option<Owner>, _: Option<JobNumber>, _: u32) -> Stored<Vec<Job>> {
        unimplemented!("engines list only open jobs")
    }

    fn open_jobs(&self) -> Stored<Vec<Job>> {
        let store = self.clone();
        async move {
            let state = store.lock();
            let open = (state.jobs.values())
                .filter(|stand| stand.committed && !stand.job.state.has_ended())
                .map(|stand| {
                    let mut job = stand.job.clone();
                    job.progress.claimed = stand.claimed();
                    job
                });
            Ok(open.collect())
        }
        .boxed()
    }

    fn change(&self, job: JobNumber, change: Change, _: Timestamp) -> Stored<Option<Job>> {
        self.change_with(move |state| {
            let stand = state.jobs.get_mut(&job)?;
            stand.change(change);
            Some(stand.job.clone())
        })
    }

    fn retry(&self, job: JobNumber, _: FailuresToRetry, _: Timestamp) -> Stored<Option<Job>> {
        self.change_with(move |state| {
            let stand = state.jobs.get_mut(&job)?;
            stand.results.retain(|_, result| result.failure.is_none());
            stand.blocks.append(&mut stand.finished);
            stand.job.progress.failed = 0;
            (stand.job.state, stand.job.ended_at) = (JobState::Queued, None);
            Some(stand.job.clone())
        })
    }

    fn delete(&self, job: JobNumber) -> Stored<()> {
        self.change_with(move |state| drop(state.jobs.remove(&job)))
    }

    fn claim(
        &self,
        job: JobNumber,
        replica: ReplicaId,
        items: u32,
        bytes: usize,
        lease: Duration,
    ) -> Stored<Claimed> {
        let loses = self.lock().settings.loses_claims;
        let claim = self.change_with(move |state| {
            let now = Instant::now();
            let mut found = Claimed::default();
            let Some(stand) = state.jobs.get_mut(&job) else { return found };
            if !matches!(stand.job.state, JobState::Queued | JobState::Running) {
                return found;
            }
            let (mut taken, mut size) = (0, 0);
            for (first, block) in &mut stand.blocks {
                let results = stand.results.range(*first..*first + block.items);
                let answered: Vec<u64> = results.map(|(index, _)| *index).collect();
                if block.is_claimed(now) || answered.len() as u64 == block.items {
                    continue;
                }
                (taken, size) = (taken + block.items, size + block.lines.len());
                if size > bytes && found.blocks.is_empty() {
                    found.too_large = Some(size);
                    return found;
                }
                if size > bytes || (taken > items.into() && !found.blocks.is_empty()) {
                    break;
                }
                block.claim = Some((replica.clone(), now + lease));
                found.blocks.push(Block { first: *first, lines: block.lines.clone(), answered });
            }
            let is_any = !found.blocks.is_empty();
            if is_any && stand.job.started_at.is_none() {
                stand.job.started_at = Some(Timestamp::now());
            }
            if is_any {
                stand.job.state = JobState::Running;
            }
            let (items, bytes) = (stand.claimed(), state.claimed_bytes());
            let counted = &mut state.counted;
            counted.most_claimed = counted.most_claimed.max(items);
            counted.most_bytes = counted.most_bytes.max(bytes);
            found
        });
        async move {
            let claimed = claim.await?;
            match loses {
                true => Err(StoreError::Unavailable("the connection broke".to_owned())),
                false => Ok(claimed),
            }
        }
        .boxed()
    }

    fn renew(&self, replica: ReplicaId, lease: Duration) -> Stored<Vec<(JobNumber, u64)>> {
        self.change_with(move |state| {
            let now = Instant::now();
            let mut held = Vec::new();
            for (job, stand) in &mut state.jobs {
                for (first, block) in &mut stand.blocks {
                    if block.claim.as_ref().is_some_and(|(holder, _)| *holder == replica) {
                        block.claim = Some((replica.clone(), now + lease));
                        held.push((*job, *first));
                    }
                }
            }
            held
        })
    }

    fn release(&self, replica: ReplicaId, job: Option<JobNumber>) -> Stored<()> {
        let store = self.clone();
        let release = self.change_with(|_| ());
        async move {
            release.await?;
            store.release_claims(&replica, job);
            Ok(())
        }
        .boxed()
    }

    fn record(&self, job: JobNumber, results: Vec<Answered>, _: Timestamp) -> Stored<Option<Job>> {
        let takes = self.lock().settings.record_takes;
        let record = self.change_with(move |state| {
            state.counted.records += 1;
            let stand = state.jobs.get_mut(&job)?;
            if stand.job.state == JobState::Cancelled {
                return Some(stand.job.clone());
            }
            for result in results {
                if stand.results.contains_key(&result.index) {
                    state.counted.repeated += 1;
                    continue;
                }
                match result.failure {
                    None => stand.job.progress.succeeded += 1,
                    Some(_) => stand.job.progress.failed += 1,
                }
                let index = result.index;
                stand.results.insert(index, result);
                let (&first, block) = stand.blocks.range(..=index).next_back().unwrap();
                if stand.answered(first, block.items) == block.items {
                    let block = stand.blocks.remove(&first).unwrap();
                    stand.finished.insert(first, StoredBlock { claim: None, ..block });
                }
            }
            if stand.job.unanswered() == 0 {
                stand.job.state = JobState::Completed;
                (stand.job.reason, stand.job.ended_at) = (None, Some(Timestamp::now()));
            }
            Some(stand.job.clone())
        });
        async move {
            sleep(takes).await;
            record.await
        }
        .boxed()
    }

    fn results(
        &self,
        job: JobNumber,
        _: Order,
        _: bool,
        after: u64,
        limit: u32,
        _: usize,
    ) -> Stored<ResultPage> {
        self.change_with(move |state| {
            let stored = |result: &Answered| StoredResult {
                index: result.index,
                next: result.index + 1,
                line: result.line.clone(),
            };
            let stand = &state.jobs[&job];
            let results = stand.results.range(after..).take(limit as usize);
            let results = results.map(|(_, result)| stored(result)).collect();
            ResultPage { results, is_last: stand.job.state.has_ended() }
        })
    }

    fn ended_before(&self, time: Timestamp, limit: u32) -> Stored<Vec<JobNumber>> {
        self.change_with(move |state| {
            let jobs = state.jobs.values().map(|stand| &stand.job);
            let ended = jobs.filter(|job| job.ended_at.is_some_and(|at| at < time));
            ended.map(|job| job.number).take(limit as usize).collect()
        })
    }

    fn due_announcements(&self, _: Timestamp, _: Duration, _: u32) -> Stored<Vec<(Job, u32)>> {
        unimplemented!("engines announce nothing")
    }

    fn announced(&self, _: JobNumber, _: Timestamp, _: Option<Timestamp>) -> Stored<()> {
        unimplemented!("engines announce nothing")
    }

    fn check(&self) -> Stored<()> {
        self.change_with(|_| ())
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}
