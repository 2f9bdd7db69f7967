use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn input(name: &str, bytes: &[u8]) -> (TempDir, Result<Input, InputError>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let input = Input::open(&path, None, 1000);
    (folder, input)
}

/// The records, each as its line's number and its fields joined; then the error, if there is one.
fn read(name: &str, bytes: &[u8]) -> (Vec<(u64, String)>, Option<String>) {
    let (_folder, input) = input(name, bytes);
    let input = match input {
        Ok(input) => input,
        Err(error) => return (Vec::new(), Some(error.to_string())),
    };
    let records = match input.records() {
        Ok(records) => records,
        Err(error) => return (Vec::new(), Some(error.to_string())),
    };
    let mut read = Vec::new();
    for record in records {
        match record {
            Ok(Record { position, content: Content::Line(text) }) => {
                read.push((input.line(position), text));
            }
            Ok(Record { position, content: Content::Row { fields, .. } }) => {
                read.push((input.line(position), fields.join("|")));
            }
            Err(error) => return (read, Some(error.to_string())),
        }
    }
    (read, None)
}

fn records(name: &str, bytes: &[u8]) -> Vec<(u64, String)> {
    let (records, error) = read(name, bytes);
    assert_eq!(error, None);
    records
}

fn error(name: &str, bytes: &[u8]) -> String {
    read(name, bytes).1.expect("an error")
}

#[test]
fn lines_end_in_either_way_and_blank_ones_are_skipped() {
    let bytes = b"\xef\xbb\xbfone\r\n\r\n  \n two \nthree";
    let expected = [(1, "one"), (4, " two "), (5, "three")];
    assert_eq!(records("a.txt", bytes), expected.map(|(line, text)| (line, text.to_owned())));
    assert_eq!(records("a.txt", b""), []);
}

#[test]
fn rows_have_quoted_fields_with_commas_quotes_and_line_ends() {
    let bytes = b"\xef\xbb\xbfid,text\r\n1,\"a, \"\"b\"\"\r\nc\"\r\n\r\n2,\r\n";
    let expected = [(2, "1|a, \"b\"\r\nc".to_owned()), (5, "2|".to_owned())];
    assert_eq!(records("a.csv", bytes), expected);
    assert_eq!(records("a.tsv", b"id\ttext\n1\ta, b\n"), [(2, "1|a, b".to_owned())]);
    assert_eq!(records("a.csv", b"id,text\n1,5\" wide"), [(2, "1|5\" wide".to_owned())]);
}

#[test]
fn the_name_or_else_the_first_byte_tells_the_format() {
    for (name, bytes, format) in [
        ("a.JSONL", "x", InputFormat::Jsonl),
        ("a.ndjson", "x", InputFormat::Jsonl),
        ("a.csv", "{", InputFormat::Csv),
        ("a.txt", "{", InputFormat::Lines),
        ("a", " \n{\"a\": 1}", InputFormat::Jsonl),
        ("a", "a", InputFormat::Lines),
    ] {
        let (_folder, input) = input(name, bytes.as_bytes());
        assert_eq!(input.unwrap().format(), format, "{name} {bytes}");
    }
}

#[test]
fn what_cannot_be_read_is_reported_with_its_line() {
    let long = "x".repeat(1001);
    let long_row = format!("id\n{long}\n");
    let cases: [(&str, &[u8], &str); 8] = [
        ("a.txt", b"good\nb\xff\n", "line 2: byte 2 of the text is not UTF-8"),
        ("a.csv", b"id,text\n1,good\n2,b\xff\n", "line 3: byte 2 of the text is not UTF-8"),
        ("a.csv", b"id,text\n1,2\n\n1,2,3\n", "line 4: a row with 3 fields, under a header with 2"),
        ("a.csv", b"id,text\n1,\"2\n1,3\n", "line 2: a quote is opened and never closed"),
        ("a.csv", b"", "a.csv: it has no header"),
        ("a.txt", b"\xff\xfea\0", "it is in UTF-16"),
        ("a.txt", long.as_bytes(), "line 1: a record of more than 1000 bytes"),
        ("a.csv", long_row.as_bytes(), "line 2: a record of more than 1000 bytes"),
    ];
    for (name, bytes, expected) in cases {
        let error = error(name, bytes);
        assert!(error.contains(expected), "{error}");
    }
}

/// The rest of the file is not read into memory.
#[test]
fn an_unclosed_quote_ends_at_the_limit() {
    let bytes = format!("id,text\n1,\"{}", "a,b\n".repeat(1 << 20));
    assert!(error("a.csv", bytes.as_bytes()).contains("line 2: a record of more than 1000"));
}

#[test]
fn an_input_is_read_again_from_its_beginning() {
    let (_folder, input) = input("a.txt", b"one\ntwo");
    let input = input.unwrap();
    let (mut first, mut second) = (input.records().unwrap(), input.records().unwrap());
    let line = |record: Record| input.line(record.position);
    let next = |records: &mut Records<'_>| line(records.next().unwrap().unwrap());
    assert_eq!((next(&mut first), next(&mut first), next(&mut second)), (1, 2, 1));
    assert!(first.next().is_none());
}

proptest! {
    #[test]
    fn rows_come_back_as_they_were_written(
        rows in prop::collection::vec(("[^\0]{0,20}", "(?s).{0,20}"), 0..10),
    ) {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["a", "b"]).unwrap();
        for (a, b) in &rows {
            writer.write_record([a, b]).unwrap();
        }
        let expected: Vec<_> = rows.iter().map(|(a, b)| format!("{a}|{b}")).collect();
        let read = records("a.csv", &writer.into_inner().unwrap());
        let read: Vec<_> = read.into_iter().map(|(_, row)| row).collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn lines_come_back_as_they_were_written(
        lines in prop::collection::vec("[^\r\n]{0,20}", 0..10), end in "\r?\n",
    ) {
        let text = format!("x{end}{}", lines.join(&end));
        let read = records("a.txt", text.as_bytes());
        let read: Vec<_> = read.into_iter().skip(1).map(|(_, line)| line).collect();
        let expected: Vec<_> = lines.into_iter().filter(|line| !line.trim().is_empty()).collect();
        prop_assert_eq!(read, expected);
    }
}
