//! `run` and `jobs`: the real program, over a simulator in this process that keeps what it is asked.

mod continued;
mod management;

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

#[tokio::test]
async fn an_option_that_the_gateway_refuses_leaves_nothing_behind() {
    let site = Site::new(0).await;
    site.write("a.txt", "one");
    for (option, value, expected) in [
        ("--semaphore", "nope", "There is no semaphore \"nope\""),
        ("--service-tier", "gold", "\n  service_tier: Input should be"),
    ] {
        let arguments = ["run", "a.txt", "-o", "out.jsonl", option, value];
        let output = site.program(&arguments).output().await;
        let message = errors(&output);
        assert!(code(&output) == 2 && message.contains(expected), "{message}");
        site.check_tidy("out.jsonl");
    }
    let redis = format!("redis://127.0.0.1:{}", closed_port());
    let program = site.program(&["run", "a.txt", "-o", "out.jsonl"]).set("REDIS_URL", &redis);
    assert_eq!(code(&program.output().await), 78);
    site.check_tidy("out.jsonl");
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
