//! `run` and `jobs`: the real program, over a simulator in this process that keeps what it is asked.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use gemini_concurrent_generation::run::EXIT_STATUSES;
use gemini_concurrent_generation::simulator::{Options, Simulator};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::manual::{rows, text};
use crate::process::{Process, Start, kill};
use crate::support::{
    ADMIN_KEY, SERVER_KEY, TEST_TIMEOUT, admin, answer, closed_port, listen, until,
};

/// A folder for inputs and outputs, and a simulator.
struct Site {
    folder: Arc<TempDir>,
    simulator: Simulator,
    upstream: SocketAddr,
    _stop: DropGuard,
}

impl Site {
    async fn new(latency_ms: u64) -> Self {
        let options = Options { journal: true, latency_ms, ..Options::default() };
        let (simulator, stop) = (Simulator::new(options), CancellationToken::new());
        let upstream = listen(simulator.router(), &stop).await;
        let folder = Arc::new(TempDir::new().expect("a folder"));
        Self { folder, simulator, upstream, _stop: stop.drop_guard() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    /// Lines of text, each a prompt.
    fn write_prompts(&self, name: &str, count: usize) {
        let lines: Vec<_> = (0..count).map(|index| format!("prompt {index}")).collect();
        self.write(name, &lines.join("\n"));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a file")
    }

    /// The lines of a file, as JSON.
    fn lines(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The program in the folder, without a service.
    fn program(&self, arguments: &[&str]) -> Start {
        Start::with_arguments(arguments)
            .inside(&self.folder)
            .set("GEMINI_BASE_URL", &format!("http://{}", self.upstream))
            .set("GEMINI_API_KEY", SERVER_KEY)
            .set("GEMINI_CONCURRENCY_LIMIT", "8")
    }

    /// A service over the same simulator, with its jobs in a folder of its own.
    async fn serve(&self, data: &Arc<TempDir>, port: u16) -> Process {
        let service = Start::with_arguments(&["serve"]).inside(data).unset("PORT");
        let service = service.set("PORT", &port.to_string()).set("ADMIN_API_KEY", ADMIN_KEY);
        service
            .set("GEMINI_BASE_URL", &format!("http://{}", self.upstream))
            .set("GEMINI_API_KEY", SERVER_KEY)
            .set("GEMINI_CONCURRENCY_LIMIT", "8")
            .run()
            .await
    }

    /// How often each prompt was asked.
    fn asked(&self) -> HashMap<String, usize> {
        let mut asked = HashMap::new();
        for entry in self.simulator.journal() {
            *asked.entry(entry.prompt_text).or_default() += 1;
        }
        asked
    }

    /// How many calls were answered.
    fn answered(&self) -> usize {
        self.simulator.journal().iter().filter(|entry| entry.status == Some(200)).count()
    }

    async fn until_answered(&self, count: usize) {
        until("enough is answered", || self.answered() >= count).await;
    }

    /// Checks that the output has the answers to `write_prompts`, in their order.
    fn check_answers(&self, name: &str, count: usize) {
        let lines = self.lines(name);
        assert_eq!(lines.len(), count);
        for (index, line) in lines.iter().enumerate() {
            assert_eq!(line["index"], index, "{line}");
            assert_eq!(line["response"], format!("Simulated answer to: prompt {index}"), "{line}");
        }
    }

    /// Checks that nothing is left beside the output.
    fn check_tidy(&self, output: &str) {
        for ending in [".part", ".job"] {
            let left = self.path(&format!("{output}{ending}"));
            assert!(!left.exists(), "{} is left", left.display());
        }
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed: {}", errors(output)))
}

async fn end(child: Child) -> Output {
    let output = timeout(TEST_TIMEOUT, child.wait_with_output()).await;
    output.expect("it did not end in time").expect("its output")
}

#[test]
fn the_manual_has_the_exit_statuses() {
    let page = text("docs/run.md");
    let (_, table) = page.split_once("\n| exit status |").expect("the table");
    let table = format!("| exit status |{table}");
    let expected: Vec<_> =
        EXIT_STATUSES.iter().map(|(status, meaning)| format!("| {status} | {meaning} |")).collect();
    assert_eq!(rows(&table), expected);
}

#[tokio::test]
async fn a_file_of_prompts_is_answered_with_nothing_but_a_key() {
    let site = Site::new(0).await;
    site.write_prompts("prompts.txt", 100);
    let output = site.program(&["run", "prompts.txt", "-o", "results.jsonl"]).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("results.jsonl", 100);
    site.check_tidy("results.jsonl");
    assert!(site.asked().values().all(|times| *times == 1));
    let summary = errors(&output);
    assert!(summary.starts_with("100 items: 100 answered; "), "{summary}");
    assert!(!summary.contains('\u{1b}') && !summary.contains('\r'), "{summary:?}");
    assert!(output.stdout.is_empty());

    let again = site.program(&["run", "prompts.txt", "-o", "results.jsonl"]).output().await;
    assert_eq!(code(&again), 2);
    assert!(errors(&again).contains("results.jsonl exists; --force replaces it"));
    let forced = ["run", "prompts.txt", "-o", "results.jsonl", "--force"];
    assert_eq!(code(&site.program(&forced).output().await), 0);
    assert!(site.asked().values().all(|times| *times == 2));
}

#[tokio::test]
async fn a_table_is_answered_as_a_table() {
    let site = Site::new(0).await;
    site.write("cities.csv", "\u{feff}id,city\r\na,\"Ulm, \"\"Danube\"\"\"\r\nb,Köln\r\n");
    site.write("fact.json", r#"{"type": "object", "properties": {"fact": {"const": "old"}}}"#);
    let arguments = [
        "run",
        "cities.csv",
        "-o",
        "facts.csv",
        "--prompt",
        "About {city}",
        "--id",
        "id",
        "--schema",
        "fact.json",
        "--system",
        "Be brief.",
    ];
    let output = site.program(&arguments).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let expected = "index,custom_id,id,city,data,error_code,error\n\
                    0,a,a,\"Ulm, \"\"Danube\"\"\",\"{\"\"fact\"\":\"\"old\"\"}\",,\n\
                    1,b,b,Köln,\"{\"\"fact\"\":\"\"old\"\"}\",,\n";
    assert_eq!(site.read("facts.csv"), expected);
    let journal = site.simulator.journal();
    let systems = journal.iter().map(|entry| &entry.body["systemInstruction"]["parts"][0]["text"]);
    assert!(systems.into_iter().all(|system| system.as_str().unwrap().contains("Be brief.")));
}

#[tokio::test]
async fn failed_items_are_listed_and_asked_again_on_request() {
    let site = Site::new(0).await;
    let blocked = "[[simulate:blocked=SAFETY,fail_times=1]]";
    site.write(
        "a.jsonl",
        &format!(
            "{}\n{}\n",
            json!({"prompt": "good"}),
            json!({"prompt": format!("bad {blocked}"), "custom_id": "x"})
        ),
    );
    let command = ["run", "a.jsonl", "-o", "out.jsonl"];
    let output = site.program(&command).output().await;
    let summary = errors(&output);
    assert_eq!(code(&output), 3, "{summary}");
    assert!(summary.contains("1 failed: 1 content_blocked"), "{summary}");
    assert!(summary.contains("\n  1 (x) content_blocked: "), "{summary}");
    let lines = site.lines("out.jsonl");
    assert_eq!((&lines[0]["success"], &lines[1]["success"]), (&json!(true), &json!(false)));

    let refused = site.program(&command).output().await;
    assert_eq!(code(&refused), 2);
    assert!(errors(&refused).contains("--retry asks its failed items again"));
    let retried = site.program(&[&command[..], &["--retry=all"]].concat()).output().await;
    assert_eq!(code(&retried), 0, "{}", errors(&retried));
    assert!(site.lines("out.jsonl").iter().all(|line| line["success"] == true));
    assert_eq!(site.asked()["good"], 1);
    site.check_tidy("out.jsonl");
}

#[tokio::test]
async fn batch_files_of_openai_and_gemini_run_unchanged() {
    let site = Site::new(0).await;
    let body =
        json!({"model": "gemini-3.5-flash-lite", "messages": [{"role": "user", "content": "hi"}]});
    let openai =
        json!({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body});
    let gemini = json!({"key": "b", "request": {"contents": [{"parts": [{"text": "hello"}]}]}});
    site.write("openai.jsonl", &openai.to_string());
    site.write("gemini.jsonl", &format!("{gemini}\n"));
    let output = site.program(&["run", "openai.jsonl", "-o", "o.jsonl"]).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let line = &site.lines("o.jsonl")[0];
    assert_eq!((&line["custom_id"], &line["response"]["status_code"]), (&json!("a"), &json!(200)));
    let content = &line["response"]["body"]["choices"][0]["message"]["content"];
    assert_eq!(content, "Simulated answer to: hi");

    let model = ["run", "gemini.jsonl", "-o", "g.csv", "--model", "gemini-3.5-flash-lite"];
    let output = site.program(&model).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let expected = "index,custom_id,response,error_code,error\n0,b,Simulated answer to: hello,,\n";
    assert_eq!(site.read("g.csv"), expected);
}

#[tokio::test]
async fn prompts_come_from_a_pipe_and_answers_go_to_one() {
    let site = Site::new(0).await;
    let mut child = site.program(&["run", "-"]).spawn();
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"one\ntwo\n").await.expect("it reads");
    drop(input);
    let output = end(child).await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let lines = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["response"], "Simulated answer to: one");
    assert_eq!(lines[1]["response"], "Simulated answer to: two");
    assert_eq!(fs::read_dir(site.folder.path()).expect("a folder").count(), 0);
}

/// Killed several times, it asks again only what was in flight.
#[tokio::test]
async fn a_run_that_was_killed_is_continued_by_the_same_command() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let command = ["run", "prompts.txt", "-o", "results.jsonl"];
    let kills = 3;
    for killed in 1..=kills {
        let mut child = site.program(&command).spawn();
        site.until_answered(killed * 60).await;
        child.kill().await.expect("it runs");
        assert!(!site.path("results.jsonl").exists());
    }
    let output = site.program(&command).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("results.jsonl", 300);
    site.check_tidy("results.jsonl");
    let asked = site.asked();
    assert_eq!(asked.len(), 300);
    let repeated: usize = asked.values().map(|times| times - 1).sum();
    // Those in flight, and those whose answers were not recorded yet.
    assert!(repeated <= kills * (8 + 16), "{repeated} were asked again");
}

#[tokio::test]
async fn a_run_that_was_interrupted_repeats_no_call() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let command = ["run", "prompts.txt", "-o", "results.jsonl"];
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let before = site.answered();
        let child = site.program(&command).spawn();
        site.until_answered(before + 50).await;
        kill(&child, signal).await;
        let output = end(child).await;
        let message = errors(&output);
        assert_eq!(code(&output), status, "{message}");
        assert!(
            message.contains("of 300 items are answered; the same command continues"),
            "{message}"
        );
    }
    let output = site.program(&command).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("results.jsonl", 300);
    let asked = site.asked();
    assert!(asked.values().all(|times| *times == 1), "{asked:?}");
}

