//! Connections to the database: made when they are needed, and made again when they break.

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, Transaction,
};
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::url::parse;
use crate::connect;
use crate::jobs::store::StoreError;
use crate::jobs::store::row::{Columns, closed};

/// The steps from each format to the next; the format is in the table `job_format`.
const FORMATS: [&str; 1] = [include_str!("format_1.sql")];

/// The most connections of a replica.
const MAX_CONNECTIONS: usize = 8;

/// How long a transaction may take. A slow database delays results, a stopped one must not stop all else.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often a transaction is tried that others got in the way of.
const MAX_TRIES: usize = 5;

/// Any number that is the same in all replicas: who holds this advisory lock makes the tables.
const FORMAT_LOCK: i64 = 0x6765_6d6a_6f62_7301;

/// The database.
#[derive(Debug)]
pub(super) struct Database {
    url: SecretString,
    pool: OnceCell<Pool>,
    /// Set once the tables are there, in a format that is known.
    is_ready: OnceCell<()>,
    /// One for each connection. Waiting for one takes as long as those before need.
    permits: Semaphore,
    is_closed: AtomicBool,
}

/// Why a transaction failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// For this reason.
    Final(StoreError),
    /// Another transaction was in the way, so it is worth another try.
    Again(StoreError),
}

/// A transaction. Its statements are prepared once for each connection.
pub(super) struct Sql<'a>(Transaction<'a>);

impl Sql<'_> {
    pub async fn query(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let statement = self.0.prepare_cached(statement).await?;
        Ok(self.0.query(&statement, values).await?)
    }

    pub async fn query_optional(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Failure> {
        Ok(self.query(statement, values).await?.pop())
    }

    /// Returns how many rows were changed.
    pub async fn execute(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Failure> {
        let statement = self.0.prepare_cached(statement).await?;
        Ok(self.0.execute(&statement, values).await?)
    }
}

impl Database {
    pub fn new(url: SecretString) -> Self {
        Self {
            url,
            pool: OnceCell::new(),
            is_ready: OnceCell::new(),
            permits: Semaphore::new(MAX_CONNECTIONS),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Makes a transaction, again if another one was in its way.
    pub async fn transaction<T>(
        &self,
        work: impl for<'a> Fn(&'a Sql<'_>) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        let _permit = self.permits.acquire().await.map_err(|_| closed())?;
        let mut tries = 1;
        loop {
            match self.within_timeout(&work).await {
                Ok(done) => return Ok(done),
                Err(Failure::Again(_)) if tries < MAX_TRIES => tries += 1,
                Err(Failure::Again(error) | Failure::Final(error)) => {
                    return Err(self.without_password(error));
                }
            }
        }
    }

    async fn within_timeout<T>(
        &self,
        work: impl for<'a> Fn(&'a Sql<'_>) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let late = || unavailable(format!("no answer within {} seconds", TIMEOUT.as_secs()));
        let trying = async {
            let mut connection = Some(self.connection().await?);
            let outcome = transaction(connection.as_mut(), work).await;
            if outcome.is_err()
                && let Some(connection) = connection.take()
            {
                // Whatever is unfinished on it ends with it.
                drop(Object::take(connection));
            }
            outcome
        };
        timeout(TIMEOUT, trying).await.unwrap_or_else(|_| Err(Failure::Final(late())))
    }

    /// A connection to a database whose format is known.
    async fn connection(&self) -> Result<Object, Failure> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(closed().into());
        }
        let pool = self.pool.get_or_try_init(|| self.make_pool()).await?;
        self.is_ready.get_or_try_init(|| prepare(pool)).await?;
        Ok(pool.get().await?)
    }

    async fn make_pool(&self) -> Result<Pool, StoreError> {
        let config = parse(self.url.expose_secret());
        let config = config.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match config.get_ssl_mode() {
            SslMode::Disable => Manager::from_config(config, NoTls, manager),
            mode => {
                let is_needed = mode == SslMode::Require;
                let tls = tokio::task::spawn_blocking(move || connect::tls(is_needed)).await;
                let tls = tls.map_err(|_| closed())?;
                let tls = tls.map_err(|error| StoreError::Unavailable(error.to_string()))?;
                Manager::from_config(config, MakeRustlsConnect::new(tls), manager)
            }
        };
        let pool = Pool::builder(manager)
            .max_size(MAX_CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(TIMEOUT))
            .create_timeout(Some(TIMEOUT))
            .recycle_timeout(Some(TIMEOUT));
        pool.build().map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        if let Some(pool) = self.pool.get() {
            pool.close();
        }
    }

    /// No error is expected to quote the password. This makes sure of it.
    fn without_password(&self, error: StoreError) -> StoreError {
        let Ok(config) = parse(self.url.expose_secret()) else { return error };
        let password = config.get_password().unwrap_or_default();
        let password = String::from_utf8_lossy(password);
        let hide = |message: String| match password.is_empty() {
            true => message,
            false => message.replace(&*password, "…"),
        };
        match error {
            StoreError::Full(message) => StoreError::Full(hide(message)),
            StoreError::Unavailable(message) => StoreError::Unavailable(hide(message)),
            StoreError::Damaged(message) => StoreError::Damaged(hide(message)),
            StoreError::TooNew { .. } => error,
        }
    }
}

async fn transaction<T>(
    connection: Option<&mut Object>,
    work: impl for<'a> Fn(&'a Sql<'_>) -> BoxFuture<'a, Result<T, Failure>>,
) -> Result<T, Failure> {
    let connection = connection.ok_or_else(closed)?;
    let sql = Sql(connection.transaction().await?);
    let done = work(&sql).await?;
    sql.0.commit().await?;
    Ok(done)
}

/// Makes the tables, or brings them to the newest format. Replicas that start together wait for each other.
async fn prepare(pool: &Pool) -> Result<(), Failure> {
    let mut connection = pool.get().await?;
    let transaction = connection.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&FORMAT_LOCK]).await?;
    let exists = transaction.query_one("SELECT to_regclass('job_format') IS NOT NULL", &[]).await?;
    let mut format = 0;
    if exists.try_get(0)? {
        format =
            transaction.query_one("SELECT max(format) FROM job_format", &[]).await?.try_get(0)?;
    } else {
        transaction.batch_execute("CREATE TABLE job_format (format bigint NOT NULL)").await?;
    }
    let known = FORMATS.len() as i64;
    if format > known {
        return Err(StoreError::TooNew { found: format, known }.into());
    }
    for step in &FORMATS[usize::try_from(format).unwrap_or(0)..] {
        transaction.batch_execute(step).await?;
    }
    if format < known {
        transaction.execute("INSERT INTO job_format VALUES ($1)", &[&known]).await?;
    }
    Ok(transaction.commit().await?)
}

