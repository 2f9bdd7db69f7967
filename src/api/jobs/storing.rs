//! Stores the items of a job as they are read, and accepts the job when all of them are stored.

use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::upload::Uploader;
use crate::api::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::ApiKey;
use crate::jobs::{
    Committed, JobId, JobNumber, JobSpec, Jobs, NewBlock, NewJob, SharedFields, StoreError, Totals,
};
use crate::memory::Share;

/// The most items and bytes of a block. A longer item has a block of its own.
const MAX_ITEMS: u32 = 64;
const MAX_BLOCK: usize = 256 * 1024;

/// How many bytes of blocks are stored at once.
const MAX_GATHERED: usize = 1 << 20;

/// A job whose items are being stored. If it is dropped before it is committed, nothing of it is kept.
pub(super) struct Storing {
    jobs: Arc<Jobs>,
    new: Option<NewJob>,
    number: Option<JobNumber>,
    /// The key of its owner, if it is not the server's.
    own_key: Option<ApiKey>,
    /// Blocks that are not stored yet, and the last one, which is still open.
    blocks: Vec<NewBlock>,
    open: Vec<u8>,
    open_items: u32,
    /// The memory of the blocks.
    share: Share,
    gathered: usize,
    most_gathered: usize,
    items: u64,
    bytes: u64,
    content: Sha256,
}

impl Storing {
    /// A job without items.
    pub(super) fn begin(
        gateway: &Gateway,
        uploader: Uploader,
        spec: JobSpec,
        shared: SharedFields,
    ) -> Result<Self, ApiError> {
        let Uploader { owner, own_key, idempotency_key, .. } = uploader;
        let mut content = Sha256::new();
        for options in [serde_json::to_vec(&spec), serde_json::to_vec(&shared)] {
            let options = options.map_err(|_| ApiError::internal())?;
            content.update((options.len() as u64).to_le_bytes());
            content.update(options);
        }
        let (id, created_at) = (JobId::random(), Timestamp::now());
        Ok(Self {
            jobs: Arc::clone(&gateway.jobs),
            new: Some(NewJob { id, owner, spec, shared, idempotency_key, created_at }),
            number: None,
            own_key,
            blocks: Vec::new(),
            open: Vec::new(),
            open_items: 0,
            share: gateway.bodies.share(),
            gathered: 0,
            most_gathered: MAX_GATHERED.min(gateway.bodies.largest() / 8),
            items: 0,
            bytes: 0,
            content,
        })
    }

    /// How many items there are.
    pub(super) fn items(&self) -> u64 {
        self.items
    }

    /// Adds an item. A line feed in it can only stand between tokens, and becomes a space.
    ///
    /// # Errors
    /// 503 if there is no memory for it; errors of the store.
    pub(super) async fn add(&mut self, line: &Bytes) -> Result<(), ApiError> {
        let size = line.len() + 1;
        if self.open_items == MAX_ITEMS
            || (self.open_items > 0 && self.open.len() + size > MAX_BLOCK)
        {
            self.close_block();
        }
        if self.gathered > 0 && self.gathered + size > self.most_gathered {
            self.close_block();
            self.append().await?;
        }
        self.share.grow(size)?;
        let start = self.open.len();
        self.open.extend_from_slice(line);
        self.open[start..].iter_mut().for_each(|byte| {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        });
        self.open.push(b'\n');
        self.content.update(&self.open[start..]);
        self.open_items += 1;
        self.gathered += size;
        self.items += 1;
        self.bytes += size as u64;
        Ok(())
    }

    fn close_block(&mut self) {
        if self.open_items > 0 {
            let (lines, items) =
                (mem::take(&mut self.open).into(), mem::take(&mut self.open_items));
            self.blocks.push(NewBlock { first: self.items - u64::from(items), lines, items });
        }
    }

    async fn append(&mut self) -> Result<(), ApiError> {
        let blocks = mem::take(&mut self.blocks);
        let number = self.number().await?;
        self.jobs.store().append(number, blocks).await?;
        self.share.shrink(mem::take(&mut self.gathered));
        Ok(())
    }

    /// The number of the job, which is begun in the store at the first use of it.
    async fn number(&mut self) -> Result<JobNumber, ApiError> {
        if let Some(number) = self.number {
            return Ok(number);
        }
        let new = self.new.take().ok_or_else(ApiError::internal)?;
        let number = begin(Arc::clone(&self.jobs), new).await?;
        self.number = Some(number);
        Ok(number)
    }

    /// Accepts the job. Its owner's own key is kept in memory.
    ///
    /// # Errors
    /// 409 if another job has the same idempotency key; errors of the store.
    pub(super) async fn commit(mut self) -> Result<Committed, ApiError> {
        self.close_block();
        let number = self.number().await?;
        if !self.blocks.is_empty() {
            self.append().await?;
        }
        let content = mem::take(&mut self.content).finalize().into();
        let totals = Totals { items: self.items, bytes: self.bytes, content };
        // Another process may take the job up at once, and so may the engine of this one.
        if let Some(key) = self.own_key.clone() {
            self.jobs.hold_key(number, key);
        }
        let committed = self.jobs.store().commit(number, totals).await?;
        // From now on it is kept, or the store has removed it.
        self.number = None;
        if !matches!(committed, Committed::New(_)) {
            self.jobs.forget_key(number);
        }
        if let (Committed::Same(job), Some(key)) = (&committed, self.own_key.take())
            && !job.state.has_ended()
        {
            self.jobs.hold_key(job.number, key);
        }
        Ok(committed)
    }

    /// Removes what was stored.
    pub(super) async fn abandon(mut self) {
        if let Some(number) = self.number.take() {
            self.jobs.forget_key(number);
            report(self.jobs.store().abandon(number).await);
        }
    }
}

/// Begins a job. If the request is dropped meanwhile, nobody learns the number of the job, and it is
/// removed.
async fn begin(jobs: Arc<Jobs>, new: NewJob) -> Result<JobNumber, ApiError> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let begun = jobs.store().begin(new, jobs.replica().clone()).await;
        if let Err(Ok(number)) = tell.send(begun) {
            report(jobs.store().abandon(number).await);
        }
    });
    let begun = told.await.map_err(|_| ApiError::internal())?;
    Ok(begun?)
}

impl Drop for Storing {
    fn drop(&mut self) {
        let Some(number) = self.number.take() else { return };
        self.jobs.forget_key(number);
        let abandoned = self.jobs.store().abandon(number);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async { report(abandoned.await) });
        }
    }
}

/// What was not removed now is removed when its process has ended.
fn report(abandoned: Result<(), StoreError>) {
    if let Err(error) = abandoned {
        tracing::warn!(%error, "the items of an upload that failed could not be removed yet");
    }
}