#[tokio::test]
async fn another_run_does_not_take_the_output_of_one_that_is_not_complete() {
    let site = Site::new(50).await;
    site.write_prompts("prompts.txt", 100);
    site.write("other.txt", "other");
    let child = site.program(&["run", "prompts.txt", "-o", "out.jsonl"]).spawn();
    site.until_answered(1).await;
    let busy = site.program(&["run", "prompts.txt", "-o", "out.jsonl"]).output().await;
    assert_eq!(code(&busy), 75, "{}", errors(&busy));
    kill(&child, "INT").await;
    assert_eq!(code(&end(child).await), 130);
    let other = site.program(&["run", "other.txt", "-o", "out.jsonl"]).output().await;
    assert_eq!(code(&other), 2);
    assert!(errors(&other).contains("belongs to a run with another input"), "{}", errors(&other));
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_before_anything_is_asked() {
    let site = Site::new(0).await;
    site.write("a.csv", "text\nx\n");
    site.write("bad.jsonl", "{\"prompt\": \"a\"}\n\n{\"prompt\": \"\"}\n{\"promt\": \"b\"}\n");
    site.write("binary.txt", "a");
    fs::write(site.path("binary.txt"), b"a\n\xff\n").expect("a file");
    let cases: [(&[&str], i32, &str); 10] = [
        (
            &["run", "a.csv", "-o", "o.csv", "--prompt", "{other}"],
            2,
            "a.csv, line 1: there is no \"other\"",
        ),
        (&["run", "bad.jsonl", "-o", "o.csv"], 2, "line 3: prompt: "),
        (&["run", "bad.jsonl", "-o", "o.csv"], 2, "line 4: "),
        (&["run", "binary.txt", "-o", "o.csv"], 2, "line 2: byte 1 of the text is not UTF-8"),
        (&["run", "missing.csv", "-o", "o.csv"], 2, "missing.csv: No such file"),
        (&["run", "a.csv", "--prompt", "{text}", "-o", "no/such/o.csv"], 74, "no/such/o.csv"),
        (&["run", "a.csv", "--url", "ftp://x", "--prompt", "{text}"], 2, "http://"),
        (&["jobs", "list", "--url", "http://me:pw@x"], 2, "without a user or a password"),
        (&["run"], 2, "<INPUT>"),
        (&["jobs", "show", "../x"], 2, "expected an id"),
    ];
    for (arguments, status, expected) in cases {
        let output = site.program(arguments).output().await;
        let message = errors(&output);
        assert_eq!(code(&output), status, "{message}");
        assert!(message.contains(expected), "{message}");
        site.check_tidy("o.csv");
    }
    let keyless = site.program(&["run", "a.csv", "--prompt", "{text}"]).unset("GEMINI_API_KEY");
    let output = keyless.output().await;
    assert_eq!(code(&output), 77, "{}", errors(&output));
    let wrong = site.program(&["run", "a.csv", "--prompt", "{text}"]).set("PORT", "x");
    assert_eq!(code(&wrong.output().await), 78);
    let nobody = format!("http://127.0.0.1:{}", closed_port());
    let output = site.program(&["jobs", "list", "--url", &nobody]).output().await;
    assert_eq!(code(&output), 69, "{}", errors(&output));
    assert!(site.asked().is_empty());
}

#[tokio::test]
async fn an_invalid_key_pauses_the_run_until_there_is_a_better_one() {
    let site = Site::new(0).await;
    site.write_prompts("prompts.txt", 20);
    let command = ["run", "prompts.txt", "-o", "out.jsonl"];
    let wrong = site.program(&command).unset("GEMINI_API_KEY").set("GEMINI_API_KEY", "invalid-key");
    let output = wrong.output().await;
    assert_eq!(code(&output), 77, "{}", errors(&output));
    assert!(errors(&output).contains("invalid_api_key"), "{}", errors(&output));
    let output = site.program(&command).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("out.jsonl", 20);
}

/// The service is killed while it works, and restarts.
#[tokio::test]
async fn a_run_follows_its_job_through_a_restart_of_the_service() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let (url, port) = (service.url(""), service.address.port());
    let program = |key: &str, value: &str| {
        let program = site.program(&["run", "prompts.txt", "-o", "out.jsonl", "--url", &url]);
        program.unset("GEMINI_API_KEY").set(key, value)
    };
    let child = program("ADMIN_API_KEY", ADMIN_KEY).spawn();
    site.until_answered(60).await;
    service.kill().await;
    let service = site.serve(&data, port).await;
    site.until_answered(150).await;
    kill(&child, "INT").await;
    let output = end(child).await;
    assert_eq!(code(&output), 130, "{}", errors(&output));
    let jobs = answer(admin(service.get("/jobs"))).await.body;
    assert_eq!(
        (&jobs["jobs"][0]["status"], jobs["jobs"].as_array().unwrap().len()),
        (&json!("paused"), 1)
    );

    let output = program("ADMIN_API_KEY", ADMIN_KEY).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("out.jsonl", 300);
    site.check_tidy("out.jsonl");
    let repeated: usize = site.asked().values().map(|times| times - 1).sum();
    assert!(repeated <= 8 + 16, "{repeated} were asked again");

    let refused = program("GEMINI_API_KEY", "another-key").output().await;
    assert_eq!(code(&refused), 2, "the output exists");
}

