use std::fs;

use clap::Parser;
use http_body_util::BodyExt;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::client::{ClientError, ClientKey, GatewayClient};
use crate::run::service::JobService;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    job: JobArguments,
}

fn upload(name: &str, text: &str, options: &[&str]) -> Result<(TempDir, Upload), String> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    fs::write(folder.path().join("schema.json"), "{\n \"type\": \"object\"}\n").unwrap();
    let schema = folder.path().join("schema.json").to_str().unwrap().to_owned();
    let options = options.iter().map(|option| option.replace("SCHEMA", &schema));
    let arguments = ["run".to_owned(), path.to_str().unwrap().to_owned()];
    let line = CommandLine::try_parse_from(arguments.into_iter().chain(options));
    let line = line.map_err(|error| error.to_string())?;
    let upload = Upload::new(line.job, 1000).map_err(|error| error.to_string())?;
    Ok((folder, upload))
}

/// All lines, or the first error.
fn lines(name: &str, text: &str, options: &[&str]) -> Result<Vec<Value>, String> {
    let (_folder, upload) = upload(name, text, options)?;
    let mut bytes = Vec::new();
    let read = upload.each_chunk(|chunk, _| {
        bytes.extend_from_slice(&chunk);
        true
    });
    read.map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).unwrap();
    Ok(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn items(name: &str, text: &str, options: &[&str]) -> Vec<Value> {
    lines(name, text, options).unwrap().split_off(1)
}

fn error(name: &str, text: &str, options: &[&str]) -> String {
    lines(name, text, options).expect_err("an error")
}

#[test]
fn columns_and_fields_are_filled_into_the_prompt() {
    let prompt = ["--prompt", "Say: {text}"];
    for (name, text) in [
        ("a.csv", "text,custom_id\n\"a \"\"b\"\"\",1\n5,2\n"),
        ("a.tsv", "text\tcustom_id\na \"b\"\t1\n5\t2\n"),
        (
            "a.jsonl",
            "{\"text\": \"a \\\"b\\\"\", \"custom_id\": \"1\"}\n{\"text\": 5, \"custom_id\": 2}",
        ),
    ] {
        let expected = [
            json!({"custom_id": "1", "prompt": "Say: a \"b\""}),
            json!({"custom_id": "2", "prompt": "Say: 5"}),
        ];
        assert_eq!(items(name, text, &prompt), expected, "{name}");
    }
    let named = items("a.csv", "text,n\na,1\n", &["--prompt", "{text}", "--id", "n"]);
    assert_eq!(named, [json!({"custom_id": "1", "prompt": "a"})]);
}

#[test]
fn a_column_called_id_names_the_items_unless_there_is_a_custom_id() {
    for (table, expected) in [
        ("id,prompt\n7,a\n", json!({"custom_id": "7", "prompt": "a"})),
        ("id,custom_id,prompt\n7,x,a\n", json!({"custom_id": "x", "prompt": "a"})),
        ("id,id,prompt\n7,8,a\n", json!({"prompt": "a"})),
    ] {
        assert_eq!(items("a.csv", table, &[]), [expected], "{table}");
    }
}

#[test]
fn lines_of_text_are_prompts() {
    let lines = "{one}\n\ntwo \n";
    let expected = [json!({"prompt": "{one}"}), json!({"prompt": "two "})];
    assert_eq!(items("a.txt", lines, &[]), expected);
    let wrapped = items("a.txt", lines, &["--prompt", "<{line}>"]);
    assert_eq!(wrapped[0], json!({"prompt": "<{one}>"}));
}

#[test]
fn a_column_called_prompt_needs_no_template() {
    assert_eq!(items("a.csv", "prompt,x\na,b\n", &[]), [json!({"prompt": "a"})]);
    let story = ["--kind", "cinematic-story-design"];
    assert_eq!(items("a.csv", "prompt\na\n", &story), [json!({"user_content": "a"})]);
}

#[test]
fn lines_of_json_are_sent_as_they_are_and_show_their_kind() {
    for (line, kind) in [
        (r#"{"prompt": "a",   "custom_id":"1"}"#, JobKind::Chat),
        (r#"{"user_content": "a", "json_schema": {}}"#, JobKind::StructuredOutput),
        (r#"{"key": "a", "request": {}}"#, JobKind::Gemini),
        (r#"{"custom_id": "a", "method": "POST", "url": "/", "body": {}}"#, JobKind::OpenAi),
    ] {
        let (_folder, upload) = upload("a.jsonl", &format!("\n{line} \r\n"), &[]).unwrap();
        assert_eq!(upload.kind(), kind, "{line}");
        let mut sent = Vec::new();
        upload
            .each_chunk(|chunk, _| {
                sent.extend_from_slice(&chunk);
                true
            })
            .unwrap();
        assert!(String::from_utf8(sent).unwrap().ends_with(&format!("\n{line}\n")), "{line}");
        assert_eq!((upload.line_of(0), upload.line_of(1)), (Some(2), None));
    }
}

#[test]
fn the_first_line_has_the_options() {
    let options = ["--model", "gemini-a", "--system", "Be brief.", "--service-tier", "flex"];
    let sent = lines("a.txt", "one", &[&options[..], &["--semaphore", "s"]].concat()).unwrap();
    assert_eq!(
        sent[0],
        json!({"job": {"job_name": "a.txt", "model": "gemini-a", "service_tier": "flex",
            "external_semaphore_id": "s", "shared": {"system_prompt": "Be brief."}}})
    );
    let sent = lines("a.txt", "one", &["--schema", "SCHEMA", "--name", "mine"]).unwrap();
    let shared = json!({"system_prompt": STRUCTURED_SYSTEM, "json_schema": {"type": "object"}});
    assert_eq!(sent[0], json!({"job": {"job_name": "mine", "shared": shared}}));
    assert_eq!(sent[1], json!({"user_content": "one"}));
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
    let prompt = ["--prompt", "{other}"];
    let cases: [(&str, &str, &[&str], &str); 17] = [
        ("a.csv", "text,x\na,b\n", &prompt, "line 1: there is no \"other\" among text, x"),
        ("a.csv", "text\na\n", &[], "line 1: there is no \"prompt\" among text; --prompt"),
        ("a.csv", "t,t\na,b\n", &["--prompt", "{t}"], "several columns are called \"t\""),
        ("a.csv", "t\na\n", &["--prompt", "{t}", "--id", "x"], "there is no \"x\" among t"),
        ("a.csv", "t\na\n", &["--kind", "openai"], "lines of batch files are JSON"),
        ("a.txt", "one\n", &prompt, "line 1: there is no \"other\" among line"),
        (
            "a.jsonl",
            "{\"other\": 1}\n\n{\"text\": 1}\n",
            &prompt,
            "line 3: there is no \"other\" among text",
        ),
        ("a.jsonl", "{\"other\": 1}\n[]\n", &prompt, "line 2: expected a JSON object"),
        ("a.jsonl", "{}\n[]\n", &[], "line 2: expected a JSON object"),
        ("a.jsonl", "{}\n", &["--id", "x"], "--id is for items that --prompt makes"),
        (
            "a.jsonl",
            "{\"request\": {}}\n",
            &["--system", "x"],
            "--system: items of the kind gemini",
        ),
        (
            "a.txt",
            "a",
            &["--kind", "chat", "--schema", "SCHEMA"],
            "--schema is for structured-output",
        ),
        ("a.txt", " \n", &[], "it has no items"),
        ("a.txt", "a", &["--schema", "/no/such/file"], "/no/such/file: "),
        ("a.txt", "a", &["--kind", "poem"], "expected chat, structured-output"),
        ("a.txt", "a", &["--prompt", "{"], "is not closed"),
        ("a.txt", "a", &["--limit", "0"], "0"),
    ];
    for (name, text, options, expected) in cases {
        let error = error(name, text, options);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_digest_is_that_of_what_is_asked() {
    let digest = |text: &str, options: &[&str]| {
        let (_folder, upload) = upload("a.txt", text, options).unwrap();
        upload.measure().unwrap()
    };
    let first = digest("one\ntwo\n", &[]);
    assert_eq!((first.items, first.digest.len()), (2, 64));
    assert_eq!(digest("\u{feff}one\r\n\r\ntwo", &[]), first);
    assert_eq!(digest("one\nthree\ntwo\n", &["--limit", "1"]).items, 1);
    for other in [digest("one\ntwo \n", &[]), digest("one\ntwo\n", &["--model", "gemini-b"])] {
        assert_ne!(other.digest, first.digest);
    }
}

#[tokio::test]
async fn a_body_counts_as_sent_only_after_all_of_it() {
    let (_folder, upload) = upload("a.txt", "one\ntwo\n", &[]).unwrap();
    let upload = Arc::new(upload);
    let digest = upload.measure().unwrap().digest;
    assert!(!upload.was_sent());
    upload.body(digest, |_| {}).collect().await.unwrap();
    assert!(upload.was_sent() && !upload.has_changed());
}

#[tokio::test]
async fn the_body_breaks_off_if_the_input_has_changed() {
    let (folder, upload) = upload("a.txt", "one\ntwo\n", &[]).unwrap();
    let upload = Arc::new(upload);
    let measure = upload.measure().unwrap();
    let body = || upload.body(measure.digest.clone(), |_| {}).collect();
    let sent = body().await.unwrap().to_bytes();
    assert_eq!(sent.len() as u64, measure.bytes);
    fs::write(folder.path().join("a.txt"), "one\nTWO\n").unwrap();
    assert!(body().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_upload_to_a_service_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let client = GatewayClient::new(&format!("http://{host}"), ClientKey::None).unwrap();
    let (_folder, upload) = upload("a.txt", "one", &[]).unwrap();
    let measure = upload.measure().unwrap();
    let service = JobService::new(client);
    let error = service.submit(&Arc::new(upload), &measure, "key", |_| {}).await.unwrap_err();
    assert!(matches!(&error, ClientError::Silent { host: named, .. } if *named == host));
    assert!(error.to_string().ends_with("does not answer: nothing came for 120 s"), "{error}");
}
