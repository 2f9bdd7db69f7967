//! What is kept between two runs of the same command: a directory beside the output, `….job`. It tells
//! which job the output belongs to and, without a service, has the job itself.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A directory that only this process uses.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// Locked until it is dropped.
    _lock: File,
}

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The URL of the service; `None` if this program runs the job itself.
    pub url: Option<String>,
    /// The digest of what is asked.
    pub digest: String,
    /// Distinguishes jobs that ask the same.
    pub salt: String,
    /// Its id, once it is accepted.
    pub job_id: Option<String>,
    /// Whether its output was completed.
    pub is_finished: bool,
    /// Whether it was begun with `--force`, and its output is not complete yet.
    #[serde(default)]
    pub is_forced: bool,
    /// Whether there was an output when it was last begun or continued, which it may replace.
    #[serde(default)]
    pub replaces: bool,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process uses it.
    #[error("{0}: another run uses it")]
    Busy(String),
    /// It has files, and none of a run.
    #[error("{0} is not the directory of a run; move it, or choose another output")]
    Foreign(String),
    /// Its record cannot be understood.
    #[error("{0} has a damaged run.json: {1}; remove {0}, or begin anew with --force")]
    Damaged(String, serde_json::Error),
    /// It cannot be read or written.
    #[error("{0}: {1}")]
    Unusable(String, io::Error),
}

/// The names of the files in the directory.
const LOCK: &str = "lock";
const RECORD: &str = "run.json";
const NEW_RECORD: &str = "run.json.part";
const DATA: &str = "data";

impl RunDirectory {
    /// Creates a directory, or takes an existing one of a run. Only its user can read it, because it may
    /// contain prompts.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn take(path: PathBuf) -> Result<Self, DirectoryError> {
        let unusable = |error| DirectoryError::Unusable(path.display().to_string(), error);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(unusable(error));
            }
            Err(_) if is_foreign(&path).map_err(unusable)? => {
                return Err(DirectoryError::Foreign(path.display().to_string()));
            }
            _ => {}
        }
        // Whoever created it, and whatever the umask is.
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(unusable)?;
        let lock = File::create(path.join(LOCK)).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DirectoryError::Busy(path.display().to_string())),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }

    /// Where the job is, without a service.
    pub fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a directory has a record, which need not be valid.
    pub fn has_record(path: &Path) -> bool {
        path.join(RECORD).exists()
    }

    /// What the last run of a command left.
    ///
    /// # Errors
    /// [`DirectoryError`] if it cannot be read.
    pub fn record(&self) -> Result<Option<RunRecord>, DirectoryError> {
        let text = match fs::read(self.path.join(RECORD)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.unusable(error)),
        };
        let record = serde_json::from_slice(&text).map(Some);
        record.map_err(|error| DirectoryError::Damaged(self.path.display().to_string(), error))
    }

    /// Keeps what is known, whatever happens to the process.
    ///
    /// # Errors
    /// [`DirectoryError`] if it cannot be written.
    pub fn keep(&self, record: &RunRecord) -> Result<(), DirectoryError> {
        let text = serde_json::to_vec(record).expect("a record is JSON");
        let new = self.path.join(NEW_RECORD);
        let kept = fs::write(&new, text)
            .and_then(|()| File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, self.path.join(RECORD)))
            .and_then(|()| File::open(&self.path)?.sync_all());
        kept.map_err(|error| self.unusable(error))
    }

    /// Removes a job that is no longer wanted.
    ///
    /// # Errors
    /// [`DirectoryError`] if it cannot be removed.
    pub fn clear(&self) -> Result<(), DirectoryError> {
        let cleared = gone(fs::remove_file(self.path.join(RECORD)))
            .and_then(|()| gone(fs::remove_dir_all(self.data())));
        cleared.map_err(|error| self.unusable(error))
    }

    /// Removes the directory. What others put there stays, and the directory with it.
    ///
    /// # Errors
    /// [`DirectoryError`] if it cannot be removed.
    pub fn remove(self) -> Result<(), DirectoryError> {
        // The record goes first: what is left by a crash in between is nobody's.
        self.clear()?;
        let removed = gone(fs::remove_file(self.path.join(NEW_RECORD)))
            .and_then(|()| gone(fs::remove_file(self.path.join(LOCK))))
            .and_then(|()| match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                removed => removed,
            });
        removed.map_err(|error| self.unusable(error))
    }

    fn unusable(&self, error: io::Error) -> DirectoryError {
        DirectoryError::Unusable(self.path.display().to_string(), error)
    }
}

/// Whether a directory has files, but none that every run has.
fn is_foreign(path: &Path) -> io::Result<bool> {
    let is_empty = fs::read_dir(path)?.next().is_none();
    Ok(!is_empty && !path.join(RECORD).exists() && !path.join(LOCK).exists())
}

/// Removing what is not there succeeds.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_record_is_kept_until_the_directory_is_removed() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("out.jsonl.job");
        let record = RunRecord {
            url: None,
            digest: "d".to_owned(),
            salt: String::new(),
            job_id: None,
            is_finished: false,
            is_forced: false,
            replaces: false,
        };
        let directory = RunDirectory::take(path.clone()).unwrap();
        assert_eq!(directory.record().unwrap(), None);
        directory.keep(&record).unwrap();
        assert!(matches!(RunDirectory::take(path.clone()), Err(DirectoryError::Busy(_))));
        drop(directory);
        let directory = RunDirectory::take(path.clone()).unwrap();
        assert_eq!(directory.record().unwrap(), Some(record));
        fs::create_dir(directory.data()).unwrap();
        fs::write(directory.data().join("x"), "x").unwrap();
        directory.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_no_run_made_is_neither_taken_nor_changed() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("out.jsonl.job");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("thesis"), "x").unwrap();
        let refused = RunDirectory::take(path.clone());
        assert!(matches!(refused, Err(DirectoryError::Foreign(_))), "{refused:?}");
        let left: Vec<_> = fs::read_dir(&path).unwrap().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn only_what_a_run_made_is_removed() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("out.jsonl.job");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let directory = RunDirectory::take(path.clone()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(path.join("thesis"), "x").unwrap();
        directory.remove().unwrap();
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["thesis"]);
    }
}
