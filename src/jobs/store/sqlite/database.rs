//! Opens the database: its folder, its lock, its settings and its format.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::jobs::store::StoreError;
use crate::jobs::store::row::Columns;

/// The steps from each format to the next; the format of a database is its `user_version`.
const FORMATS: [&str; 1] = [include_str!("format_1.sql")];

/// "gemj" in `application_id`: tells the database from one of another program.
const APPLICATION: i64 = 0x6765_6d6a;

/// What is written to the file of the lock once the database is made, so that it is noticed if it is
/// emptied or removed.
const MADE: &[u8] = b"jobs.sqlite was made\n";

/// How long a connection waits for another one of this process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The most of the write-ahead log that stays after a checkpoint, in bytes.
const LOG_KEPT: i64 = 64 << 20;

/// Pages of the write-ahead log after which a checkpoint copies them into the database: 16 MB.
const CHECKPOINT_PAGES: i64 = 4096;

/// What uploads leave free, in bytes: a log of 16 MB grows by a large transaction, is copied into the
/// database, and deletions write another one.
const RESERVE: u64 = 64 << 20;

/// What uploads leave free of a small file system, as a part of its size.
const RESERVED_PART: u64 = 10;

/// Where the files are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub folder: PathBuf,
    /// The database. SQLite has its log and an index of it beside it, with `-wal` and `-shm` at the end.
    pub database: PathBuf,
    lock: PathBuf,
}

impl Files {
    pub fn new(folder: PathBuf) -> Self {
        let (database, lock) = (folder.join("jobs.sqlite"), folder.join("jobs.lock"));
        Self { folder, database, lock }
    }

    /// Makes the folder, for its owner only, since prompts are private. It survives a power cut.
    pub fn make_folder(&self) -> Result<(), StoreError> {
        if self.folder.is_dir() {
            return Ok(());
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|error| self.unavailable(&error))?;
        let folder = std::path::absolute(&self.folder).map_err(|error| self.unavailable(&error))?;
        let synced = folder.ancestors().skip(1).try_for_each(|it| File::open(it)?.sync_all());
        // Not all of the folders above may be opened by everyone.
        if let Err(error) = synced {
            tracing::debug!(%error, "a folder above DATA_DIR was not synced");
        }
        Ok(())
    }

