//! What only a database in a file can suffer.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;

/// Runs an ignored test of a module in a child process, which a shell prepares: `$1` is a new folder.
pub(super) fn in_child(module: &str, test: &str, prepare: &str) {
    let folder = TempDir::new().unwrap();
    let program = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module.split_once("::").unwrap().1);
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
pub(super) fn folder_of_child() -> std::path::PathBuf {
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
pub(super) fn contains(folder: &Path, text: &str) -> bool {
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
    in_child(module_path!(), "in_an_emptied_store", "");
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
    let kept = upload(&store, NewJob { shared: SharedFields::new(), ..new_job() }, 0).await;
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
