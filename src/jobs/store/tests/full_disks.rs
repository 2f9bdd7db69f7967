//! Disks that are full or read-only.

use std::fs;
use std::io::Write;
use std::process::Command;

use super::faults_of_files::{contains, folder_of_child, in_child};
use super::*;

#[test]
fn a_read_only_disk_is_unavailable_until_it_is_writable() {
    in_child(module_path!(), "in_a_read_only_folder", "mount -t tmpfs none \"$1\"");
}

#[tokio::test]
#[ignore = "runs in a namespace of its own"]
async fn in_a_read_only_folder() {
    let folder = folder_of_child();
    let store = in_folder(&folder);
    let job = upload(&store, new_job(), 20).await;
    store.close().await;
    remount(&folder, "ro");
    let store = in_folder(&folder);
    for error in [
        store.check().await.err(),
        store.job(job.id.clone()).await.err(),
        store.begin(new_job(), replica("a")).await.err(),
        store.record(job.number, vec![answered(0)], at(1)).await.err(),
    ] {
        assert!(matches!(error, Some(StoreError::Unavailable(_))), "{error:?}");
    }
    remount(&folder, "rw");
    assert_eq!(record(&store, job.number, vec![answered(0)]).await.progress.succeeded, 1);
}

#[test]
fn a_full_disk_is_reported_and_work_goes_on_when_it_has_room() {
    in_child(module_path!(), "in_a_small_folder", "mount -t tmpfs -o size=3m none \"$1\"");
}

#[tokio::test]
#[ignore = "runs in a namespace of its own"]
async fn in_a_small_folder() {
    let folder = folder_of_child();
    let store = in_folder(&folder);
    let job = upload(&store, new_job(), 100).await;
    let first = record(&store, job.number, (0..10).map(answered).collect()).await;
    // An upload that does not fit.
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    append_until_full(&store, number, 100).await;
    // What was recorded is there, and can be read.
    assert_eq!(self::job(&store, &job).await.progress, first.progress);
    assert_eq!(indices(&store, job.number, Order::Completion, false).await.len(), 10);
    // Without room nothing is promised: a result is recorded, or reported as not recorded.
    fill(&folder);
    let huge = Answered { line: noise(), ..answered(10) };
    let refused = store.record(job.number, vec![huge], at(1)).await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    // Others of the same transaction are not lost with it.
    let small = (11..20).map(|index| store.record(job.number, vec![answered(index)], at(1)));
    let recorded: Vec<_> = join_all(small).await.into_iter().filter_map(Result::ok).collect();
    let found = self::job(&store, &job).await.progress.succeeded;
    assert_eq!(found as usize, 10 + recorded.len());
    // Room again.
    remount(&folder, "size=24m");
    store.abandon(number).await.unwrap();
    let huge = Answered { line: noise(), ..answered(10) };
    let mut tries = 0;
    while let Err(error) = store.record(job.number, vec![huge.clone()], at(1)).await {
        assert!(matches!(error, StoreError::Full(_)) && tries < 600, "{error:?}");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = record(&store, job.number, (0..100).map(answered).collect()).await;
    assert_eq!((ended.state, ended.progress.succeeded), (JobState::Completed, 100));
    store.delete(job.number).await.unwrap();
    assert!(!contains(&folder, MARKER));
}

#[test]
fn an_upload_that_fills_the_disk_leaves_room_for_work_and_deletions() {
    in_child(
        module_path!(),
        "in_a_folder_that_uploads_fill",
        "mount -t tmpfs -o size=32m none \"$1\"",
    );
}

#[tokio::test]
#[ignore = "runs in a namespace of its own"]
async fn in_a_folder_that_uploads_fill() {
    let folder = folder_of_child();
    let store = in_folder(&folder);
    let job = upload(&store, new_job(), 1000).await;
    claim_all(&store, job.number, "a").await;
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    append_until_full(&store, number, 1000).await;
    let results = (0..999).map(answered).collect();
    assert_eq!(record(&store, job.number, results).await.progress.succeeded, 999);
    store.abandon(number).await.unwrap();
    assert_eq!(record(&store, job.number, vec![answered(999)]).await.state, JobState::Completed);
    // Deletions are made in order, so this one ends after the upload is gone.
    store.delete(job.number).await.unwrap();
    upload(&store, new_job(), 100).await;
}

#[test]
fn a_deletion_that_the_disk_refuses_is_reported_and_goes_on() {
    in_child(
        module_path!(),
        "in_a_folder_without_room_to_delete",
        "mount -t tmpfs -o size=3m none \"$1\"",
    );
}

#[tokio::test]
#[ignore = "runs in a namespace of its own"]
async fn in_a_folder_without_room_to_delete() {
    let folder = folder_of_child();
    let store = in_folder(&folder);
    let job = upload(&store, new_job(), 3000).await;
    record(&store, job.number, (0..3000).map(answered).collect()).await;
    fill(&folder);
    // Enough to hide the job, and too little to copy the log.
    let filler = fs::OpenOptions::new().write(true).open(folder.join("filler")).unwrap();
    filler.set_len(filler.metadata().unwrap().len() - 65_536).unwrap();
    let refused = store.delete(job.number).await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    remount(&folder, "size=24m");
    // Deletions are made in order, so this one ends after the other job is gone.
    let other = upload(&store, new_job(), 1).await;
    store.delete(other.number).await.unwrap();
    assert!(!contains(&folder, MARKER));
}

/// A line of 200 KB that cannot be compressed.
fn noise() -> Bytes {
    let line: String = (0..200_000).map(|_| fastrand::alphanumeric()).collect();
    format!("{line}\n").into()
}

/// Adds blocks to an upload until the disk is full, which it must be before so many.
async fn append_until_full(store: &Store, upload: JobNumber, most: u64) {
    for first in 0..most {
        let block = NewBlock { first, lines: noise(), items: 1 };
        if let Err(error) = store.append(upload, vec![block]).await {
            return assert!(matches!(error, StoreError::Full(_)), "{error:?}");
        }
    }
    panic!("{most} blocks of 200 KB fit");
}

/// Changes the options with which a folder is mounted.
fn remount(folder: &Path, options: &str) {
    let options = format!("remount,{options}");
    let status = Command::new("mount").args(["-o", &options]).arg(folder).status().unwrap();
    assert!(status.success());
}

/// Takes all the room that is left.
fn fill(folder: &Path) {
    let mut filler = fs::File::create(folder.join("filler")).unwrap();
    for size in [65_536, 4096, 512, 1] {
        while filler.write_all(&vec![b'x'; size]).is_ok() {}
    }
}