    /// Locks the database for this process.
    pub fn lock(&self) -> Result<File, StoreError> {
        let file = open_private(&self.lock).map_err(|error| self.unavailable(&error))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable(format!(
                "another process uses the jobs in {}: give each its own DATA_DIR, or all the same \
                 JOBS_DATABASE_URL",
                self.folder.display()
            ))),
            Err(TryLockError::Error(error)) => Err(self.unavailable(&error)),
        }
    }

    /// Opens the database for the writer, and makes it if it does not exist. An empty file is what a kill
    /// at the first start leaves; SQLite makes a database of it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the file was emptied and its log was not: SQLite would remove the log.
    pub fn open(&self, lock: &mut File) -> Result<Connection, StoreError> {
        let size = |path: &Path| path.metadata().map_or(0, |file| file.len());
        let was_made = lock.metadata().is_ok_and(|file| file.len() > 0);
        if size(&self.database) == 0 {
            if size(&self.log()) > 0 {
                let message = "jobs.sqlite is empty, and its log jobs.sqlite-wal is not: restore a \
                               backup, or remove both";
                return Err(StoreError::Damaged(message.to_owned()));
            }
            if was_made {
                let database = self.database.display();
                tracing::warn!(%database, "the job store was emptied or removed; it begins anew");
            }
        }
        let database = self.open_database()?;
        // Written again if it is lost.
        if !was_made && let Err(error) = lock.write_all(MADE) {
            tracing::debug!(%error, "the file of the lock was not written");
        }
        Ok(database)
    }

    fn open_database(&self) -> Result<Connection, StoreError> {
        open_private(&self.database).map_err(|error| self.unavailable(&error))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut database = Connection::open_with_flags(&self.database, flags)?;
        database.busy_timeout(BUSY_TIMEOUT)?;
        database.set_prepared_statement_cache_capacity(64);
        // Before anything that writes: it cannot be changed in a database with tables.
        database.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        check_format(&database)?;
        let mode: String =
            database.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            let message = format!("{} allows no write-ahead log", self.folder.display());
            return Err(StoreError::Unavailable(message));
        }
        database.pragma_update(None, "synchronous", "FULL")?;
        database.pragma_update(None, "secure_delete", "ON")?;
        database.pragma_update(None, "foreign_keys", "ON")?;
        database.pragma_update(None, "journal_size_limit", LOG_KEPT)?;
        database.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        database.pragma_update(None, "cache_size", -16_384)?;
        database.pragma_update(None, "temp_store", "MEMORY")?;
        migrate(&mut database)?;
        Ok(database)
    }

    /// Opens the database for a reader, while the writer has it open.
    pub fn open_for_reading(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(&self.database, flags)?;
        database.busy_timeout(BUSY_TIMEOUT)?;
        database.pragma_update(None, "query_only", true)?;
        database.pragma_update(None, "cache_size", -2048)?;
        Ok(database)
    }

    /// The write-ahead log of the database.
    fn log(&self) -> PathBuf {
        self.folder.join("jobs.sqlite-wal")
    }

    /// Whether an upload may write so many bytes. It leaves room for what must go on: results are recorded, and
    /// jobs are deleted, which writes to the log before it frees anything.
    pub fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        // Without an answer the write itself tells.
        let Ok(space) = rustix::fs::statvfs(&self.folder) else { return Ok(()) };
        // Some file systems have no size to tell.
        if space.f_blocks == 0 {
            return Ok(());
        }
        let reserve = (space.f_blocks * space.f_frsize / RESERVED_PART).min(RESERVE);
        let free = space.f_bavail * space.f_frsize;
        // What is written is in the log first, and then in the database too.
        let log = self.log().metadata().map_or(0, |file| file.len());
        let needed = bytes.saturating_mul(2).saturating_add(log).saturating_add(reserve);
        if free >= needed {
            return Ok(());
        }
        let message = format!("{}: {free} bytes are free", self.folder.display());
        Err(StoreError::Full(format!("{message}, and an upload needs {needed} with a reserve")))
    }

    /// SQLite reports some writes to a full disk as errors of the disk.
    pub fn explain(&self, error: StoreError) -> StoreError {
        let StoreError::Unavailable(message) = &error else { return error };
        let is_full = rustix::fs::statvfs(&self.folder).is_ok_and(|space| space.f_bavail == 0);
        if is_full { StoreError::Full(message.clone()) } else { error }
    }

    fn unavailable(&self, error: &io::Error) -> StoreError {
        let message = format!("{}: {error}", self.folder.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(message),
            _ => StoreError::Unavailable(message),
        }
    }
}

/// Opens a file, which is made for its owner only.
fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn check_format(database: &Connection) -> Result<i64, StoreError> {
    let format = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = FORMATS.len() as i64;
    if format > known {
        return Err(StoreError::TooNew { found: format, known });
    }
    let application: i64 = database.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 =
        database.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if format < 0 || (tables > 0 && (application != APPLICATION || format == 0)) {
        return Err(StoreError::Damaged("the file is a database of another program".to_owned()));
    }
    Ok(format)
}

/// Brings the database to the newest format, in one transaction.
fn migrate(database: &mut Connection) -> Result<(), StoreError> {
    let format = check_format(database)? as usize;
    if format == FORMATS.len() {
        return Ok(());
    }
    let transaction = database.transaction()?;
    for step in &FORMATS[format..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", FORMATS.len() as i64)?;
    Ok(transaction.commit()?)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let message = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(message),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(message),
            Some(_) => Self::Unavailable(message),
            // A value of another type, or a row too few.
            None => Self::Damaged(message),
        }
    }
}

impl Columns for rusqlite::Row<'_> {
    fn whole(&self, column: usize) -> Result<i64, StoreError> {
        Ok(self.get(column)?)
    }

    fn optional_whole(&self, column: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.get(column)?)
    }

    fn real(&self, column: usize) -> Result<f64, StoreError> {
        Ok(self.get(column)?)
    }

    fn flag(&self, column: usize) -> Result<bool, StoreError> {
        Ok(self.get(column)?)
    }

    fn optional_text(&self, column: usize) -> Result<Option<String>, StoreError> {
        Ok(self.get(column)?)
    }
}