/// A job goes on at a service that cannot be told to pause it.
#[tokio::test]
async fn a_run_whose_job_could_not_be_paused_says_so() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let url = service.url("");
    let command = ["run", "prompts.txt", "-o", "out.jsonl", "--url", &url];
    let child = site.program(&command).spawn();
    site.until_answered(60).await;
    service.kill().await;
    kill(&child, "INT").await;
    let output = end(child).await;
    let message = errors(&output);
    assert_eq!(code(&output), 76, "{message}");
    assert!(message.contains("could not be paused, and goes on: "), "{message}");
}

/// The service is killed while its results are read, and restarts.
#[tokio::test]
async fn results_that_are_followed_go_on_after_a_restart_of_the_service() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let (url, port) = (service.url(""), service.address.port());
    let program = |arguments: &[&str]| {
        site.program(arguments).set("GATEWAY_URL", &url).set("ADMIN_API_KEY", ADMIN_KEY)
    };
    let run = program(&["run", "prompts.txt", "-o", "out.jsonl"]).spawn();
    site.until_answered(1).await;
    let list = program(&["jobs", "list", "--json"]).output().await;
    let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let id = list["jobs"][0]["job_id"].as_str().expect("an id");
    let mut follow = program(&["jobs", "results", id, "--follow"]).spawn();
    let mut copied = BufReader::new(follow.stdout.take().expect("a pipe")).lines();
    let mut lines = Vec::new();
    while lines.len() < 60 {
        lines.push(copied.next_line().await.expect("it reads").expect("a line"));
    }
    service.kill().await;
    let _service = site.serve(&data, port).await;
    while let Some(line) = copied.next_line().await.expect("it reads") {
        lines.push(line);
    }
    let output = end(follow).await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    assert_eq!(code(&end(run).await), 0);
    let indices: Vec<_> = (lines.iter())
        .map(|line| serde_json::from_str::<Value>(line).expect(line)["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, (0..300).collect::<Vec<_>>());
}

/// The service does not know the caller's key after its restart. The run brings it again.
#[tokio::test]
async fn a_run_with_its_own_key_goes_on_after_a_restart_of_the_service() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 200);
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let (url, port) = (service.url(""), service.address.port());
    let program = site.program(&["run", "prompts.txt", "-o", "out.jsonl", "--url", &url]);
    let child = program.unset("GEMINI_API_KEY").set("GEMINI_API_KEY", "own-key").spawn();
    site.until_answered(50).await;
    service.kill().await;
    let _service = site.serve(&data, port).await;
    let output = end(child).await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("out.jsonl", 200);
    assert!(site.simulator.journal().iter().all(|entry| entry.api_key == "own-key"));
}

