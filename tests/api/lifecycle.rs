//! The program from its start: settings, slow clients and logs.

use std::time::Duration;

use futures_util::future::join_all;
use gemini_concurrent_generation::config::SETTINGS;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use crate::process::{Process, Start, kill};
use crate::support::{TEST_TIMEOUT, answer};

#[tokio::test]
async fn the_simulated_service_needs_no_key_and_says_that_it_is_simulated() {
    let process = Start::simulated().run().await;
    let chat = answer(process.post("/chat", &json!({"prompt": "Hello"}))).await;
    assert_eq!(chat.status, StatusCode::OK);
    assert_eq!(chat.body["response"], "Simulated answer to: Hello");
    assert_eq!(answer(process.get("/")).await.body["simulated"], true);
    assert!(process.log().contains("SIMULATED"), "{}", process.log());
}

#[tokio::test]
async fn without_a_command_it_serves() {
    let process = Start::with_arguments(&[]).run().await;
    let health = answer(process.get("/")).await.body;
    assert_eq!((&health["status"], &health["simulated"]), (&json!("healthy"), &json!(false)));
    let chat = answer(process.post("/chat", &json!({"prompt": "Hello"}))).await;
    assert_eq!(chat.status, StatusCode::UNAUTHORIZED);
    assert!(!process.log().contains("SIMULATED"), "{}", process.log());
}

