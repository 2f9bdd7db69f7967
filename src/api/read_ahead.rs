//! Answers that are read as fast as they come, however slowly their clients read them: a call gives
//! its slots back when Gemini has finished it, and not when its client has.

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

/// How much of an answer is kept for a client that does not read on, in bytes. It is more than
/// Gemini's longest texts take as events; of longer answers, such as those with images, the rest
/// waits at Gemini.
const MOST: usize = 4 << 20;

/// What an item takes beside its text, in bytes.
const ITEM: usize = 256;

/// Passes on a body that holds the slots of a call until its end.
pub(super) fn body_ahead(body: Forwarded, gateway: &Gateway) -> Body {
    if !body.holds_slots() {
        return Body::new(body);
    }
    let size = |piece: &Result<bytes::Bytes, _>| piece.as_ref().map_or(0, bytes::Bytes::len);
    Body::from_stream(read_ahead(body.into_data_stream(), size, &gateway.answers))
}

/// Reads a stream in a task of its own, at most [`MOST`] bytes ahead of whoever reads the one that is
/// given back. Dropping that one ends the task. Where the budget is used up, nothing is read ahead.
pub(super) fn read_ahead<T: Send + 'static>(
    items: impl Stream<Item = T> + Send + 'static,
    size: impl Fn(&T) -> usize + Send + 'static,
    budget: &Arc<BodyBudget>,
) -> impl Stream<Item = T> + Send + 'static {
    let (kept, taken) = mpsc::unbounded_channel();
    let (room, budget) = (Arc::new(Semaphore::new(MOST)), Arc::clone(budget));
    let reading = async move {
        let mut items = pin!(items);
        while let Some(item) = items.next().await {
            let bytes = (size(&item) + ITEM).min(MOST);
            let mut share = budget.share();
            let is_within = share.grow(bytes).is_ok();
            // Beyond the budget, all that came before it is taken first.
            let needed = if is_within { bytes } else { MOST };
            let needed = u32::try_from(needed).expect("it is a few megabytes");
            let room = Arc::clone(&room).acquire_many_owned(needed).await;
            let room = room.expect("nobody closes it");
            if kept.send((item, room, share)).is_err() {
                return;
            }
        }
    };
    let reading = AbortOnDropHandle::new(tokio::spawn(reading));
    unfold((taken, reading), async |(mut taken, reading)| match taken.recv().await {
        Some((item, ..)) => Some((item, (taken, reading))),
        None => {
            // What breaks off must not look as if it were at its end.
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

    /// A stream of so many pieces of a megabyte, and how many were read of it.
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
    async fn a_stream_is_read_ahead_as_far_as_there_is_room() {
        let (items, read) = pieces(100);
        let budget = BodyBudget::new(Some(100 * PIECE));
        let mut ahead = pin!(read_ahead(items, |_| PIECE - ITEM, &budget));
        assert_eq!(settled(&read).await, 5, "four are kept, and one waits for room");
        assert_eq!(ahead.next().await, Some(0));
        assert_eq!(settled(&read).await, 6);
        assert_eq!(ahead.collect::<Vec<_>>().await.len(), 99);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn beyond_the_budget_nothing_is_read_ahead() {
        let (items, read) = pieces(10);
        let budget = BodyBudget::new(Some(PIECE / 2));
        let mut ahead = pin!(read_ahead(items, |_| PIECE - ITEM, &budget));
        assert_eq!(settled(&read).await, 2);
        assert_eq!(ahead.next().await, Some(0));
        assert_eq!(settled(&read).await, 3);
        assert_eq!(ahead.collect::<Vec<_>>().await.len(), 9);
    }

    #[tokio::test]
    async fn an_answer_nobody_wants_is_read_no_further() {
        let (items, read) = pieces(10);
        let budget = BodyBudget::new(Some(100 * PIECE));
        drop(read_ahead(items, |_| PIECE - ITEM, &budget));
        assert_eq!(settled(&read).await, 0);
        assert_eq!(budget.used(), 0);
    }
}
