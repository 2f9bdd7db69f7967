//! Power cuts. After each promise a copy of the files is made, which is what a power cut would leave at
//! least. Later writes may be on the disk too, up to any byte. From each such state all that was promised
//! must be there, and nothing half.

use std::collections::BTreeSet;
use std::fs;

use super::*;

/// The files after a promise, and what was promised.
struct Snapshot {
    database: Vec<u8>,
    log: Vec<u8>,
    promised: Promised,
}

#[derive(Debug, Clone, Default)]
struct Promised {
    jobs: Vec<(JobId, u64)>,
    deleted: Vec<JobId>,
    results: BTreeSet<u64>,
    state: Option<JobState>,
}

const ITEMS: u64 = 30;

/// Makes promises and copies the files after each.
async fn live(folder: &Path) -> Vec<Snapshot> {
    let (store, mut snapshots) = (in_folder(folder), Vec::new());
    let mut promised = Promised::default();
    let mut keep = |promised: &Promised| {
        let database = fs::read(folder.join("jobs.sqlite")).unwrap();
        let log = fs::read(folder.join("jobs.sqlite-wal")).unwrap();
        snapshots.push(Snapshot { database, log, promised: promised.clone() });
    };
    let short = upload(&store, new_job(), 7).await;
    promised.jobs.push((short.id.clone(), 7));
    keep(&promised);
    let job = upload(&store, new_job(), ITEMS).await;
    promised.jobs.push((job.id.clone(), ITEMS));
    promised.state = Some(JobState::Queued);
    keep(&promised);
    // A third one whose upload is never finished.
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    store.append(number, blocks(30)).await.unwrap();
    claim_all(&store, job.number, "a").await;
    promised.state = Some(JobState::Running);
    keep(&promised);
    for index in 0..ITEMS {
        let index = index * 7 % ITEMS;
        let recorded = record(&store, job.number, vec![answered(index)]).await;
        promised.results.insert(index);
        promised.state = Some(recorded.state);
        keep(&promised);
    }
    let hidden = store.delete(short.number);
    hidden.await.unwrap();
    promised.jobs.remove(0);
    promised.deleted.push(short.id);
    keep(&promised);
    snapshots
}

/// Opens what a power cut left. `next` is what was being promised then.
async fn assert_kept(database: &[u8], log: &[u8], promised: &Promised, next: &Promised) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("jobs.sqlite"), database).unwrap();
    fs::write(folder.path().join("jobs.sqlite-wal"), log).unwrap();
    let store = in_folder(folder.path());
    let jobs = store.jobs(None, None, 10).await.unwrap();
    let known: BTreeSet<_> = promised.jobs.iter().chain(&next.jobs).cloned().collect();
    for (id, total) in &promised.jobs {
        let is_deleted = next.deleted.contains(id);
        let found = jobs.iter().find(|job| job.id == *id);
        assert!(is_deleted || found.is_some_and(|job| job.total == *total));
    }
    for job in &jobs {
        assert!(known.contains(&(job.id.clone(), job.total)), "half of a job is seen");
        assert!(!promised.deleted.contains(&job.id));
    }
    let Some(job) = jobs.iter().find(|job| job.total == ITEMS) else { return };
    let found = indices(&store, job.number, Order::Completion, false).await;
    let found: BTreeSet<_> = found.into_iter().collect();
    assert!(found.is_superset(&promised.results) && found.is_subset(&next.results));
    assert_eq!(job.progress.succeeded, found.len() as u64);
    let states = [promised.state, next.state];
    assert!(states.contains(&Some(job.state)), "{:?} {states:?}", job.state);
    // What is asked again is exactly what has no result.
    let claimed = claim_all(&store, job.number, "b").await;
    let asked = claimed.iter().flat_map(|block| {
        (block.first..block.first + 10).filter(|index| !block.answered.contains(index))
    });
    let asked: BTreeSet<_> = asked.collect();
    assert_eq!(asked, (0..ITEMS).filter(|index| !found.contains(index)).collect());
    store.close().await;
    let database = rusqlite::Connection::open(folder.path().join("jobs.sqlite")).unwrap();
    let check: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_promised() {
    let folder = TempDir::new().unwrap();
    let snapshots = live(folder.path()).await;
    let mut random = fastrand::Rng::with_seed(7);
    for (at, next) in snapshots.iter().zip(&snapshots[1..]) {
        let Snapshot { database, log, promised } = at;
        assert_kept(database, log, promised, promised).await;
        // A log that was not begun anew is cut anywhere in what was written since.
        let grows = next.log.len() > log.len() && next.log.starts_with(log);
        if !grows {
            continue;
        }
        for _ in 0..2 {
            let length = random.usize(log.len()..=next.log.len());
            assert_kept(database, &next.log[..length], promised, &next.promised).await;
            // Or blocks of it are on the disk and others before them are not.
            let mut torn = next.log[..length].to_vec();
            let hole = random.usize(log.len()..=length);
            torn[hole..length.min(hole + 512)].fill(0);
            assert_kept(database, &torn, promised, &next.promised).await;
        }
    }
    let last = snapshots.last().unwrap();
    assert_kept(&last.database, &last.log, &last.promised, &last.promised).await;
}

#[tokio::test]
async fn a_power_cut_during_a_checkpoint_loses_nothing() {
    let folder = TempDir::new().unwrap();
    let snapshots = live(folder.path()).await;
    // Before the log is begun anew, the database may have any of its pages.
    let index = snapshots.len() - 2;
    let (old, log) = (&snapshots[index], &snapshots[index].log);
    let copied = TempDir::new().unwrap();
    fs::write(copied.path().join("jobs.sqlite"), &old.database).unwrap();
    fs::write(copied.path().join("jobs.sqlite-wal"), log).unwrap();
    let database = rusqlite::Connection::open(copied.path().join("jobs.sqlite")).unwrap();
    database.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(())).unwrap();
    let new = fs::read(copied.path().join("jobs.sqlite")).unwrap();
    assert!(new.len() > old.database.len());
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20 {
        let mut mixed = old.database.clone();
        mixed.resize(random.usize(mixed.len()..=new.len()), 0);
        for (page, new) in mixed.chunks_mut(512).zip(new.chunks(512)) {
            if random.bool() {
                page.copy_from_slice(&new[..page.len()]);
            }
        }
        assert_kept(&mixed, log, &old.promised, &old.promised).await;
    }
}
