//! Items that are large.

use tokio::time::Instant;

use super::*;

const MIB: usize = 1 << 20;

/// A line of so many bytes. Lines of the same name share their memory.
fn line(name: &str, bytes: usize) -> Bytes {
    let mut line = format!("{name} ").into_bytes();
    line.resize(bytes - 1, b'x');
    line.push(b'\n');
    line.into()
}

/// A job of items that all have this line.
async fn submit_lines(process: &Process, line: &Bytes, items: u64) -> JobNumber {
    let job = begin(&process.jobs, Owner::Admin).await;
    let block = |first| NewBlock { first, lines: line.clone(), items: 1 };
    commit_blocks(&process.jobs, job, (0..items).map(block).collect()).await
}

#[tokio::test(start_paused = true)]
async fn large_items_of_many_jobs_take_bounded_memory() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(200, &script);
    let line = line("a", 5 * MIB);
    let mut jobs = Vec::new();
    for _ in 0..50 {
        jobs.push(submit_lines(&process, &line, 4).await);
    }
    for job in jobs {
        process.until_completed(job).await;
    }
    assert_eq!(script.calls(), 200);
    let most = process.store.counted().most_bytes;
    assert!((25 * MIB..=64 * MIB).contains(&most), "{most} bytes");
}

#[tokio::test(start_paused = true)]
async fn an_item_larger_than_the_memory_of_all_is_alone() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(8, &script);
    let line = line("a", 70 * MIB);
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(submit_lines(&process, &line, 2).await);
    }
    for job in jobs {
        process.until_completed(job).await;
    }
    assert_eq!((script.calls(), process.store.counted().most_bytes), (6, 70 * MIB));
}

#[tokio::test(start_paused = true)]
async fn jobs_whose_large_items_wait_for_a_quota_let_others_have_the_memory() {
    // Those of the first two jobs are put off for an hour.
    let script = Script::new(|line, times| match &line[..1] {
        "a" if times < 60 => Action::Later(None),
        _ => Action::Answer,
    });
    let process = Process::started(8, &script);
    let mut stopped = Vec::new();
    for _ in 0..2 {
        stopped.push(submit_lines(&process, &line("a", 40 * MIB), 1).await);
    }
    process.until(stopped[0], |job| job.progress.claimed > 0).await;
    let (begin, other) = (Instant::now(), submit_lines(&process, &line("b", 40 * MIB), 3).await);
    process.until_completed(other).await;
    assert!(begin.elapsed() < Duration::from_secs(35 * 60), "{:?}", begin.elapsed());
    for job in stopped {
        process.until_completed(job).await;
    }
    assert_eq!(process.store.counted().most_bytes, 40 * MIB);
}

#[tokio::test(start_paused = true)]
async fn small_items_do_not_wait_for_large_ones_of_other_jobs() {
    let script = Script::new(|line, _| match &line[..1] {
        "a" => Action::Hang,
        _ => Action::Answer,
    });
    let process = Process::started(8, &script);
    for _ in 0..3 {
        submit_lines(&process, &line("a", 40 * MIB), 1).await;
    }
    let small = process.submit("b", 5000).await;
    process.until_completed(small).await;
    assert!(are_all_answered(&process.store, small, "b", 5000));
}

#[tokio::test(start_paused = true)]
async fn large_fields_that_all_items_share_count_for_each_item_that_is_sent() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(64, &script);
    for (size, most) in [(10, 256), (8 * MIB, 4), (40 * MIB, 1)] {
        let shared = [("system_prompt".to_owned(), "x".repeat(size).into())];
        let job = begin_with(&process.jobs, Owner::Admin, shared.into_iter().collect()).await;
        commit(&process.jobs, job, "a", 300).await;
        process.until_completed(job).await;
        let held = script.most_held.swap(0, Ordering::Relaxed);
        assert!(held <= most && held * 2 >= most, "{held} items with {size} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_shared_fields_take_too_much_memory_waits_until_others_have_ended() {
    let script = Script::new(|line, _| match &line[..1] {
        "a" => Action::Hang,
        _ => Action::Answer,
    });
    let process = Process::started(8, &script);
    let mut large = Vec::new();
    for name in ["a", "b"] {
        let mut new = new_job();
        new.spec.shared_bytes = 40 * MIB;
        let job = begin_as(&process.jobs, new).await;
        large.push(commit(&process.jobs, job, name, 1).await);
    }
    // It came later, and runs beside the first one.
    let small = process.submit("c", 10).await;
    process.until_completed(small).await;
    assert_eq!(process.store.counted().shared_fields, 1, "those of the first job are in memory");
    process.change(large[0], Change::Cancel).await;
    process.until_completed(large[1]).await;
}
