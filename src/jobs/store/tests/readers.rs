//! Reading results.

use super::*;

for_both_stores!(
    results_in_input_order_have_no_gap,
    results_of_a_cancelled_job_have_gaps,
    results_in_order_of_completion_are_read_as_they_come,
    failed_results_are_read_alone,
    a_page_is_bounded,
    the_last_page_is_marked,
);

async fn results_in_input_order_have_no_gap(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 30).await.number;
    record(&store, number, [0, 1, 2, 4, 5, 29].map(answered).to_vec()).await;
    assert_eq!(indices(&store, number, Order::Input, false).await, [0, 1, 2]);
    let later = store.results(number, Order::Input, false, 4, 10, 1000).await.unwrap();
    assert_eq!(later.results.iter().map(|it| it.index).collect::<Vec<_>>(), [4, 5]);
    record(&store, number, vec![answered(3)]).await;
    assert_eq!(indices(&store, number, Order::Input, false).await, [0, 1, 2, 3, 4, 5]);
    record(&store, number, (0..30).map(answered).collect()).await;
    let all: Vec<_> = (0..30).collect();
    assert_eq!(indices(&store, number, Order::Input, false).await, all);
}

async fn results_of_a_cancelled_job_have_gaps(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 30).await.number;
    record(&store, number, [29, 4, 0].map(answered).to_vec()).await;
    store.change(number, Change::Cancel, at(5)).await.unwrap();
    assert_eq!(indices(&store, number, Order::Input, false).await, [0, 4, 29]);
    let page = store.results(number, Order::Input, false, 5, 10, 1000).await.unwrap();
    assert!(page.is_last && page.results.len() == 1);
}

async fn results_in_order_of_completion_are_read_as_they_come(database: Database) {
    let store = database.open();
    let jobs = [upload(&store, new_job(), 30).await, upload(&store, new_job(), 30).await];
    for index in [7, 3, 29, 0] {
        for job in &jobs {
            record(&store, job.number, vec![answered(index)]).await;
        }
    }
    assert_eq!(indices(&store, jobs[0].number, Order::Completion, false).await, [7, 3, 29, 0]);
    let page = store.results(jobs[1].number, Order::Completion, false, 0, 10, 1000).await.unwrap();
    let last = page.results.last().unwrap().next;
    assert!(!page.is_last);
    let read = async || {
        let number = jobs[1].number;
        store.results(number, Order::Completion, false, last, 10, 1000).await.unwrap().results
    };
    assert!(read().await.is_empty());
    record(&store, jobs[1].number, [5, 4].map(answered).to_vec()).await;
    assert_eq!(read().await.iter().map(|it| it.index).collect::<Vec<_>>(), [5, 4]);
}

async fn failed_results_are_read_alone(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 30).await.number;
    let results =
        vec![failed(9, "timeout", true), answered(0), failed(2, "blocked", false), answered(3)];
    record(&store, number, results).await;
    assert_eq!(indices(&store, number, Order::Input, true).await, [2, 9]);
    assert_eq!(indices(&store, number, Order::Completion, true).await, [9, 2]);
}

async fn a_page_is_bounded(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 30).await.number;
    record(&store, number, (0..30).map(answered).collect()).await;
    let bytes = answered(0).line.len();
    for (limit, most, results) in
        [(0, 1000, 0), (1, 1000, 1), (5, 1000, 5), (20, 0, 1), (20, 1, 1), (20, bytes + 1, 2)]
    {
        for order in [Order::Input, Order::Completion] {
            let page = store.results(number, order, false, 0, limit, most).await.unwrap();
            assert_eq!(page.results.len(), results, "{limit} results, {most} bytes, {order:?}");
            assert!(!page.is_last);
        }
    }
}

async fn the_last_page_is_marked(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 20).await.number;
    let is_last = async |order, only_failed, after, limit| {
        let page = store.results(number, order, only_failed, after, limit, 9999).await.unwrap();
        page.is_last
    };
    record(&store, number, (0..19).map(answered).collect()).await;
    for order in [Order::Input, Order::Completion] {
        assert!(!is_last(order, false, 0, 50).await && !is_last(order, true, 0, 50).await);
    }
    record(&store, number, vec![failed(19, "timeout", true)]).await;
    for order in [Order::Input, Order::Completion] {
        assert!(is_last(order, false, 0, 50).await && is_last(order, true, 0, 50).await);
        assert!(is_last(order, false, 0, 20).await && !is_last(order, false, 0, 19).await);
    }
    assert!(
        is_last(Order::Input, false, 20, 5).await && is_last(Order::Input, false, 999, 5).await
    );
}
