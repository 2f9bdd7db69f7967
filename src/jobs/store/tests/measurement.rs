//! What a million items cost. `cargo test --release --lib jobs::store -- --ignored --nocapture measure`

use std::time::Instant;

use super::*;

/// Items of 1 KB whose text compresses like prose: a third of it is new.
fn kilobyte(index: u64, random: &mut fastrand::Rng) -> String {
    let filler = "Summarise the following paragraph in one sentence for a busy reader. ";
    let new: String = (0..340).map(|_| random.alphanumeric()).collect();
    let mut line = format!("{{\"index\":{index},\"new\":\"{new}\",\"prompt\":\"");
    while line.len() < 1021 {
        line.push_str(&filler[..filler.len().min(1021 - line.len())]);
    }
    line + "\"}\n"
}

async fn measure(store: Store, items: u64, size: impl Fn() -> u64) {
    let mut random = fastrand::Rng::with_seed(7);
    let started = Instant::now();
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    for first in (0..items).step_by(640) {
        let blocks = (first..items.min(first + 640)).step_by(64).map(|first| {
            let last = items.min(first + 64);
            let lines: String = (first..last).map(|it| kilobyte(it, &mut random)).collect();
            NewBlock { first, lines: lines.into(), items: (last - first) as u32 }
        });
        store.append(number, blocks.collect()).await.unwrap();
    }
    store.commit(number, totals(items)).await.unwrap();
    println!("{items} items stored in {:.1?}: {} bytes", started.elapsed(), size());
    let started = Instant::now();
    let mut claims = 0;
    loop {
        let claimed = store.claim(number, replica("a"), 256, 1 << 20, LEASE).await.unwrap().blocks;
        if claimed.is_empty() {
            break;
        }
        claims += 1;
        let recording = claimed.into_iter().map(|block| {
            let items = block.lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            let results = (block.first..block.first + items)
                .map(|index| Answered { line: vec![b'x'; 500].into(), ..answered(index) });
            store.record(number, results.collect(), at(1))
        });
        for job in join_all(recording).await {
            job.unwrap();
        }
    }
    println!("{items} results in {:.1?}, {claims} claims: {} bytes", started.elapsed(), size());
    let (started, mut after, mut read) = (Instant::now(), 0, 0);
    loop {
        let page = store.results(number, Order::Input, false, after, 1000, 1 << 20).await.unwrap();
        read += page.results.len();
        let Some(last) = page.results.last() else { break };
        after = last.next;
        if page.is_last {
            break;
        }
    }
    println!("{read} results read in {:.1?}", started.elapsed());
    let started = Instant::now();
    store.delete(number).await.unwrap();
    println!("deleted in {:.1?}: {} bytes", started.elapsed(), size());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn measure_sqlite() {
    for items in [100_000, 1_000_000] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().to_owned();
        let size = move || {
            let files = std::fs::read_dir(&path).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        measure(in_folder(folder.path()), items, size).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn measure_postgres() {
    let server = Postgres::start().await;
    measure(in_database(&server), 100_000, || 0).await;
    println!("{} bytes", server.number("SELECT pg_database_size('postgres')").await);
}
