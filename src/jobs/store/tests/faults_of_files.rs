//! What only a database in a file can suffer.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;

/// Runs an ignored test of this file in a child process, which a shell prepares: `$1` is a new folder.
fn in_child(test: &str, prepare: &str) {
    let folder = TempDir::new().unwrap();
    let program = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let script = format!("{prepare}\nexec \"$2\" --exact \"$3\" --ignored --nocapture");
    let mut command = Command::new("unshare");
    if !rustix::process::getuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--mount", "sh", "-ec", &script, "sh"])
        .arg(folder.path())
        .arg(program)
        .arg(&name);
    let output = command.env("JOB_STORE_FOLDER", folder.path()).output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.contains("1 passed"), "{log}");
}

/// The folder of a test in a child process.
fn folder_of_child() -> std::path::PathBuf {
    std::env::var_os("JOB_STORE_FOLDER").expect("run by another test").into()
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether a text is in any file of a folder.
fn contains(folder: &Path, text: &str) -> bool {
    let contains = |name: &String| {
        let file = fs::read(folder.join(name)).unwrap();
        memchr::memmem::find(&file, text.as_bytes()).is_some()
    };
    files(folder).iter().any(contains)
}

#[tokio::test]
async fn nothing_is_on_the_disk_before_the_first_job() {
    let folder = TempDir::new().unwrap();
    let inside = folder.path().join("deep").join("data");
    let store = in_folder(&inside);
    store.check().await.unwrap();
    assert_eq!(store.job(JobId::random()).await, Ok(None));
    assert_eq!(store.jobs(None, None, 10).await, Ok(Vec::new()));
    assert_eq!(store.open_jobs().await, Ok(Vec::new()));
    assert_eq!(store.renew(replica("a"), LEASE).await, Ok(Vec::new()));
    assert_eq!(store.ended_before(at(0), 10).await, Ok(Vec::new()));
    assert_eq!(store.due_announcements(at(0), LEASE, 10).await, Ok(Vec::new()));
    store.delete(JobNumber(1)).await.unwrap();
    assert!(store.results(JobNumber(1), Order::Input, false, 0, 9, 9).await.unwrap().is_last);
    assert!(claim_all(&store, JobNumber(1), "a").await.is_empty());
    store.close().await;
    assert!(files(folder.path()).is_empty());

    let store = in_folder(&inside);
    upload(&store, new_job(), 1).await;
    assert_eq!(files(&inside), ["jobs.lock", "jobs.sqlite", "jobs.sqlite-shm", "jobs.sqlite-wal"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inside), 0o700);
    for file in files(&inside) {
        assert_eq!(mode(&inside.join(&file)), 0o600, "{file}");
    }
    store.close().await;
    assert_eq!(files(&inside), ["jobs.lock", "jobs.sqlite"]);
}

#[tokio::test]
async fn a_second_process_is_told_that_the_folder_is_in_use() {
    let folder = TempDir::new().unwrap();
    let first = in_folder(folder.path());
    let job = upload(&first, new_job(), 1).await;
    let second = in_folder(folder.path());
    for error in [second.check().await.err(), second.job(job.id.clone()).await.err()] {
        let Some(StoreError::Unavailable(message)) = error else { panic!("{error:?}") };
        assert!(message.contains("another process uses"), "{message}");
    }
    first.close().await;
    assert_eq!(second.job(job.id.clone()).await, Ok(Some(job)));
}

/// What happens is logged by the thread of the store, so that the test is in a process of its own.
#[test]
fn an_emptied_store_is_noticed() {
    in_child("in_an_emptied_store", "");
}

#[tokio::test]
#[ignore = "run in a child process"]
async fn in_an_emptied_store() {
    let folder = folder_of_child();
    let log = Log::default();
    let lines = log.clone();
    tracing_subscriber::fmt().with_writer(move || lines.clone()).init();
    let (database, wal) = (folder.join("jobs.sqlite"), folder.join("jobs.sqlite-wal"));
    // A kill at the first start left an empty file, and nothing else.
    fs::write(&database, "").unwrap();
    fs::write(folder.join("jobs.lock"), "").unwrap();
    let store = in_folder(&folder);
    upload(&store, new_job(), 1).await;
    store.close().await;
    assert_eq!(log.text(), "");

    for remove in [false, true] {
        match remove {
            true => fs::remove_file(&database).unwrap(),
            false => fs::write(&database, "").unwrap(),
        }
        let store = in_folder(&folder);
        let job = upload(&store, new_job(), 1).await;
        assert_eq!(store.jobs(None, None, 10).await.unwrap(), [job]);
        store.close().await;
        let text = log.take();
        assert!(text.contains("WARN") && text.contains("emptied or removed"), "{text}");
    }

    let store = in_folder(&folder);
    upload(&store, new_job(), 1).await;
    let kept = fs::read(&wal).unwrap();
    store.close().await;
    assert_eq!(log.text(), "");
    fs::write(&database, "").unwrap();
    fs::write(&wal, &kept).unwrap();
    let store = in_folder(&folder);
    let refused = store.begin(new_job(), replica("a")).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Damaged(message) if message.contains("backup")));
    store.close().await;
    assert_eq!(fs::read(&wal).unwrap(), kept);
}

