use std::time::Duration;

use super::*;

fn block(first: u64, items: u64) -> Block {
    let lines: String = (first..first + items).map(|index| format!("line {index}\n")).collect();
    Block { first, lines: lines.into(), answered: Vec::new() }
}

fn result(index: u64) -> Answered {
    Answered {
        index,
        line: Bytes::new(),
        failure: None,
        retryable: false,
        input_tokens: 3,
        output_tokens: 5,
        cost: NanoDollars(7),
    }
}

fn is_answered(window: &mut Window, index: u64) -> bool {
    window.answered(index, result(index)).is_some()
}

fn window() -> Window {
    let mut window = Window::default();
    window.add(vec![block(0, 3), block(3, 2)], 1);
    window
}

fn indices(window: &mut Window) -> Vec<u64> {
    std::iter::from_fn(|| window.send_next()).map(|(index, _)| index).collect()
}

#[test]
fn items_are_sent_in_their_order_without_those_that_have_results() {
    let mut window = Window::default();
    window.add(vec![Block { answered: vec![1, 2], ..block(0, 4) }], 0);
    assert_eq!(window.send_next(), Some((0, Bytes::from("line 0"))));
    assert_eq!(window.send_next(), Some((3, Bytes::from("line 3"))));
    assert_eq!(window.send_next(), None);
}

#[test]
fn a_block_leaves_memory_with_its_last_result() {
    let mut window = window();
    let all = window.bytes();
    indices(&mut window);
    for index in [0, 2] {
        assert!(is_answered(&mut window, index));
        window.recorded(index);
    }
    assert_eq!((window.bytes(), window.active(), window.out()), (all, 3, 3));
    let blocks = HashSet::from([0, 99]);
    assert_eq!(window.bytes_of(&blocks), 3 * ("line 0\n".len() + PER_ITEM));
    assert!(window.has_any(&blocks));
    assert!(is_answered(&mut window, 1) && !is_answered(&mut window, 1));
    window.recorded(1);
    assert!(window.bytes() < all && !window.is_empty() && !window.has_any(&blocks));
    window.take_back_all();
    assert_eq!(indices(&mut window), [3, 4]);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_was_put_off_comes_back_at_its_time() {
    let (mut window, now) = (window(), Instant::now());
    let at = |seconds| now + Duration::from_secs(seconds);
    indices(&mut window);
    window.put_off(4, false, |before| at(u64::from(before) + 1));
    assert!(window.repeat(2, &result(2), |before| (before < 1).then(|| at(3))));
    assert_eq!((window.wakes_at(), window.active(), window.soon()), (Some(at(1)), 3, 1));
    window.wake(at(2));
    assert_eq!(indices(&mut window), [4]);
    window.put_off(4, true, |before| at(u64::from(before) + 1));
    assert_eq!((window.wakes_at(), window.soon()), (Some(at(2)), 2));
    window.wake(at(3));
    assert_eq!((indices(&mut window), window.soon()), (vec![4, 2], 0));
    assert!(!window.repeat(2, &result(2), |before| (before < 1).then(|| at(3))));
    let last = window.answered(2, result(0)).expect("it still waits for its result");
    assert_eq!((last.index, last.input_tokens, last.output_tokens), (2, 6, 10), "with both calls");
    assert_eq!(last.cost, NanoDollars(14));
}

#[test]
fn items_of_a_lost_claim_are_dropped_unless_they_are_out_or_answered() {
    let mut window = window();
    window.add(vec![block(10, 1)], 2);
    window.send_next();
    window.send_next();
    window.answered(1, result(1));
    assert!(window.keep(&HashSet::from([3]), 2));
    assert_eq!(indices(&mut window), [3, 4, 10], "the last one is newer than the renewal");
    window.take_back(0);
    window.recorded(1);
    assert!(indices(&mut window).is_empty());
    assert_eq!(window.bytes(), 3 * ("line 3\n".len() + PER_ITEM) + 1);
}

#[test]
fn a_block_that_is_claimed_again_adds_only_what_was_dropped() {
    let mut window = window();
    window.send_next();
    window.keep(&HashSet::from([3]), 2);
    window.add(vec![block(0, 3)], 2);
    assert_eq!(indices(&mut window), [3, 4, 1, 2]);
}
