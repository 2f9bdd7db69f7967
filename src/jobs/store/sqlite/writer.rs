//! The thread that makes all changes.
//!
//! It takes all commands that wait and makes them in one transaction, so that many results cost one
//! sync of the disk (group commit). Each command is in a savepoint: one that fails does not
//! take others with it. Callers learn the outcome after the commit.

mod deletions;

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::claims::Claims;
use super::commands::{Command, Context};
use super::database::Files;
use super::erase;
use crate::jobs::store::StoreError;
use crate::jobs::store::row::closed;
use crate::jobs::store::specs::Specs;
use deletions::Erasing;

/// The most commands in one transaction.
const MAX_GROUP: usize = 256;

/// What the writer and the readers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub files: Files,
    pub specs: Specs,
    /// The claims as of the last commit.
    pub claims: Mutex<Claims>,
    /// Odd while the database is open. Connections of an earlier number are not used.
    pub generation: AtomicU64,
}

impl Shared {
    pub fn is_open(&self) -> bool {
        self.generation.load(Ordering::Acquire) % 2 == 1
    }

    pub fn claims(&self) -> Claims {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn unanswered(&self, job: i64) -> u64 {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).unanswered(job)
    }
}

enum Message {
    Run(Box<dyn Command>),
    Erase(i64, oneshot::Sender<Result<(), StoreError>>),
    Close(oneshot::Sender<()>),
}

/// Sends commands to the thread.
#[derive(Debug)]
pub(super) struct Writer(Sender<Message>);

impl Writer {
    /// Starts the thread. It ends when the writer is dropped and all commands are done.
    pub fn start(shared: Arc<Shared>) -> Result<Self, StoreError> {
        let (sender, receiver) = channel();
        let thread = thread::Builder::new().name("job-store".to_owned());
        let started = thread.spawn(move || Thread::new(shared, receiver).run());
        started.map_err(|error| StoreError::Unavailable(format!("no thread: {error}")))?;
        Ok(Self(sender))
    }

    pub fn send(&self, command: Box<dyn Command>) -> Result<(), StoreError> {
        self.0.send(Message::Run(command)).map_err(|_| closed())
    }

    /// Removes all of a hidden job. The receiver gets word when nothing is left, or when the disk refuses
    /// it; the removal is tried again then.
    pub fn erase(&self, job: i64) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(Message::Erase(job, sender)).map_err(|_| closed())?;
        Ok(receiver)
    }

    pub fn close(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        // If the thread has ended, the receiver learns that too.
        drop(self.0.send(Message::Close(sender)));
        receiver
    }
}

struct Thread {
    shared: Arc<Shared>,
    receiver: Receiver<Message>,
    database: Option<Connection>,
    /// Held from the first opening to the end.
    lock: Option<File>,
    claims: Claims,
    /// Whether the connection syncs each commit.
    is_synced: bool,
    erasing: VecDeque<Erasing>,
    /// Whether the last step of a deletion was not made.
    is_refused: bool,
    /// Whether it is logged that deletions fail.
    is_logged: bool,
}

impl Thread {
    fn new(shared: Arc<Shared>, receiver: Receiver<Message>) -> Self {
        Self {
            shared,
            receiver,
            database: None,
            lock: None,
            claims: Claims::default(),
            is_synced: true,
            erasing: VecDeque::new(),
            is_refused: false,
            is_logged: false,
        }
    }

    fn run(mut self) {
        loop {
            let first = match self.receive() {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            };
            let mut group = Vec::new();
            let mut message = first;
            while let Some(next) = message {
                match next {
                    Message::Run(command) => group.push(command),
                    Message::Erase(job, done) => {
                        self.erasing.push_back(Erasing { job, done: Some(done) });
                    }
                    Message::Close(done) => {
                        self.run_group(group);
                        self.close();
                        let _ = done.send(());
                        return;
                    }
                }
                message =
                    if group.len() < MAX_GROUP { self.receiver.try_recv().ok() } else { None };
            }
            if !group.is_empty() {
                self.run_group(group);
            }
            self.erase_some();
        }
    }

    fn run_group(&mut self, commands: Vec<Box<dyn Command>>) {
        if self.database.is_none() {
            let exists = self.shared.files.database.exists();
            if !exists && !commands.iter().any(|command| command.creates()) {
                return commands.into_iter().for_each(|it| it.finish_without_database());
            }
            if let Err(error) = self.open() {
                let error = self.shared.files.explain(error);
                return self.finish(commands.into_iter().map(|it| (it, Err(error.clone()))));
            }
        }
        let mut commands = commands;
        match self.transaction(&mut commands) {
            Ok(outcomes) => self.finish(commands.into_iter().zip(outcomes)),
            Err(error) if commands.len() == 1 => {
                self.finish(commands.into_iter().map(|it| (it, Err(error.clone()))));
            }
            // One of them undid the transaction. Which one shows when each has its own.
            Err(_) => commands.into_iter().for_each(|command| self.run_group(vec![command])),
        }
    }