/// Keeps what is logged.
#[derive(Debug, Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn take(&self) -> String {
        let text = self.text();
        self.0.lock().unwrap().clear();
        text
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn claims_end_with_the_process() {
    let folder = TempDir::new().unwrap();
    let store = in_folder(folder.path());
    let number = upload(&store, new_job(), 30).await.number;
    claim_all(&store, number, "a").await;
    record(&store, number, vec![answered(4)]).await;
    store.close().await;
    let store = in_folder(folder.path());
    assert_eq!(claim_all(&store, number, "b").await.len(), 3);
}

#[tokio::test]
async fn an_interrupted_upload_is_removed_at_the_next_start() {
    let folder = TempDir::new().unwrap();
    let store = in_folder(folder.path());
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    store.append(number, blocks(500)).await.unwrap();
    store.close().await;
    assert!(contains(folder.path(), MARKER));
    let store = in_folder(folder.path());
    store.check().await.unwrap();
    // Deletions are made in order, so this one ends after the upload is gone.
    let other = upload(&store, new_job(), 1).await;
    store.delete(other.number).await.unwrap();
    store.close().await;
    assert!(!contains(folder.path(), MARKER));
}

#[tokio::test]
async fn an_interrupted_deletion_goes_on_at_the_next_start() {
    let folder = TempDir::new().unwrap();
    let store = in_folder(folder.path());
    let job = upload(&store, new_job(), 3000).await;
    record(&store, job.number, (0..3000).map(answered).collect()).await;
    // Its caller and its process go away.
    let deleting = tokio::spawn(store.delete(job.number));
    while store.job(job.id.clone()).await.unwrap().is_some() {}
    deleting.abort();
    store.close().await;
    let store = in_folder(folder.path());
    assert_eq!(store.job(job.id).await, Ok(None));
    let other = upload(&store, new_job(), 1).await;
    store.delete(other.number).await.unwrap();
    store.close().await;
    assert!(!contains(folder.path(), MARKER));
}