fn unavailable(message: String) -> StoreError {
    StoreError::Unavailable(message)
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(reported) = error.as_db_error() else {
            // Its sources say what is wrong with the connection.
            let mut message = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            return Self::Final(unavailable(message));
        };
        // Its other fields may quote data.
        let message = format!("{} ({})", reported.message(), reported.code().code());
        match *reported.code() {
            SqlState::DISK_FULL => Self::Final(StoreError::Full(message)),
            SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED | SqlState::UNDEFINED_TABLE => {
                Self::Final(StoreError::Damaged(message))
            }
            SqlState::T_R_DEADLOCK_DETECTED
            | SqlState::T_R_SERIALIZATION_FAILURE
            | SqlState::UNIQUE_VIOLATION => Self::Again(unavailable(message)),
            _ => Self::Final(unavailable(message)),
        }
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            PoolError::Timeout(_) => {
                Self::Final(unavailable("all connections are in use, or none is made".to_owned()))
            }
            error => Self::Final(unavailable(error.to_string())),
        }
    }
}

/// A value of another type means that somebody changed the tables.
fn unreadable(error: &tokio_postgres::Error) -> StoreError {
    StoreError::Damaged(error.to_string())
}

impl Columns for Row {
    fn whole(&self, column: usize) -> Result<i64, StoreError> {
        self.try_get(column).map_err(|error| unreadable(&error))
    }

    fn optional_whole(&self, column: usize) -> Result<Option<i64>, StoreError> {
        self.try_get(column).map_err(|error| unreadable(&error))
    }

    fn real(&self, column: usize) -> Result<f64, StoreError> {
        self.try_get(column).map_err(|error| unreadable(&error))
    }

    fn flag(&self, column: usize) -> Result<bool, StoreError> {
        self.try_get(column).map_err(|error| unreadable(&error))
    }

    fn optional_text(&self, column: usize) -> Result<Option<String>, StoreError> {
        self.try_get(column).map_err(|error| unreadable(&error))
    }
}
