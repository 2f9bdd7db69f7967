use std::pin::Pin;

use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn those_who_asked_first_go_first() {
    let semaphore = Semaphore::new(1);
    let held = semaphore.acquire().await.unwrap();
    let mut first = Box::pin(semaphore.acquire());
    let mut second = Box::pin(semaphore.acquire());
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    assert_eq!(semaphore.waiting(), 2);

    drop(held);
    assert!((&mut second).now_or_never().is_none());
    let first = first.now_or_never().expect("the first in the queue goes next").unwrap();
    drop(first);
    assert!(second.now_or_never().is_some());
    assert_eq!(semaphore.waiting(), 0);
}

#[tokio::test]
async fn a_lowered_limit_holds_as_soon_as_permits_come_back() {
    let semaphore = Semaphore::new(3);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(semaphore.acquire().await.unwrap());
    }
    semaphore.resize(1);
    assert_eq!((semaphore.limit(), semaphore.in_use(), semaphore.available()), (1, 3, 0));

    held.truncate(1);
    assert_eq!((semaphore.in_use(), semaphore.available()), (1, 0));
    assert!(semaphore.acquire().now_or_never().is_none(), "one is out and one is allowed");
    held.clear();
    assert!(semaphore.acquire().now_or_never().is_some());
}

#[tokio::test]
async fn a_raised_limit_wakes_those_who_wait() {
    let semaphore = Semaphore::new(3);
    let held = [semaphore.acquire().await, semaphore.acquire().await, semaphore.acquire().await];
    semaphore.resize(1);
    let mut next = Box::pin(semaphore.acquire());
    assert!((&mut next).now_or_never().is_none());

    semaphore.resize(4);
    let fourth = next.now_or_never().expect("three are out and four are allowed").unwrap();
    assert_eq!((semaphore.in_use(), semaphore.available()), (4, 0));
    drop((held, fourth));
    assert_eq!((semaphore.in_use(), semaphore.available()), (0, 4));
}

#[tokio::test]
async fn closing_ends_the_wait_and_leaves_the_holders_alone() {
    let semaphore = Semaphore::new(1);
    let held = semaphore.acquire().await.unwrap();
    let mut waiting = Box::pin(semaphore.acquire());
    assert!((&mut waiting).now_or_never().is_none());
    semaphore.close();
    assert_eq!(waiting.await.err(), Some(NotGranted::Closed));
    assert_eq!(semaphore.in_use(), 1);
    drop(held);
    assert_eq!(semaphore.in_use(), 0);
    assert_eq!(semaphore.acquire().await.err(), Some(NotGranted::Closed));
}

#[tokio::test]
async fn leaving_the_queue_gives_up_nothing() {
    let semaphore = Semaphore::new(1);
    let held = semaphore.acquire().await.unwrap();
    let mut leaver = Box::pin(semaphore.acquire());
    assert!((&mut leaver).now_or_never().is_none());
    // The permit is handed to the leaver, who goes before it has taken it.
    drop(held);
    drop(leaver);
    assert_eq!((semaphore.waiting(), semaphore.available()), (0, 1));
}

/// A future that was asked for once and had to wait.
macro_rules! waiting {
    ($future:expr) => {{
        let mut future = Box::pin($future);
        assert!((&mut future).now_or_never().is_none(), "it has to wait");
        future
    }};
}

#[tokio::test]
async fn who_waits_for_several_is_not_overtaken_by_those_who_want_fewer() {
    let semaphore = Semaphore::new(3);
    let held = semaphore.acquire_many(2).await.unwrap();
    let several = waiting!(semaphore.acquire_many(3));
    let one = waiting!(semaphore.acquire());
    assert_eq!((semaphore.in_use(), semaphore.available(), semaphore.waiting()), (2, 0, 2));
    assert!(semaphore.try_acquire().is_none(), "the free one is waited for");

    drop(held);
    let several = several.now_or_never().expect("all three are free").unwrap();
    assert_eq!((semaphore.in_use(), semaphore.waiting()), (3, 1));
    drop(several);
    let _one = one.now_or_never().expect("its turn").unwrap();
    assert_eq!((semaphore.in_use(), semaphore.available()), (1, 2));
}

#[tokio::test]
async fn who_gives_up_waiting_for_several_lets_those_behind_go() {
    let semaphore = Semaphore::new(3);
    let _held = semaphore.acquire_many(2).await.unwrap();
    let several = waiting!(semaphore.acquire_many(2));
    let one = waiting!(semaphore.acquire());
    drop(several);
    assert!(one.now_or_never().is_some());
}

#[tokio::test]
async fn more_than_the_limit_is_refused_at_once_and_when_the_limit_falls() {
    let semaphore = Semaphore::new(3);
    let refused = |limit| Some(NotGranted::MoreThanLimit { limit });
    assert_eq!(semaphore.acquire_many(4).await.err(), refused(3));
    let held = semaphore.acquire_many(3).await.unwrap();
    let two = waiting!(semaphore.acquire_many(2));
    let three = waiting!(semaphore.acquire_many(3));
    let one = waiting!(semaphore.acquire());
    semaphore.resize(2);
    assert_eq!(three.await.err(), refused(2));
    assert_eq!((semaphore.in_use(), semaphore.waiting()), (3, 2), "nobody else is refused");
    drop(held);
    drop(two.now_or_never().expect("two are free"));
    assert!(one.now_or_never().is_some());
}

