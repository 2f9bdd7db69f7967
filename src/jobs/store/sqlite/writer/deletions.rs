//! Deletions, which the writer makes step by step between other commands.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Message, Thread};
use crate::jobs::store::StoreError;
use crate::jobs::store::sqlite::erase::{self, Step};

/// How long a deletion waits after the disk refused it.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A job that is being removed.
pub(super) struct Erasing {
    pub job: i64,
    /// Whoever waits for it.
    pub done: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl Thread {
    /// The next message. While there are deletions, it is not waited for.
    pub(super) fn receive(&self) -> Result<Message, RecvTimeoutError> {
        match (self.erasing.is_empty(), self.is_refused) {
            (true, _) => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            (false, true) => self.receiver.recv_timeout(RETRY_PAUSE),
            (false, false) => self.receiver.recv_timeout(Duration::ZERO),
        }
    }

    /// Makes a step of the oldest deletion. Other commands come between the steps.
    pub(super) fn erase_some(&mut self) {
        let Some(erasing) = self.erasing.front_mut() else { return };
        let job = erasing.job;
        if self.database.is_none() {
            // Opened by the next command. Only an error of the disk closes it while there is a deletion.
            if let Err(error) = self.open() {
                return self.refuse(error);
            }
        }
        let Some(database) = &self.database else { return };
        if self.is_synced {
            match database.pragma_update(None, "synchronous", "NORMAL") {
                Ok(()) => self.is_synced = false,
                Err(error) => return self.refuse(error.into()),
            }
        }
        let is_tight = self.shared.files.check_room(erase::MAX_BYTES.cast_unsigned()).is_err();
        match erase::step(database, job, is_tight) {
            Ok(Step::More) => self.is_refused = false,
            Ok(Step::Busy) => self.is_refused = true,
            Ok(Step::Done) => {
                self.proceed();
                let done = self.erasing.pop_front().and_then(|erasing| erasing.done);
                if let Some(done) = done {
                    let _ = done.send(Ok(()));
                }
            }
            Err(error) => {
                self.reopen_after(&error);
                self.refuse(error);
            }
        }
    }

    /// A job was removed.
    fn proceed(&mut self) {
        self.is_refused = false;
        if std::mem::take(&mut self.is_logged) {
            tracing::info!("deleted jobs are removed from the disk again");
        }
    }

    /// A step of a deletion failed. It is made again after a pause, and those who wait for deletions learn of it.
    fn refuse(&mut self, error: StoreError) {
        self.is_refused = true;
        let error = self.shared.files.explain(error);
        if !std::mem::replace(&mut self.is_logged, true) {
            tracing::warn!(%error, "deleted jobs are not yet removed from the disk");
        }
        for done in self.erasing.iter_mut().filter_map(|erasing| erasing.done.take()) {
            let _ = done.send(Err(error.clone()));
        }
    }
}