#[tokio::test]
async fn jobs_of_a_service_are_listed_and_changed() {
    let site = Site::new(0).await;
    site.write("a.jsonl", "{\"prompt\": \"one\"}\n{\"prompt\": \"[[simulate:blocked=SAFETY]]\"}\n");
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let port = service.address.port().to_string();
    let program = |arguments: &[&str]| {
        let program = site.program(arguments).unset("PORT").set("PORT", &port);
        program.set("ADMIN_API_KEY", ADMIN_KEY).set("GATEWAY_URL", &service.url(""))
    };
    let output = program(&["run", "a.jsonl"]).output().await;
    assert_eq!(code(&output), 3, "{}", errors(&output));

    let list = program(&["jobs", "list", "--json"]).output().await;
    let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let id = list["jobs"][0]["job_id"].as_str().expect("an id");
    let run = async |arguments: &[&str]| {
        let output = program(arguments).unset("GATEWAY_URL").output().await;
        (
            code(&output),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (status, table, _) = run(&["jobs", "list"]).await;
    assert!(status == 0 && table.contains(id) && table.contains("a.jsonl"), "{table}");
    let (status, shown, _) = run(&["jobs", "show", id]).await;
    assert!(status == 0 && shown.contains("2 of 2 items have a result"), "{shown}");
    let (status, results, _) = run(&["jobs", "results", id]).await;
    assert_eq!((status, results.lines().count()), (0, 2));
    let (status, _, message) =
        run(&["jobs", "results", id, "--failed", "-o", "failed.jsonl"]).await;
    assert_eq!((status, site.lines("failed.jsonl").len()), (0, 1), "{message}");
    let (status, _, message) = run(&["jobs", "cancel", id]).await;
    assert_eq!(status, 69, "a completed job cannot be cancelled: {message}");
    let (status, _, message) = run(&["jobs", "retry", id, "--all"]).await;
    assert_eq!(status, 0, "{message}");
    let (status, results, _) = run(&["jobs", "results", id, "--follow"]).await;
    assert_eq!((status, results.lines().count()), (0, 2));
    assert_eq!(run(&["jobs", "delete", id]).await.0, 0);
    let (status, _, message) = run(&["jobs", "show", id]).await;
    assert_eq!(status, 69, "{message}");
}

#[tokio::test]
async fn nothing_of_others_is_replaced_or_removed() {
    let site = Site::new(0).await;
    site.write("a.txt", "one");
    fs::create_dir(site.path("out.jsonl.job")).expect("a directory");
    site.write("out.jsonl.job/thesis", "mine");
    fs::create_dir(site.path("folder")).expect("a directory");
    site.write("b.jsonl.part", "mine");
    for (output, status, expected) in [
        ("out.jsonl", 74, "is not the directory of a run"),
        ("b.jsonl", 74, "b.jsonl.part exists"),
        ("a.txt", 2, "would replace the input"),
        ("folder", 2, "is a directory"),
        ("/dev/null", 2, "is not a regular file"),
    ] {
        for force in [&[][..], &["--force"]] {
            let arguments = [&["run", "a.txt", "-o", output], force].concat();
            let refused = site.program(&arguments).output().await;
            let message = errors(&refused);
            assert_eq!(code(&refused), status, "{message}");
            assert!(message.contains(expected) && !message.contains("--force"), "{message}");
        }
    }
    assert_eq!(site.read("out.jsonl.job/thesis") + &site.read("b.jsonl.part"), "minemine");
    assert!(site.asked().is_empty());
}

/// Only without a file there is nothing that tells two runs apart.
#[tokio::test]
async fn each_output_has_a_job_of_its_own_and_stored_answers_are_named() {
    let site = Site::new(0).await;
    site.write("a.txt", "one");
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let url = service.url("");
    let run = async |arguments: &[&str]| {
        let arguments = [&["run", "a.txt", "--url", &url], arguments].concat();
        let output = site.program(&arguments).output().await;
        assert_eq!(code(&output), 0, "{}", errors(&output));
        (errors(&output), site.asked()["one"])
    };
    for (arguments, is_stored, asked) in [
        (&["-o", "b.jsonl"][..], false, 1),
        (&["-o", "c.jsonl"], false, 2),
        (&[], false, 3),
        (&[], true, 3),
        (&["--force"], false, 4),
    ] {
        let (message, times) = run(arguments).await;
        assert_eq!(message.contains("stored answers of the job job_"), is_stored, "{message}");
        assert_eq!(times, asked, "{arguments:?}");
    }
}

#[tokio::test]
async fn a_job_that_was_sent_and_not_yet_accepted_is_continued() {
    let site = Site::new(0).await;
    site.write("a.txt", "one");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let url = format!("http://127.0.0.1:{port}");
    let command = ["run", "a.txt", "-o", "out.jsonl", "--url", &url];
    let child = site.program(&command).spawn();
    let (mut connection, _) = listener.accept().await.expect("a connection");
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n0\r\n\r\n") {
        assert_ne!(connection.read_buf(&mut received).await.expect("a request"), 0);
    }
    kill(&child, "INT").await;
    let output = end(child).await;
    let message = errors(&output);
    assert_eq!(code(&output), 76, "{message}");
    assert!(message.contains("may have accepted the job"), "{message}");
    assert!(site.path("out.jsonl.job/run.json").exists());

    let key = |request: &[u8]| {
        let request = String::from_utf8_lossy(request).to_ascii_lowercase();
        let line = request.lines().find(|line| line.starts_with("idempotency-key:"));
        line.expect("a key").to_owned()
    };
    let mut child = site.program(&command).spawn();
    let (mut connection, _) = listener.accept().await.expect("a connection");
    let mut again = Vec::new();
    while !again.ends_with(b"\r\n0\r\n\r\n") {
        assert_ne!(connection.read_buf(&mut again).await.expect("a request"), 0);
    }
    assert_eq!(key(&again), key(&received));
    child.kill().await.expect("it runs");
}
