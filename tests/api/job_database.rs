//! Jobs of the real program over databases that are reached over TLS or are slow, and under a clock that is
//! set.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use jiff::fmt::rfc2822;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::durability::{
    Postgres, Upstream, check_results, program, repeated, start, submit, until_more_calls,
};
use crate::process::Process;
use crate::proxies::{Certificates, accept_each};
use crate::support::{TEST_TIMEOUT, answer};

/// Where distributions install libfaketime.
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

const DAY: i64 = 24 * 60 * 60;

/// A database over TLS whose certificate names `localhost`.
async fn database_with_tls(certificates: &Certificates) -> Postgres {
    Postgres::start_with_tls(&certificates.path("pem"), &certificates.path("key")).await
}

fn url(host: &str, database: &Postgres, mode: &str) -> String {
    format!("postgres://postgres@{host}:{}/postgres?sslmode={mode}", database.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_over_tls_is_used() {
    const ITEMS: usize = 20;
    let (certificates, upstream) = (Certificates::new(), Upstream::start().await);
    let database = database_with_tls(&certificates).await;
    let authority = certificates.path("ca.pem");
    for mode in ["prefer", "require", "verify-ca", "verify-full"] {
        let url = url("localhost", &database, mode);
        let variables = [("JOBS_DATABASE_URL", &*url), ("SSL_CERT_FILE", &*authority)];
        let process = start(&upstream, &variables).await;
        let id = submit(&process, ITEMS).await;
        check_results(&process, &id, ITEMS).await;
        let connections = database.number(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE ssl AND application_name = 'gemini-concurrent-generation'",
        );
        assert!(connections.await > 0, "{mode}");
        process.terminate().await;
        assert_eq!(process.end().await.0, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_certificate_is_not_valid_is_not_used() {
    let (certificates, upstream) = (Certificates::new(), Upstream::start().await);
    let (with_tls, plain) = (database_with_tls(&certificates).await, Postgres::start().await);
    let authority = certificates.path("ca.pem");
    for (url, authority, reason) in [
        (url("127.0.0.1", &with_tls, "require"), Some(&authority), "not valid for name"),
        (url("127.0.0.1", &with_tls, "verify-full"), Some(&authority), "not valid for name"),
        (url("localhost", &with_tls, "require"), None, "UnknownIssuer"),
        (url("localhost", &with_tls, "prefer"), None, "UnknownIssuer"),
        (url("localhost", &plain, "require"), Some(&authority), "does not support TLS"),
    ] {
        let mut variables = vec![("JOBS_DATABASE_URL", &*url)];
        variables.extend(authority.map(|path| ("SSL_CERT_FILE", &**path)));
        let process = start(&upstream, &variables).await;
        let request =
            process.post("/jobs", &json!({"kind": "chat", "requests": [{"prompt": "x"}]}));
        let refused = answer(request).await;
        let code = &refused.body["code"];
        assert_eq!(
            (refused.status.as_u16(), code),
            (503, &json!("job_store_unavailable")),
            "{url}"
        );
        let log = process.log();
        assert!(log.contains(reason), "{url}: {log}");
    }
}

/// A proxy in front of a server that delays all that it passes on.
async fn delayed(server: SocketAddr, delay: Duration) -> SocketAddr {
    accept_each(move |client| async move {
        let server = TcpStream::connect(server).await.ok()?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            pass_on(from_client, to_server, delay),
            pass_on(from_server, to_client, delay)
        );
        Some(())
    })
    .await
}

async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        sleep(delay).await;
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_a_slow_database_is_answered_exactly_once() {
    const ITEMS: usize = 300;
    let (database, upstream) = (Postgres::start().await, Upstream::start().await);
    let proxy = delayed(([127, 0, 0, 1], database.port()).into(), Duration::from_millis(25)).await;
    let url = format!("postgres://postgres@{proxy}/postgres?sslmode=disable");
    // Each claim and each record takes half a second and more.
    let variables = [("JOBS_DATABASE_URL", &*url), ("JOBS_LEASE_SECONDS", "5")];
    let processes = [start(&upstream, &variables).await, start(&upstream, &variables).await];
    let id = submit(&processes[0], ITEMS).await;
    check_results(&processes[1], &id, ITEMS).await;
    assert_eq!(repeated(&upstream), (0, ITEMS));
}

/// Sets the clock of a program, and waits until it shows.
async fn set_clock(process: &Process, file: &Path, offset: i64) {
    fs::write(file, format!("{offset:+}")).expect("a file");
    let shows = async {
        loop {
            let answer = answer(process.get("/")).await;
            let date = answer.headers["date"].to_str().expect("text");
            let date = rfc2822::parse(date).expect("a date").timestamp();
            let ahead = date.as_second() - jiff::Timestamp::now().as_second();
            if (ahead - offset).abs() < 60 {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, shows).await.expect("the clock is set");
}

async fn run_under_a_clock_that_is_set(store: (&str, &str)) {
    const ITEMS: usize = 600;
    let (folder, upstream) = (TempDir::new().unwrap(), Upstream::start().await);
    let clock = folder.path().join("clock");
    fs::write(&clock, "+0").unwrap();
    let library = FAKETIME.into_iter().find(|path| Path::new(path).exists());
    let library = library.expect("the package libfaketime must be installed");
    let variables = [
        store,
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ];
    let process = program(&upstream, &variables).run().await;
    let id = submit(&process, ITEMS).await;
    for offset in [-DAY, 2 * DAY, 0] {
        assert!(until_more_calls(&upstream, 100, ITEMS).await);
        set_clock(&process, &clock, offset).await;
    }
    check_results(&process, &id, ITEMS).await;
    assert_eq!(repeated(&upstream), (0, ITEMS));
    // Killed, it would leave shared memory of the library behind.
    process.terminate().await;
    assert_eq!(process.end().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_a_file_is_answered_exactly_once_under_a_clock_that_is_set() {
    let folder = TempDir::new().unwrap();
    run_under_a_clock_that_is_set(("DATA_DIR", folder.path().to_str().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_postgresql_is_answered_exactly_once_under_a_clock_that_is_set() {
    let database = Postgres::start().await;
    run_under_a_clock_that_is_set(("JOBS_DATABASE_URL", &database.url())).await;
}
