//! The engine over a database file, which only its file outlives.

use super::*;
use crate::jobs::store::open;
use crate::jobs::{Order, StoreSettings};

const LIMIT: usize = 8;

fn start(jobs: &Arc<Jobs>, script: &Arc<Script>) -> Engine {
    let limiter = Limiter::new(LIMIT, 10, QuotaPlan::default());
    let metrics = Arc::new(Metrics::new(Arc::clone(&limiter)));
    let settings = EngineSettings {
        lease: super::LEASE,
        retention: None,
        large_items: 0,
        metrics: Arc::clone(&metrics),
        observer: None,
    };
    let (dispatcher, format) = (dispatcher(&limiter, &metrics), Arc::new(Arc::clone(script)));
    Engine::start(Arc::clone(jobs), dispatcher, format, Some(key("server-key")), settings)
}

/// The job, once it is completed or when a time has passed.
async fn job_after(jobs: &Arc<Jobs>, id: &JobId, number: JobNumber, time: Duration) -> Job {
    let completed = async {
        let mut watch = jobs.watch(number);
        while jobs.store().job(id.clone()).await.unwrap().unwrap().state != JobState::Completed {
            watch.changed().await;
        }
    };
    let _ = tokio::time::timeout(time, completed).await;
    jobs.store().job(id.clone()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_repeat_only_what_was_not_recorded() {
    const ITEMS: u64 = 1500;
    let folder = tempfile::tempdir().unwrap();
    let settings = StoreSettings { folder: folder.path().to_owned(), database: None };
    let script = Script::new(|_, _| Action::Answer);
    let mut jobs = Jobs::new(open(&settings));
    let number = begin(&jobs, Owner::Admin).await;
    commit(&jobs, number, "a", ITEMS).await;
    let id = jobs.store().open_jobs().await.unwrap()[0].id.clone();
    let mut may_repeat = 0;
    for crash in 1.. {
        let engine = start(&jobs, &script);
        // The machine may be slow, and every life has to get on.
        let life = CALL * crash + CALL.mul_f64(10.0 * fastrand::f64());
        let job = job_after(&jobs, &id, number, life).await;
        if job.state == JobState::Completed {
            break;
        }
        drop(engine);
        jobs.store().close().await;
        jobs = Jobs::new(open(&settings));
        // All that was asked and has no result now was in flight, or was being recorded.
        let recorded = jobs.store().job(id.clone()).await.unwrap().unwrap().progress.succeeded;
        let unrecorded = u64::from(script.calls()) - may_repeat - recorded;
        assert!(unrecorded <= (2 * LIMIT + LIMIT + LIMIT) as u64, "{unrecorded} in crash {crash}");
        may_repeat += unrecorded;
    }
    assert_eq!(u64::from(script.calls()), ITEMS + may_repeat);
    let (limit, bytes) = (2 * ITEMS as u32, usize::MAX);
    let page = jobs.store().results(number, Order::Input, false, 0, limit, bytes).await.unwrap();
    assert_eq!(page.results.len() as u64, ITEMS);
    for (index, result) in (0..).zip(page.results) {
        assert_eq!((result.index, result.line), (index, format!("answer to a {index}").into()));
    }
}