#[tokio::test]
async fn the_simulator_runs_as_its_own_server() {
    let process = Start::with_arguments(&["simulate", "--port", "0"]).run().await;
    let body = json!({"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]});
    let call = process.post("/v1beta/models/gemini-3.5-flash-lite:generateContent", &body);
    let answered = answer(call.header("x-goog-api-key", "any")).await;
    assert_eq!(answered.status, StatusCode::OK);
    let text = &answered.body["candidates"][0]["content"]["parts"][0]["text"];
    assert_eq!(text, "Simulated answer to: Hello");
    assert_eq!(answer(process.get("/_simulator/stats")).await.body["calls"], 1);
    process.terminate().await;
    assert_eq!(process.end().await.0, Some(0));
}

#[tokio::test]
async fn an_unread_log_blocks_neither_requests_nor_shutdown() {
    let (process, _unread) = Start::simulated().run_unread().await;
    // More than the pipe and the queue of log lines hold.
    let requests = "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(12_000);
    let stream = TcpStream::connect(process.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let last = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let sent = tokio::spawn(async move {
        write.write_all(requests.as_bytes()).await.unwrap();
        write.write_all(last.as_bytes()).await.unwrap();
        write
    });
    let answers = read_to_end(&mut read).await;
    sent.await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 12_000);
    let dropped = answers.lines().find_map(|line| {
        line.strip_prefix("gemini_gateway_log_lines_dropped_total ")?.parse::<u64>().ok()
    });
    assert!(dropped.expect("the metric") > 0);
    process.terminate().await;
    assert_eq!(process.end().await.0, Some(0));
}

/// An invalid value for every setting except the one that takes any text.
const WRONG: [(&str, &str); 54] = [
    ("GEMINI_API_KEY", "se cret"),
    ("ENVIRONMENT_FALLBACK", "perhaps"),
    ("ENVIRONMENT_FALLBACK_SCOPE", "files"),
    ("CORS_ORIGINS", "wrong.example"),
    ("ALLOWED_HOSTS", "wrong.example:77"),
    ("GEMINI_CONCURRENCY_LIMIT", "0"),
    ("GEMINI_TIER", "gold"),
    ("GEMINI_LIMITS", "nobody@*:rpm=77"),
    ("GEMINI_KEY_LABELS", "team-a=AIza77"),
    ("GEMINI_PRICES_FILE", "/no/such/prices-77.toml"),
    ("MAX_QUEUED_REQUESTS", "-77"),
    ("GEMINI_MAX_ATTEMPTS", "4.77"),
    ("MAX_CONTINUATIONS", "-77"),
    ("REDIS_URL", "http://:77secret@redis"),
    ("REDIS_PREFIX", "{77}"),
    ("REDIS_REQUIRED", "perhaps"),
    ("REDIS_LEASE_SECONDS", "0.77"),
    ("DATA_DIR", "/dev/null"),
    ("JOBS_DATABASE_URL", "mysql://:77secret@db"),
    ("JOBS_LEASE_SECONDS", "0.77"),
    ("JOB_RETENTION_HOURS", "-77"),
    ("JOB_MAX_ITEMS", "0.77"),
    ("JOB_MAX_BYTES", "64GiB"),
    ("HOST", "localhost"),
    ("PORT", "77777"),
    ("GEMINI_BASE_URL", "ftp://wrong.example"),
    ("GEMINI_CA_FILE", "/no/such/authorities-77.pem"),
    ("GEMINI_CHAT_MODEL", "../wrong"),
    ("GEMINI_STRUCTURED_MODEL", "wrong model"),
    ("MAX_BATCH_SIZE", "many"),
    ("MAX_BODY_BYTES", "64MiB"),
    ("MAX_SCHEMA_BYTES", "4MiB"),
    ("MAX_SCHEMA_NODES", "-7"),
    ("SCHEMA_TIMEOUT_SECONDS", "7s"),
    ("CHECK_FORMATS", "maybe"),
    ("BODY_MEMORY_BYTES", "77%"),
    ("MAX_CONNECTIONS", "0"),
    ("CLIENT_TIMEOUT_SECONDS", "-1.77"),
    ("KEEP_ALIVE_SECONDS", "77s"),
    ("UPSTREAM_TIMEOUT_SECONDS", "2m"),
    ("STREAM_IDLE_TIMEOUT_SECONDS", "77s"),
    ("REQUEST_TIMEOUT_SECONDS", "infinity"),
    ("LIVE_IDLE_TIMEOUT_SECONDS", "5min"),
    ("LIVE_TIMEOUT_SECONDS", "-77"),
    ("FLEX_TIMEOUT_SECONDS", "-7.7"),
    ("BACKGROUND_POLL_SECONDS", "-77"),
    ("BACKGROUND_TIMEOUT_SECONDS", "7h"),
    ("JOB_WEBHOOK_SECRET", "whsec_77"),
    ("JOB_WEBHOOK_ALLOW", "http://wrong.example"),
    ("SHUTDOWN_DELAY_SECONDS", "-7.7"),
    ("SHUTDOWN_GRACE_SECONDS", "1e77"),
    ("LOG_FORMAT", "yaml"),
    ("RUST_LOG", "loud=very"),
    ("GATEWAY_URL", "ftp://wrong.example/77"),
];

#[tokio::test]
async fn an_invalid_setting_fails_the_start_with_one_line_that_names_it() {
    let covered: Vec<_> = WRONG.iter().map(|(name, _)| *name).collect();
    let settings: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    assert_eq!(covered, settings[1..], "an invalid value for each setting");
    assert_eq!(settings[0], "ADMIN_API_KEY");
    for (name, value) in WRONG {
        let output = Start::simulated().unset(name).set(name, value).output().await;
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {log}");
        assert_eq!(log.lines().count(), 1, "{name}: {log}");
        let expected = format!("gemini-concurrent-generation: {name}: expected ");
        assert!(log.starts_with(&expected), "{name}: {log}");
        assert!(!log.contains(value), "{name}: {log}");
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn a_setting_that_is_not_utf8_fails_the_start() {
    for name in ["PORT", "ADMIN_API_KEY", "GEMINI_API_KEY"] {
        let output = Start::simulated().unset(name).set_bytes(name, b"50\xff04").output().await;
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {log}");
        assert_eq!(
            log,
            format!("gemini-concurrent-generation: {name}: expected text in UTF-8 (environment)\n")
        );
    }
}

#[tokio::test]
async fn a_dotenv_file_is_read_and_the_environment_overrides_it() {
    let process = Start::simulated()
        .dotenv("# Settings\nGEMINI_CONCURRENCY_LIMIT=7\nexport GEMINI_CHAT_MODEL=\"gemini-a\"\n\nGEMINI_STRUCTURED_MODEL='gemini-b'\n")
        .set("GEMINI_STRUCTURED_MODEL", "gemini-c")
        .run()
        .await;
    let health = answer(process.get("/")).await.body;
    assert_eq!(health["concurrency_status"]["global_concurrency_limit"], 7);
    assert_eq!(health["default_models"], json!({"chat": "gemini-a", "structured": "gemini-c"}));
}

#[tokio::test]
async fn a_dotenv_file_of_a_directory_above_is_not_read() {
    let start = Start::simulated().dotenv("GEMINI_CONCURRENCY_LIMIT=7\nPORT=lots");
    let process = start.in_subfolder("service").run().await;
    let health = answer(process.get("/")).await.body;
    assert_ne!(health["concurrency_status"]["global_concurrency_limit"], 7);
}

#[tokio::test]
async fn an_invalid_setting_in_a_dotenv_file_fails_the_start() {
    let output = Start::simulated().unset("PORT").dotenv("PORT=lots").output().await;
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(log.contains("PORT: expected") && log.contains("(.env, line 1)"), "{log}");
    assert!(!log.contains("lots"), "{log}");
}

#[tokio::test]
async fn a_malformed_dotenv_file_fails_the_start_and_is_not_echoed() {
    for broken in [
        "GEMINI_API_KEY = \"the-secret",
        "the-secret",
        "GEMINI_API_KEY=the secret key",
        "GEMINI_API_KEY=the-\0secret",
    ] {
        let output = Start::simulated().dotenv(&format!("PORT=0\n{broken}\n")).output().await;
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{broken}: {log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains(".env: line 2: ") && !log.contains("secret"), "{log}");
    }
}

#[tokio::test]
async fn a_dotenv_file_that_is_not_a_small_file_fails_the_start() {
    for (make, expected) in [
        ("mkfifo .env", "it is not a regular file"),
        ("ln -s /dev/zero .env", "it is not a regular file"),
        ("mkdir .env", "Is a directory"),
        ("truncate -s 2M .env", "it has more than 1048576 bytes"),
    ] {
        let output = Start::simulated().before(make).output().await;
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{make}: {log}");
        assert!(log.contains(&format!(".env: {expected}")), "{make}: {log}");
    }
}

#[tokio::test]
async fn a_dotenv_file_may_begin_with_a_byte_order_mark_and_end_in_spaces() {
    let dotenv = "\u{feff}GEMINI_CONCURRENCY_LIMIT=7\r\nMAX_BATCH_SIZE=3  ";
    let process = Start::simulated().dotenv(dotenv).run().await;
    assert_eq!(process.health().await["concurrency_status"]["global_concurrency_limit"], 7);
}

#[tokio::test]
async fn an_unreachable_redis_fails_the_start_and_its_setting_is_named() {
    let output = Start::simulated().set("REDIS_URL", "redis://127.0.0.1:1").output().await;
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("REDIS_URL: Redis at 127.0.0.1:1: "), "{log}");
}

#[tokio::test]
async fn a_signal_ends_the_wait_for_redis() {
    let redis = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", redis.local_addr().unwrap());
    let start = Start::simulated().set("REDIS_URL", &url);
    let mut process = start.spawn();
    let _silent = redis.accept().await.unwrap();
    kill(&process, "TERM").await;
    assert_eq!(process.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_request_for_new_settings_does_not_end_a_process_that_is_starting() {
    let redis = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", redis.local_addr().unwrap());
    let mut process = Start::simulated().set("REDIS_URL", &url).spawn();
    let _silent = redis.accept().await.unwrap();
    kill(&process, "HUP").await;
    kill(&process, "TERM").await;
    assert_eq!(process.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_signal_ends_the_wait_for_the_job_database() {
    let database = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://{}/jobs?sslmode=disable", database.local_addr().unwrap());
    let process = Start::simulated().set("JOBS_DATABASE_URL", &url).spawn();
    let _silent = database.accept().await.unwrap();
    kill(&process, "TERM").await;
    let output = timeout(TEST_TIMEOUT, process.wait_with_output()).await.unwrap().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(!log.contains("there are no jobs") && !log.contains("ready"), "{log}");
}

#[tokio::test]
async fn a_port_in_use_fails_the_start() {
    let process = Start::simulated().run().await;
    let port = process.address.port().to_string();
    let output = Start::simulated().unset("PORT").set("PORT", &port).output().await;
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("cannot listen on {}", process.address)), "{log}");
}

#[tokio::test]
async fn healthcheck_can_ask_whether_the_service_is_ready() {
    let process = Start::simulated().set("SHUTDOWN_DELAY_SECONDS", "3600").run().await;
    let port = process.address.port().to_string();
    let check = |arguments: &[&str]| {
        Start::with_arguments(arguments).unset("PORT").set("PORT", &port).output()
    };
    assert_eq!(check(&["healthcheck", "--ready"]).await.status.code(), Some(0));
    process.terminate().await;
    process.until_logged("shutting down").await;
    assert_eq!(check(&["healthcheck"]).await.status.code(), Some(0));
    let output = check(&["healthcheck", "--ready"]).await;
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains(&format!("127.0.0.1:{port} is not ready")), "{log}");
}

#[tokio::test]
async fn healthcheck_reports_by_its_exit_code() {
    let process = Start::simulated().run().await;
    let port = process.address.port().to_string();
    let check = |host: &str| {
        Start::with_arguments(&["healthcheck"])
            .unset("HOST")
            .set("HOST", host)
            .unset("PORT")
            .set("PORT", &port)
            .output()
    };
    // A service that listens on all addresses is checked on the loopback address.
    for host in ["127.0.0.1", "0.0.0.0"] {
        let output = check(host).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    process.terminate().await;
    process.end().await;
    let output = check("127.0.0.1").await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains(&format!("127.0.0.1:{port} is not healthy")), "{log}");
}

#[tokio::test]
async fn healthcheck_of_all_ipv6_addresses_asks_the_loopback_address() {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        println!("there is no IPv6 here");
        return;
    }
    let process = Start::simulated().unset("HOST").set("HOST", "::1").run().await;
    let port = process.address.port().to_string();
    let check = Start::with_arguments(&["healthcheck"]).unset("HOST").set("HOST", "::");
    let output = check.unset("PORT").set("PORT", &port).output().await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Reads a connection to its end.
pub async fn read_to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut text = Vec::new();
    let read =
        timeout(TEST_TIMEOUT, stream.read_to_end(&mut text)).await.expect("it is still open");
    // A reset ends it too.
    let _ = read;
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_client_that_never_finishes_its_headers_is_cut_off() {
    let process = Start::simulated().set("CLIENT_TIMEOUT_SECONDS", "1").run().await;
    let silent = TcpStream::connect(process.address).await.unwrap();
    let trickling = TcpStream::connect(process.address).await.unwrap();
    let (mut read, mut write) = trickling.into_split();
    let trickle = tokio::spawn(async move {
        write.write_all(b"POST /chat HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.unwrap();
        // The client never pauses for as long as the service's timeout.
        let mut ticks = interval(Duration::from_millis(50));
        while write.write_all(b"a").await.is_ok() {
            ticks.tick().await;
        }
    });
    let others = join_all((0..10).map(|_| answer(process.get("/")))).await;
    assert!(others.iter().all(|other| other.status == StatusCode::OK), "others are answered");
    read_to_end(&mut read).await;
    let (mut silent, _write) = silent.into_split();
    read_to_end(&mut silent).await;
    timeout(TEST_TIMEOUT, trickle).await.expect("the client is still sending").unwrap();
    assert_eq!(answer(process.get("/")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_never_finishes_its_body_gets_an_error_and_is_cut_off() {
    let process = Start::simulated().set("CLIENT_TIMEOUT_SECONDS", "1").run().await;
    for path in ["/chat", "/batch/chat", "/structured-output"] {
        let stream = TcpStream::connect(process.address).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: 1000\r\n\r\n{{\"prompt\": "
        );
        write.write_all(head.as_bytes()).await.unwrap();
        let other = answer(process.post("/chat", &json!({"prompt": "meanwhile"}))).await;
        assert_eq!(other.status, StatusCode::OK);
        let answered = read_to_end(&mut read).await;
        assert!(answered.starts_with("HTTP/1.1 408 "), "{path}: {answered}");
        assert!(answered.ends_with("\"code\":\"client_timeout\"}"), "{path}: {answered}");
    }
}

#[tokio::test]
async fn a_server_key_that_anyone_can_spend_is_logged_as_a_warning() {
    let (admin, key) = (("ADMIN_API_KEY", "the-admin"), ("GEMINI_API_KEY", "the-key"));
    let (open, closed) = (("HOST", "0.0.0.0"), ("HOST", "127.0.0.1"));
    let no_fallback = ("ENVIRONMENT_FALLBACK", "false");
    let (real, simulated) = (&["serve"][..], &["serve", "--simulate"][..]);
    for (arguments, settings, warned) in [
        (real, vec![admin, key, open], true),
        (real, vec![admin, key, closed], false),
        (real, vec![admin, key, open, no_fallback], false),
        (real, vec![key, open], false),
        (real, vec![admin, open], false),
        // The service has no key to spend.
        (simulated, vec![admin, key, open], false),
    ] {
        let start = Start::with_arguments(arguments).unset("HOST");
        let start = settings.iter().fold(start, |start, (name, value)| start.set(name, value));
        let process = start.run().await;
        let log = process.log();
        let warning = log.lines().find(|line| line.contains("anyone who can reach this port"));
        assert_eq!(warning.is_some(), warned, "{settings:?}: {log}");
        if let Some(warning) = warning {
            assert!(warning.contains("WARN") && warning.contains("ENVIRONMENT_FALLBACK=false"));
        }
        assert!(!log.contains("the-admin") && !log.contains("the-key"), "{log}");
    }
}

/// Every value here that contains the word `secret` is a secret: keys, prompts, answers.
#[tokio::test]
async fn no_key_prompt_or_answer_is_logged_at_debug() {
    for format in ["text", "json"] {
        let process = Start::simulated()
            .set("RUST_LOG", "debug")
            .set("LOG_FORMAT", format)
            .set("ADMIN_API_KEY", "secret-admin-key")
            .set("GEMINI_API_KEY", "secret-server-key")
            .set("GEMINI_MAX_ATTEMPTS", "2")
            .run()
            .await;
        let statuses = send_secrets(&process).await;
        for expected in [200, 201, 400, 401, 403, 404, 422, 429, 502] {
            assert!(statuses.contains(&expected), "{expected} is not in {statuses:?}");
        }
        process.terminate().await;
        let (code, log) = process.end().await;
        assert_eq!(code, Some(0));
        assert!(
            log.contains("sent again") && log.contains("asking for a correction"),
            "{format}: {log}"
        );
        for line in log.lines() {
            assert!(!line.to_lowercase().contains("secret"), "{format}: {line}");
            assert!(!line.contains('\u{1b}'), "{format}: a log in a file has no colours: {line}");
            if format == "json" {
                let line: Value = serde_json::from_str(line).expect(line);
                assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
            }
        }
    }
}

/// Sends every secret through every endpoint, in requests that succeed and that fail.
async fn send_secrets(process: &Process) -> Vec<u16> {
    let prompt = |marker: &str| format!("secret-prompt {marker}");
    let markers = [
        "",
        "[[simulate:status=400]]",
        "[[simulate:status=403]]",
        "[[simulate:status=404]]",
        "[[simulate:fail_times=1]]",
        "[[simulate:fail_times=1,close]]",
        "[[simulate:fail_times=1,truncate_body]]",
        "[[simulate:html=502]]",
        "[[simulate:quota=day]]",
        "[[simulate:blocked=SAFETY]]",
        "[[simulate:empty]]",
        "[[simulate:invalid_json]]",
        "[[simulate:text={\"secret-answer\": 1}]]",
    ];
    let own = json!({"gemini_api_key": "secret-callers-key"});
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}}});
    let mut requests = Vec::new();
    for marker in markers {
        let prompt = prompt(marker);
        let chat = json!({"prompt": prompt, "system_prompt": "secret-system", "credentials": own});
        let structured = json!({
            "user_content": prompt, "system_prompt": "secret-system", "json_schema": schema,
        });
        let story = json!({"user_content": prompt, "system_prompt": "secret-system"});
        for (kind, request) in
            [("chat", chat), ("structured-output", structured), ("cinematic-story-design", story)]
        {
            let batch = json!({"requests": [request.clone()], "credentials": own});
            requests.push(process.post(&format!("/{kind}"), &request));
            requests.push(process.post(&format!("/batch/{kind}"), &batch));
        }
    }
    let bad_key = json!({"prompt": "secret", "credentials": {"gemini_api_key": "invalid-secret"}});
    let no_key = json!({"prompt": "secret", "credentials": {"gemini_api_key": "secret key"}});
    for body in [bad_key, no_key, json!({"prompt": 1, "secret-field": "secret"}), json!("secret")] {
        requests.push(process.post("/chat", &body));
    }
    requests.push(process.post("/chat?key=secret-key", &json!({"prompt": "secret"})));
    requests.push(process.post("/chat", &Value::Null).body("{\"prompt\": \"secret"));
    let semaphore = json!({"semaphore_id": "images", "limit": 1});
    for key in ["secret-admin-key", "secret-wrong-key"] {
        let chat = process.post("/chat", &json!({"prompt": "secret"}));
        let register = process.post("/_admin/semaphores", &semaphore);
        requests.extend([chat, register].map(|request| request.header("Admin-API-Key", key)));
    }
    requests.extend(["/", "/metrics", "/?secret=1"].map(|path| process.get(path)));
    let sent = requests.into_iter().map(|request| async {
        let response = request.header("Authorization", "Bearer secret-bearer").send().await;
        let response = response.expect("an answer");
        let status = response.status().as_u16();
        response.bytes().await.expect("a whole answer");
        status
    });
    join_all(sent).await
}

#[tokio::test]
async fn an_admin_key_in_a_path_is_not_logged() {
    let process = Start::simulated().set("ADMIN_API_KEY", "the-admin-key").run().await;
    for path in ["/v1beta/files/the-admin-key", "/the-admin-key"] {
        assert!(process.get(path).send().await.unwrap().status().is_client_error());
    }
    process.until_logged("path=\"/*************\"").await;
    assert!(!process.log().contains("the-admin-key"));
}

#[tokio::test]
async fn every_log_line_about_a_request_has_its_id() {
    let process = Start::simulated().set("LOG_FORMAT", "json").run().await;
    let prompt = json!({"prompt": "[[simulate:status=403]]", "model": "gemini-2.5-flash"});
    let chat = process.post("/chat", &prompt);
    let failed = answer(chat.header("X-Request-Id", "order-66")).await;
    assert_eq!(failed.headers["x-request-id"], "order-66");
    let batch = process.post("/batch/chat", &json!({"requests": [{"prompt": "Hello"}]}));
    let batch = answer(batch).await;
    let given = batch.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(given.len(), 32, "{given}");
    process.until_logged(&given).await;

    let log = process.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about = |id: &str| {
        let lines = lines.iter().filter(|line| line["span"]["request_id"] == id);
        lines.map(|line| line["message"].as_str().unwrap()).collect::<Vec<_>>()
    };
    let retires = "this model retires on 2026-12-01; use its replacement";
    assert_eq!(about("order-66"), [retires, "the call failed", "answered"], "{log}");
    assert_eq!(about(&given), ["answered"], "{log}");
    let answered = lines.iter().find(|line| line["message"] == "answered").unwrap();
    assert_eq!((&answered["status"], &answered["span"]["path"]), (&json!(403), &json!("/chat")));
    assert!(answered["duration_ms"].is_u64(), "{answered}");
}

#[tokio::test]
async fn a_text_log_names_the_request_too() {
    let process = Start::simulated().run().await;
    answer(process.get("/").header("X-Request-Id", "order-67")).await;
    process.until_logged("answered").await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains("answered")).unwrap();
    assert!(line.contains("request_id=\"order-67\"") && line.contains("status=200"), "{line}");
}
