//! Connections that only read, on threads for blocking work. In WAL mode they do not wait for the writer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::writer::Shared;
use crate::jobs::store::StoreError;
use crate::jobs::store::row::closed;

/// How many read at once.
const MAX_READERS: u32 = 4;

#[derive(Debug)]
pub(super) struct Readers {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<(u64, Connection)>>>,
}

impl Readers {
    pub fn new(shared: Arc<Shared>) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_READERS as usize));
        Self { shared, permits, idle: Arc::default() }
    }

    /// Reads with a connection that is idle, or with a new one.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection, &Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| closed())?;
        let (shared, idle) = (Arc::clone(&self.shared), Arc::clone(&self.idle));
        let reading = spawn_blocking(move || {
            // It reads on if nobody waits for it any more.
            let _permit = permit;
            let generation = shared.generation.load(Ordering::Acquire);
            let mut connections = idle.lock().unwrap_or_else(PoisonError::into_inner);
            connections.retain(|(opened_in, _)| *opened_in == generation);
            let connection = connections.pop();
            drop(connections);
            let connection = match connection {
                Some((_, connection)) => connection,
                None => shared.files.open_for_reading()?,
            };
            // A connection whose reading failed is not used again.
            let found = read(&connection, &shared)?;
            let mut connections = idle.lock().unwrap_or_else(PoisonError::into_inner);
            connections.push((generation, connection));
            Ok(found)
        });
        reading.await.map_err(|_| closed())?.map_err(|error| self.shared.files.explain(error))
    }

    /// Waits for those that read, and closes all connections.
    pub async fn close(&self) {
        drop(self.permits.acquire_many(MAX_READERS).await);
        self.permits.close();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
