//! Reads answers ahead of slow clients, so that a call releases its slots when Gemini has finished it and
//! not when the client has read it.

use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use futures_util::stream::{Stream, StreamExt, unfold};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::dispatch::Forwarded;
use crate::gateway::Gateway;
use crate::memory::BodyBudget;

/// How much of an answer is buffered for a slow client, in bytes. That is more than Gemini's longest texts
/// take as events. The rest of longer answers, such as images, is read as the client reads.
const MAX_BUFFERED: usize = 4 << 20;

/// The memory that an item takes in addition to its text, in bytes.
const ITEM_OVERHEAD: usize = 256;

/// Reads ahead of the client, if the body holds the slots of a call until its end.
pub(super) fn body_ahead(body: Forwarded, gateway: &Gateway) -> Body {
    if !body.holds_slots() {
        return Body::new(body);
    }
    let size = |piece: &Result<bytes::Bytes, _>| piece.as_ref().map_or(0, bytes::Bytes::len);
    Body::from_stream(read_ahead(body.into_data_stream(), size, &gateway.answers))
}

/// Reads a stream in a task of its own, at most [`MAX_BUFFERED`] bytes ahead of the returned stream. Dropping
/// the returned stream ends the task. While the budget is used up, at most one item is buffered.
pub(super) fn read_ahead<T: Send + 'static>(
    items: impl Stream<Item = T> + Send + 'static,
    size: impl Fn(&T) -> usize + Send + 'static,
    budget: &Arc<BodyBudget>,
) -> impl Stream<Item = T> + Send + 'static {
    let (kept, taken) = mpsc::unbounded_channel();
    let (room, budget) = (Arc::new(Semaphore::new(MAX_BUFFERED)), Arc::clone(budget));
    let reading = async move {
        let mut items = pin!(items);
        while let Some(item) = items.next().await {
            let bytes = (size(&item) + ITEM_OVERHEAD).min(MAX_BUFFERED);
            let mut share = budget.share();
            let is_within = share.grow(bytes).is_ok();
            // Beyond the budget, the client must have taken all earlier items.
            let needed = if is_within { bytes } else { MAX_BUFFERED };
            let needed = u32::try_from(needed).expect("a few megabytes fit into 32 bits");
            let room = Arc::clone(&room).acquire_many_owned(needed).await;
            let room = room.expect("the semaphore is never closed");
            if kept.send((item, room, share)).is_err() {
                return;
            }
        }
    };
    let reading = AbortOnDropHandle::new(tokio::spawn(reading));
    unfold((taken, reading), async |(mut taken, reading)| match taken.recv().await {
        Some((item, ..)) => Some((item, (taken, reading))),
        None => {
            // A panic must not look like the end of the stream.
            if let Err(error) = reading.await
                && let Ok(panic) = error.try_into_panic()
            {
                resume_unwind(panic);
            }
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream;
    use tokio::task::yield_now;

    use super::*;

    const PIECE: usize = 1 << 20;

    /// A stream of `count` pieces of a megabyte, and the number of pieces that were read.
    fn pieces(count: usize) -> (impl Stream<Item = usize> + Send + 'static, Arc<AtomicUsize>) {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let pieces = stream::iter(0..count).inspect(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        (pieces, read)
    }

    async fn settled(read: &AtomicUsize) -> usize {
        for _ in 0..100 {
            yield_now().await;
        }
        read.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_stream_is_read_ahead_until_the_buffer_is_full() {
        let (items, read) = pieces(100);
        let budget = BodyBudget::new(Some(100 * PIECE));
        let mut ahead = pin!(read_ahead(items, |_| PIECE - ITEM_OVERHEAD, &budget));
        assert_eq!(settled(&read).await, 5, "four are kept, and one waits for room");
        assert_eq!(ahead.next().await, Some(0));
        assert_eq!(settled(&read).await, 6);
        assert_eq!(ahead.collect::<Vec<_>>().await.len(), 99);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn beyond_the_budget_only_one_item_is_buffered() {
        let (items, read) = pieces(10);
        let budget = BodyBudget::new(Some(PIECE / 2));
        let mut ahead = pin!(read_ahead(items, |_| PIECE - ITEM_OVERHEAD, &budget));
        assert_eq!(settled(&read).await, 2);
        assert_eq!(ahead.next().await, Some(0));
        assert_eq!(settled(&read).await, 3);
        assert_eq!(ahead.collect::<Vec<_>>().await.len(), 9);
    }

    #[tokio::test]
    async fn reading_stops_when_the_returned_stream_is_dropped() {
        let (items, read) = pieces(10);
        let budget = BodyBudget::new(Some(100 * PIECE));
        drop(read_ahead(items, |_| PIECE - ITEM_OVERHEAD, &budget));
        assert_eq!(settled(&read).await, 0);
        assert_eq!(budget.used(), 0);
    }
}
