use std::borrow::Cow;

use clap::Parser;
use tempfile::TempDir;

use super::*;
use crate::jobs::JobKind;
use crate::run::result::ItemFailure;
use crate::run::upload::JobArguments;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    job: JobArguments,
}

fn upload(folder: &TempDir, name: &str, text: &str, options: &[&str]) -> Upload {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let arguments = ["run", path.to_str().unwrap()].into_iter().chain(options.iter().copied());
    let line = CommandLine::try_parse_from(arguments).unwrap();
    Upload::new(line.job, 1000).unwrap()
}

fn answered(index: u64, answer: &str) -> ItemResult<'_> {
    let custom_id = Some(Cow::from("id, \"1\""));
    ItemResult { index: Some(index), custom_id, answer: Ok(answer.into()) }
}

fn failed(index: u64) -> ItemResult<'static> {
    let (code, message) = ("content_blocked".to_owned(), "why".to_owned());
    let answer = Err(ItemFailure { code, message });
    ItemResult { index: Some(index), custom_id: None, answer }
}

#[test]
fn an_output_has_its_final_name_once_it_is_complete() {
    let folder = TempDir::new().unwrap();
    let upload = upload(&folder, "a.txt", "one\ntwo\n", &[]);
    let path = folder.path().join("out.jsonl");
    fs::write(&path, "old").unwrap();
    let mut output = Output::create(&path, None, &upload, false).unwrap();
    output.add(b"{\"a\":1}", &answered(0, "")).unwrap();
    output.flush().unwrap();
    let part = folder.path().join("out.jsonl.part");
    assert_eq!(fs::read_to_string(&part).unwrap(), "{\"a\":1}\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    output.add(b"{\"b\":2}", &failed(1)).unwrap();
    output.finish().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"b\":2}\n");
    assert!(!part.exists());
}

#[test]
fn a_table_repeats_the_columns_of_the_input() {
    let folder = TempDir::new().unwrap();
    let text = "index,text\n7,\"a\nb\"\n8,c\n9,d\n";
    let upload = upload(&folder, "a.csv", text, &["--prompt", "{text}"]);
    let path = folder.path().join("out.CSV");
    let mut output = Output::create(&path, None, &upload, false).unwrap();
    output.add(b"", &answered(0, "x,\r\n\"y\"")).unwrap();
    // The item between them was cancelled.
    output.add(b"", &failed(2)).unwrap();
    output.finish().unwrap();
    let expected = "index,custom_id,input.index,text,response,error_code,error\n\
                    0,\"id, \"\"1\"\"\",7,\"a\nb\",\"x,\r\n\"\"y\"\"\",,\n\
                    2,,9,d,,content_blocked,why\n";
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn a_table_of_json_has_the_answers_only() {
    let folder = TempDir::new().unwrap();
    let line = r#"{"user_content": "a", "system_prompt": "b", "json_schema": {}}"#;
    let upload = upload(&folder, "a.jsonl", line, &[]);
    assert_eq!(upload.kind(), JobKind::StructuredOutput);
    let path = folder.path().join("out");
    let mut output = Output::create(&path, Some(OutputFormat::Csv), &upload, false).unwrap();
    output.add(b"", &answered(0, "{\"a\":1}")).unwrap();
    output.finish().unwrap();
    let expected = "index,custom_id,data,error_code,error\n\
                    0,\"id, \"\"1\"\"\",\"{\"\"a\"\":1}\",,\n";
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn a_part_is_replaced_only_if_a_run_may_have_left_it() {
    let folder = TempDir::new().unwrap();
    let upload = upload(&folder, "a.txt", "one\n", &[]);
    let (path, part) = (folder.path().join("out.jsonl"), folder.path().join("out.jsonl.part"));
    fs::write(&part, "mine").unwrap();
    assert!(Output::create(&path, None, &upload, false).is_err());
    assert_eq!(fs::read_to_string(&part).unwrap(), "mine");
    Output::create(&path, None, &upload, true).unwrap();
    assert_eq!(fs::read_to_string(&part).unwrap(), "");
}

#[test]
fn an_output_that_is_the_input_or_no_regular_file_is_refused() {
    let folder = TempDir::new().unwrap();
    let upload = upload(&folder, "a.txt", "one\n", &[]);
    let (input, link) = (folder.path().join("a.txt"), folder.path().join("link"));
    std::os::unix::fs::symlink(&input, &link).unwrap();
    let hard = folder.path().join("hard.part");
    fs::hard_link(&input, &hard).unwrap();
    let device = folder.path().join("device");
    std::os::unix::fs::symlink("/dev/null", &device).unwrap();
    for (output, expected) in [
        (input, "would replace the input"),
        (link, "would replace the input"),
        (folder.path().join("hard"), "would replace the input"),
        (folder.path().to_owned(), "is a directory"),
        (device, "is not a regular file"),
        ("/dev/null".into(), "is not a regular file"),
    ] {
        let refused = check_replaceable(&output, Some(upload.input())).unwrap_err();
        assert!(refused.contains(expected) && !refused.contains("--force"), "{refused}");
    }
    let other = folder.path().join("other");
    fs::write(&other, "").unwrap();
    for output in [other, folder.path().join("new"), "-".into()] {
        assert_eq!(check_replaceable(&output, Some(upload.input())), Ok(()));
    }
}