    fn open(&mut self) -> Result<(), StoreError> {
        let files = &self.shared.files;
        files.make_folder()?;
        let is_first = self.lock.is_none();
        let mut lock = match self.lock.take() {
            Some(lock) => lock,
            None => files.lock()?,
        };
        let database = files.open(&mut lock);
        if !is_first || database.is_ok() {
            self.lock = Some(lock);
        }
        let database = database?;
        self.is_synced = true;
        if is_first {
            // Nobody else has the lock, so their processes have ended.
            let hidden = erase::hidden_jobs(&database)?;
            self.erasing.extend(hidden.into_iter().map(|job| Erasing { job, done: None }));
        }
        self.database = Some(database);
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Makes commands in one transaction. The error is that of all of them: then nothing was changed.
    fn transaction(
        &mut self,
        commands: &mut [Box<dyn Command>],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let is_promise = commands.iter().any(|command| command.is_promise());
        let mut to_erase = Vec::new();
        let result = self.try_transaction(commands, is_promise, &mut to_erase);
        match &result {
            Ok(_) => {
                let mut shared = self.shared.claims.lock().unwrap_or_else(PoisonError::into_inner);
                shared.clone_from(&self.claims);
                let to_erase = to_erase.into_iter().map(|job| Erasing { job, done: None });
                self.erasing.extend(to_erase);
            }
            Err(error) => {
                self.claims = self.shared.claims();
                self.reopen_after(error);
            }
        }
        result.map_err(|error| self.shared.files.explain(error))
    }

    fn try_transaction(
        &mut self,
        commands: &mut [Box<dyn Command>],
        is_promise: bool,
        to_erase: &mut Vec<i64>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let Self { database: Some(database), claims, shared, is_synced, .. } = self else {
            return Err(closed());
        };
        if *is_synced != is_promise {
            let mode = if is_promise { "FULL" } else { "NORMAL" };
            database.pragma_update(None, "synchronous", mode)?;
            *is_synced = is_promise;
        }
        let transaction = Rollback(database);
        transaction.0.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut outcomes = Vec::with_capacity(commands.len());
        let mut appended = 0;
        for command in commands {
            transaction.0.prepare_cached("SAVEPOINT command")?.execute([])?;
            let mut context = Context {
                sql: transaction.0,
                claims,
                specs: &shared.specs,
                files: &shared.files,
                appended: &mut appended,
                to_erase,
            };
            let outcome = command.run(&mut context);
            if let Err(error) = &outcome {
                // A full disk, for one, undoes the whole transaction.
                if transaction.0.is_autocommit() {
                    return Err(error.clone());
                }
                transaction.0.prepare_cached("ROLLBACK TO command")?.execute([])?;
            }
            transaction.0.prepare_cached("RELEASE command")?.execute([])?;
            outcomes.push(outcome.map_err(|error| shared.files.explain(error)));
        }
        transaction.0.prepare_cached("COMMIT")?.execute([])?;
        Ok(outcomes)
    }

    fn finish(
        &mut self,
        commands: impl Iterator<Item = (Box<dyn Command>, Result<(), StoreError>)>,
    ) {
        let unheld: Vec<_> = commands.flat_map(|(it, outcome)| it.finish(outcome)).collect();
        if unheld.is_empty() {
            return;
        }
        for (job, first) in unheld {
            self.claims.release_block(job, first);
        }
        let mut shared = self.shared.claims.lock().unwrap_or_else(PoisonError::into_inner);
        shared.clone_from(&self.claims);
    }

    /// After an error of the disk, the file may be another one: it is opened again when it is needed.
    fn reopen_after(&mut self, error: &StoreError) {
        if !matches!(error, StoreError::Full(_)) && self.database.take().is_some() {
            self.shared.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Closing the last connection copies the log into the database.
    fn close(&mut self) {
        if let Some(database) = self.database.take() {
            self.shared.generation.fetch_add(1, Ordering::AcqRel);
            drop(erase::truncate_log(&database));
            if let Err((_, error)) = database.close() {
                tracing::warn!(%error, "the job store did not close");
            }
        }
        self.lock = None;
    }
}

/// Undoes a transaction that is not committed.
struct Rollback<'a>(&'a Connection);

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            drop(self.0.execute_batch("ROLLBACK"));
        }
    }
}
