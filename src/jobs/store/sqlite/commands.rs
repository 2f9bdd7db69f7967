//! What the writer does for others, and how it tells them.

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::claims::Claims;
use super::database::Files;
use crate::jobs::store::StoreError;
use crate::jobs::store::row::closed;
use crate::jobs::store::specs::Specs;

/// What a command works with, in a transaction.
pub(super) struct Context<'a> {
    pub sql: &'a Connection,
    /// Changed last in a command, when nothing can fail any more.
    pub claims: &'a mut Claims,
    pub specs: &'a Specs,
    pub files: &'a Files,
    /// The bytes of items that the transaction adds.
    pub appended: &'a mut u64,
    /// Hidden jobs to be removed after the commit.
    pub to_erase: &'a mut Vec<i64>,
}

/// A change. It is made again if its transaction was undone because of another one.
pub(super) trait Command: Send {
    fn run(&mut self, context: &mut Context<'_>) -> Result<(), StoreError>;

    /// Tells the caller. Returns the blocks that it claimed if nobody waits for them.
    fn finish(self: Box<Self>, outcome: Result<(), StoreError>) -> Vec<(i64, i64)>;

    /// Whether the database is made for it.
    fn creates(&self) -> bool;

    /// The outcome without a database.
    fn finish_without_database(self: Box<Self>);

    /// Whether its outcome must survive a power cut.
    fn is_promise(&self) -> bool;
}

/// A command and its outcome.
pub(super) struct Ordered<T, F> {
    pub kind: Kind,
    pub run: F,
    pub output: Option<T>,
    /// The outcome without a database.
    pub absent: Result<T, StoreError>,
    pub reply: oneshot::Sender<Result<T, StoreError>>,
    /// The blocks that are claimed for whoever gets the outcome.
    pub claimed: fn(&T) -> Vec<(i64, i64)>,
}

/// What a command promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its outcome survives a power cut. The database is made for it.
    Creates,
    /// Its outcome survives a power cut.
    Promises,
    /// Only a later command needs its outcome.
    Prepares,
}

impl<T, F> Command for Ordered<T, F>
where
    T: Send,
    F: FnMut(&mut Context<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, context: &mut Context<'_>) -> Result<(), StoreError> {
        self.output = Some((self.run)(context)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>) -> Vec<(i64, i64)> {
        let Self { output, reply, claimed, .. } = *self;
        match reply.send(outcome.and_then(|()| output.ok_or_else(closed))) {
            Err(Ok(unreceived)) => claimed(&unreceived),
            _ => Vec::new(),
        }
    }

    fn creates(&self) -> bool {
        self.kind == Kind::Creates
    }

    fn finish_without_database(self: Box<Self>) {
        drop(self.reply.send(self.absent));
    }

    fn is_promise(&self) -> bool {
        self.kind != Kind::Prepares
    }
}
