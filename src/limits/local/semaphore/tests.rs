use futures_util::FutureExt;

use super::*;
use crate::limits::semaphore::Acquire;

#[tokio::test]
async fn requests_are_served_in_order() {
    let semaphore = LocalSemaphore::new(1);
    let held = semaphore.acquire().await.unwrap();
    let mut first = Box::pin(semaphore.acquire());
    let mut second = Box::pin(semaphore.acquire());
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    assert_eq!(semaphore.usage().waiting, 2);

    drop(held);
    assert!((&mut second).now_or_never().is_none());
    let first = first.now_or_never().expect("the first in the queue goes next").unwrap();
    drop(first);
    assert!(second.now_or_never().is_some());
    assert_eq!(semaphore.usage().waiting, 0);
}

#[tokio::test]
async fn a_lowered_limit_applies_as_soon_as_permits_are_returned() {
    let semaphore = LocalSemaphore::new(3);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(semaphore.acquire().await.unwrap());
    }
    semaphore.resize(1);
    assert_eq!(
        (semaphore.usage().limit, semaphore.usage().in_use, semaphore.usage().available()),
        (1, 3, 0)
    );

    held.truncate(1);
    assert_eq!((semaphore.usage().in_use, semaphore.usage().available()), (1, 0));
    assert!(semaphore.acquire().now_or_never().is_none(), "one is out and one is allowed");
    held.clear();
    assert!(semaphore.acquire().now_or_never().is_some());
}

#[tokio::test]
async fn a_raised_limit_wakes_waiters() {
    let semaphore = LocalSemaphore::new(3);
    let held = [semaphore.acquire().await, semaphore.acquire().await, semaphore.acquire().await];
    semaphore.resize(1);
    let mut next = Box::pin(semaphore.acquire());
    assert!((&mut next).now_or_never().is_none());

    semaphore.resize(4);
    let fourth = next.now_or_never().expect("three are out and four are allowed").unwrap();
    assert_eq!((semaphore.usage().in_use, semaphore.usage().available()), (4, 0));
    drop((held, fourth));
    assert_eq!((semaphore.usage().in_use, semaphore.usage().available()), (0, 4));
}

#[tokio::test]
async fn closing_ends_waits_and_keeps_held_permits() {
    let semaphore = LocalSemaphore::new(1);
    let held = semaphore.acquire().await.unwrap();
    let mut waiting = Box::pin(semaphore.acquire());
    assert!((&mut waiting).now_or_never().is_none());
    semaphore.close();
    assert_eq!(waiting.await.err(), Some(NotGranted::Closed));
    assert_eq!(semaphore.usage().in_use, 1);
    drop(held);
    assert_eq!(semaphore.usage().in_use, 0);
    assert_eq!(semaphore.acquire().await.err(), Some(NotGranted::Closed));
}

#[tokio::test]
async fn leaving_the_queue_releases_no_permit() {
    let semaphore = LocalSemaphore::new(1);
    let held = semaphore.acquire().await.unwrap();
    let mut leaver = Box::pin(semaphore.acquire());
    assert!((&mut leaver).now_or_never().is_none());
    // The permit is sent to the leaver, which is dropped before it receives the permit.
    drop(held);
    drop(leaver);
    assert_eq!((semaphore.usage().waiting, semaphore.usage().available()), (0, 1));
}

/// A future that was polled once and had to wait.
macro_rules! waiting {
    ($future:expr) => {{
        let mut future = Box::pin($future);
        assert!((&mut future).now_or_never().is_none(), "it has to wait");
        future
    }};
}

#[tokio::test]
async fn a_request_for_several_is_not_overtaken_by_smaller_ones() {
    let semaphore = LocalSemaphore::new(3);
    let held = semaphore.acquire_many(2).await.unwrap();
    let several = waiting!(semaphore.acquire_many(3));
    let one = waiting!(semaphore.acquire());
    assert_eq!(
        (semaphore.usage().in_use, semaphore.usage().available(), semaphore.usage().waiting),
        (2, 0, 2)
    );
    assert!(semaphore.try_acquire().is_none(), "the free one is waited for");

    drop(held);
    let several = several.now_or_never().expect("all three are free").unwrap();
    assert_eq!((semaphore.usage().in_use, semaphore.usage().waiting), (3, 1));
    drop(several);
    let _one = one.now_or_never().expect("its turn").unwrap();
    assert_eq!((semaphore.usage().in_use, semaphore.usage().available()), (1, 2));
}

#[tokio::test]
async fn dropping_a_request_for_several_permits_unblocks_later_ones() {
    let semaphore = LocalSemaphore::new(3);
    let _held = semaphore.acquire_many(2).await.unwrap();
    let several = waiting!(semaphore.acquire_many(2));
    let one = waiting!(semaphore.acquire());
    drop(several);
    assert!(one.now_or_never().is_some());
}

#[tokio::test]
async fn a_request_above_the_limit_fails_at_once_and_when_the_limit_falls() {
    let semaphore = LocalSemaphore::new(3);
    let refused = |limit| Some(NotGranted::MoreThanLimit { limit });
    assert_eq!(semaphore.acquire_many(4).await.err(), refused(3));
    let held = semaphore.acquire_many(3).await.unwrap();
    let two = waiting!(semaphore.acquire_many(2));
    let three = waiting!(semaphore.acquire_many(3));
    let one = waiting!(semaphore.acquire());
    semaphore.resize(2);
    assert_eq!(three.await.err(), refused(2));
    assert_eq!(
        (semaphore.usage().in_use, semaphore.usage().waiting),
        (3, 2),
        "nobody else is refused"
    );
    drop(held);
    drop(two.now_or_never().expect("two are free"));
    assert!(one.now_or_never().is_some());
}

#[tokio::test]
async fn a_limit_lowered_while_permits_are_held_and_requested_is_kept() {
    let semaphore = LocalSemaphore::new(5);
    let held = semaphore.acquire_many(3).await.unwrap();
    let also = semaphore.acquire().await.unwrap();
    let leaver = waiting!(semaphore.acquire_many(3));
    semaphore.resize(3);
    let next = waiting!(semaphore.acquire());
    drop(leaver);
    let next = waiting!(next);
    assert_eq!((semaphore.usage().in_use, semaphore.usage().limit), (4, 3));
    drop(also);
    let next = waiting!(next);
    drop(held);
    assert!(next.now_or_never().is_some());
    semaphore.resize(6);
    assert_eq!((semaphore.usage().in_use, semaphore.usage().available()), (0, 6));
}