#[tokio::test]
async fn a_limit_lowered_while_several_are_held_and_waited_for_is_kept() {
    let semaphore = Semaphore::new(5);
    let held = semaphore.acquire_many(3).await.unwrap();
    let also = semaphore.acquire().await.unwrap();
    let leaver = waiting!(semaphore.acquire_many(3));
    semaphore.resize(3);
    let next = waiting!(semaphore.acquire());
    drop(leaver);
    let next = waiting!(next);
    assert_eq!((semaphore.in_use(), semaphore.limit()), (4, 3));
    drop(also);
    let next = waiting!(next);
    drop(held);
    assert!(next.now_or_never().is_some());
    semaphore.resize(6);
    assert_eq!((semaphore.in_use(), semaphore.available()), (0, 6));
}

/// What somebody does; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Ask(usize),
    Try(usize),
    GiveBack(usize),
    Leave(usize),
    LookUp,
    Resize(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..5_usize).prop_map(Step::Ask),
        1 => (1..5_usize).prop_map(Step::Try),
        3 => any::<usize>().prop_map(Step::GiveBack),
        2 => any::<usize>().prop_map(Step::Leave),
        2 => Just(Step::LookUp),
        1 => (1..6_usize).prop_map(Step::Resize),
    ]
}

/// What is known of somebody who asked and has not looked for the answer since.
type Outcome = Option<Result<(), NotGranted>>;
type Asking = Pin<Box<dyn Future<Output = Result<Permit, NotGranted>>>>;

/// What ought to be so, by the rules alone.
struct Rules {
    limit: usize,
    out: usize,
    /// How many each asked for, and what ought to have become of it.
    asked: Vec<(usize, Outcome)>,
}

impl Rules {
    fn settle(&mut self) {
        let limit = self.limit;
        for (permits, outcome) in &mut self.asked {
            if outcome.is_none() && *permits > limit {
                *outcome = Some(Err(NotGranted::MoreThanLimit { limit }));
            }
        }
        for (permits, outcome) in self.asked.iter_mut().filter(|(_, outcome)| outcome.is_none()) {
            if self.out + *permits > limit {
                break;
            }
            self.out += *permits;
            *outcome = Some(Ok(()));
        }
    }

    fn waiting(&self) -> usize {
        self.asked.iter().filter(|(_, outcome)| outcome.is_none()).count()
    }
}

proptest! {
    /// In whatever order people come, go, give back, look up and change the limit: who asked first
    /// goes first, nobody waits for what is free, and nothing is lost or given twice.
    #[test]
    fn it_keeps_to_the_rules(limit in 1..6_usize, steps in vec(step(), 1..60)) {
        let semaphore = Semaphore::new(limit);
        let mut rules = Rules { limit, out: 0, asked: Vec::new() };
        let mut held: Vec<(usize, Permit)> = Vec::new();
        let mut asking: Vec<Asking> = Vec::new();
        for step in steps {
            match step {
                Step::Ask(permits) => {
                    let own = Arc::clone(&semaphore);
                    let mut request: Asking =
                        Box::pin(async move { own.acquire_many(permits).await });
                    rules.asked.push((permits, None));
                    rules.settle();
                    match (&mut request).now_or_never() {
                        None => {
                            prop_assert!(rules.asked.last().unwrap().1.is_none());
                            asking.push(request);
                        }
                        Some(answer) => {
                            let (_, outcome) = rules.asked.pop().unwrap();
                            prop_assert_eq!(outcome, Some(answer.as_ref().map(drop).map_err(|e| *e)));
                            held.extend(answer.ok().map(|permit| (permits, permit)));
                        }
                    }
                }
                Step::Try(permits) => {
                    let free = rules.waiting() == 0 && rules.out + permits <= rules.limit;
                    let permit = semaphore.try_acquire_many(permits);
                    prop_assert_eq!(permit.is_some(), free);
                    rules.out += if free { permits } else { 0 };
                    held.extend(permit.map(|permit| (permits, permit)));
                }
                Step::GiveBack(which) if !held.is_empty() => {
                    let (permits, permit) = held.swap_remove(which % held.len());
                    drop(permit);
                    rules.out -= permits;
                }
                Step::Leave(which) if !asking.is_empty() => {
                    let which = which % asking.len();
                    drop(asking.remove(which));
                    if let (permits, Some(Ok(()))) = rules.asked.remove(which) {
                        rules.out -= permits;
                    }
                }
                Step::LookUp => {
                    for which in (0..asking.len()).rev() {
                        let answer = (&mut asking[which]).now_or_never();
                        let (permits, outcome) = rules.asked[which];
                        prop_assert_eq!(
                            answer.as_ref().map(|answer| answer.as_ref().map(drop).map_err(|e| *e)),
                            outcome
                        );
                        if let Some(answer) = answer {
                            drop(asking.remove(which));
                            rules.asked.remove(which);
                            held.extend(answer.ok().map(|permit| (permits, permit)));
                        }
                    }
                }
                Step::Resize(limit) => {
                    semaphore.resize(limit);
                    rules.limit = limit;
                }
                Step::GiveBack(_) | Step::Leave(_) => {}
            }
            rules.settle();
            prop_assert_eq!(semaphore.in_use(), rules.out);
            prop_assert_eq!(semaphore.waiting(), rules.waiting());
            prop_assert_eq!(semaphore.limit(), rules.limit);
        }
        drop((held, asking));
        prop_assert_eq!((semaphore.in_use(), semaphore.available()), (0, rules.limit));
    }
}