#[tokio::test]
async fn nothing_of_a_deleted_job_is_left_in_the_files() {
    let folder = TempDir::new().unwrap();
    let store = in_folder(folder.path());
    let kept = upload(
        &store,
        NewJob { spec: JobSpec { shared: Default::default(), ..new_job().spec }, ..new_job() },
        0,
    )
    .await;
    let job = upload(&store, new_job(), 2000).await;
    record(&store, job.number, (0..1000).map(answered).collect()).await;
    let failures = (1000..2000).map(|index| failed(index, "timeout", true)).collect();
    record(&store, job.number, failures).await;
    assert!(contains(folder.path(), MARKER));
    let before: u64 = fs::metadata(folder.path().join("jobs.sqlite-wal")).unwrap().len();
    assert!(before > 100_000);
    store.delete(job.number).await.unwrap();
    assert!(!contains(folder.path(), MARKER), "while the store is open");
    assert_eq!(fs::metadata(folder.path().join("jobs.sqlite-wal")).unwrap().len(), 0);
    let size = fs::metadata(folder.path().join("jobs.sqlite")).unwrap().len();
    assert!(size < 150_000, "the space is given back: {size} bytes are left");
    assert_eq!(store.job(kept.id.clone()).await, Ok(Some(kept)));
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let folder = TempDir::new().unwrap();
    let store = in_folder(folder.path());
    let job = upload(&store, new_job(), 1).await;
    store.close().await;
    let database = rusqlite::Connection::open(folder.path().join("jobs.sqlite")).unwrap();
    database.pragma_update(None, "user_version", 77).unwrap();
    drop(database);
    let store = in_folder(folder.path());
    let refused = StoreError::TooNew { found: 77, known: 1 };
    assert_eq!(store.check().await, Err(refused.clone()));
    assert_eq!(store.job(job.id).await, Err(refused.clone()));
    assert_eq!(store.begin(new_job(), replica("a")).await, Err(refused));
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let database = rusqlite::Connection::open(&path).unwrap();
    database.execute_batch("CREATE TABLE birds (name TEXT)").unwrap();
    drop(database);
    let before = fs::read(&path).unwrap();
    let store = in_folder(folder.path());
    assert!(matches!(store.check().await, Err(StoreError::Damaged(_))));
    assert!(matches!(store.begin(new_job(), replica("a")).await, Err(StoreError::Damaged(_))));
    store.close().await;
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_corrupt_file_is_an_error_and_never_a_wrong_result() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let store = in_folder(folder.path());
    let job = upload(&store, new_job(), 2000).await;
    record(&store, job.number, (0..2000).map(answered).collect()).await;
    store.close().await;
    let whole = fs::read(&path).unwrap();
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(b"this is not a database").unwrap();
    let store = in_folder(folder.path());
    assert!(matches!(store.check().await, Err(StoreError::Damaged(_))));
    assert!(matches!(store.job(job.id.clone()).await, Err(StoreError::Damaged(_))));
    store.close().await;
    // Pages in the middle.
    let mut damaged = 0;
    for start in (4096..whole.len() as u64 - 4096).step_by(whole.len() / 20) {
        fs::write(&path, &whole).unwrap();
        file.seek(SeekFrom::Start(start)).unwrap();
        file.write_all(&[0xff; 4096]).unwrap();
        let store = in_folder(folder.path());
        let (mut after, mut read) = (0, 0);
        loop {
            match store.results(job.number, Order::Input, false, after, 100, 1 << 20).await {
                Err(error) => {
                    assert!(matches!(error, StoreError::Damaged(_)), "{error:?}");
                    damaged += 1;
                    break;
                }
                Ok(page) => {
                    for (result, index) in page.results.iter().zip(after..) {
                        assert_eq!((result.index, &result.line), (index, &answered(index).line));
                        read += 1;
                    }
                    if page.is_last {
                        assert_eq!(read, 2000);
                        break;
                    }
                    after = page.results.last().expect("all are answered").next;
                }
            }
        }
        store.close().await;
    }
    assert!(damaged > 5, "{damaged} of 20");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_unavailable_until_it_can() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("data");
    fs::write(&path, "a file").unwrap();
    let store = in_folder(&path);
    for _ in 0..2 {
        let error = store.begin(new_job(), replica("a")).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    }
    fs::remove_file(&path).unwrap();
    upload(&store, new_job(), 1).await;
}

#[test]
fn a_read_only_disk_is_unavailable_until_it_is_writable() {
    in_child("in_a_read_only_folder", "mount -t tmpfs none \"$1\"");
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
    in_child("in_a_small_folder", "mount -t tmpfs -o size=3m none \"$1\"");
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
    let noise = || -> Bytes {
        let mut line: Vec<_> = (0..200_000).map(|_| fastrand::alphanumeric() as u8).collect();
        line.push(b'\n');
        line.into()
    };
    let mut full = None;
    for first in 0..100 {
        let block = NewBlock { first, lines: noise(), items: 1 };
        full = store.append(number, vec![block]).await.err();
        if full.is_some() {
            break;
        }
    }
    assert!(matches!(full, Some(StoreError::Full(_))), "{full:?}");
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
    in_child("in_a_folder_that_uploads_fill", "mount -t tmpfs -o size=32m none \"$1\"");
}

#[tokio::test]
#[ignore = "runs in a namespace of its own"]
async fn in_a_folder_that_uploads_fill() {
    let folder = folder_of_child();
    let store = in_folder(&folder);
    let job = upload(&store, new_job(), 1000).await;
    claim_all(&store, job.number, "a").await;
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    let mut full = None;
    for first in 0..1000 {
        let line: String = (0..200_000).map(|_| fastrand::alphanumeric()).collect();
        let block = NewBlock { first, lines: format!("{line}\n").into(), items: 1 };
        full = store.append(number, vec![block]).await.err();
        if full.is_some() {
            break;
        }
    }
    assert!(matches!(full, Some(StoreError::Full(_))), "{full:?}");
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
    in_child("in_a_folder_without_room_to_delete", "mount -t tmpfs -o size=3m none \"$1\"");
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
