//! What is read of batch jobs: the file of a new one, its name, and which jobs have ended.
//!
//! Source: Gemini API docs, batch API, and recorded operations.

use memchr::memchr2;
use serde::Deserialize;

use super::fields::{RepeatedField, fields, json, value};

/// The longest name of a job or a file that is read, in bytes.
const MAX_NAME: usize = 128;

/// The most jobs of one answer that are reported as ended. A page of a list has at most 1,000.
const MAX_ENDED: usize = 1000;

/// The name of the file with the requests of a new job; `None` if they are in the body.
///
/// # Errors
/// [`RepeatedField`]: it is uncertain which file Gemini takes, so what the job costs is uncertain too.
pub fn batch_file(body: &[u8]) -> Result<Option<String>, RepeatedField> {
    let [batch] = fields(body, [&["batch"]])?;
    let [config] = fields(json(batch), [&["inputConfig", "input_config"]])?;
    let [file] = fields(json(config), [&["fileName", "file_name"]])?;
    Ok(value::<String>(file).filter(|name| is_name(name, "files/")))
}

/// The size that the description of a file reports, in bytes.
pub fn file_size(description: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct File {
        size_bytes: String,
    }
    serde_json::from_slice::<File>(description).ok()?.size_bytes.parse().ok()
}

/// The name of a job in the answer to its creation.
pub fn job_name(operation: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Operation {
        name: String,
    }
    let Operation { name } = serde_json::from_slice(operation).ok()?;
    is_name(&name, "batches/").then_some(name)
}

fn is_name(name: &str, collection: &str) -> bool {
    let id = name.strip_prefix(collection).unwrap_or_default();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !id.is_empty() && name.len() <= MAX_NAME && id.bytes().all(allowed)
}

/// Finds the jobs that have ended in the status of one job or in a list, while its bytes pass. A job
/// has ended if its operation is `done`. Only the operations themselves are read: what a caller or a
/// model wrote is deeper.
#[derive(Debug, Default)]
pub struct JobScanner {
    /// How many objects are open.
    depth: usize,
    /// In a string, and whether its next byte is escaped.
    string: Option<bool>,
    /// The string or the literal that is being read, without what exceeds [`MAX_NAME`].
    text: Vec<u8>,
    /// The field whose value is being read.
    field: Field,
    /// The operation at each depth.
    operations: [Operation; DEPTHS],
    ended: Vec<String>,
}

/// How many objects an operation is in at most, itself included: in a list it is in a second one.
const DEPTHS: usize = 2;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Done,
    #[default]
    Other,
}

#[derive(Debug, Default)]
struct Operation {
    name: Option<String>,
    is_done: bool,
}

impl JobScanner {
    /// Reads the next bytes, and returns the jobs that they report as ended.
    pub fn scan(&mut self, mut bytes: &[u8]) -> Vec<String> {
        while let [byte, rest @ ..] = bytes {
            match &mut self.string {
                Some(escaped) if *escaped => *escaped = false,
                Some(escaped) => {
                    let Some(end) = memchr2(b'"', b'\\', bytes) else {
                        self.keep(bytes);
                        break;
                    };
                    if bytes[end] == b'\\' {
                        *escaped = true;
                    } else {
                        self.string = None;
                    }
                    // No name that is read has an escape: with its backslash it is no name.
                    self.keep(&bytes[..end + usize::from(self.string.is_some())]);
                    if self.string.is_none() {
                        self.end_string();
                    }
                    bytes = &bytes[end + 1..];
                    continue;
                }
                None => self.outside(*byte),
            }
            bytes = rest;
        }
        std::mem::take(&mut self.ended)
    }

    fn outside(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.text.clear();
                self.string = Some(false);
            }
            b':' => {
                self.field = match &self.text[..] {
                    b"name" => Field::Name,
                    b"done" => Field::Done,
                    _ => Field::Other,
                };
                self.text.clear();
            }
            b'{' => {
                self.depth += 1;
                self.field = Field::Other;
                if let Some(operation) = self.operation() {
                    *operation = Operation::default();
                }
            }
            b',' | b'}' => {
                self.end_literal();
                if byte == b'}' {
                    self.end_object();
                }
            }
            _ if byte.is_ascii_whitespace() => {}
            _ => self.keep(&[byte]),
        }
    }

    fn operation(&mut self) -> Option<&mut Operation> {
        self.operations.get_mut(self.depth.checked_sub(1)?)
    }

    fn keep(&mut self, bytes: &[u8]) {
        // One byte more than a name may have, so that a longer one is not taken for it.
        let room = (MAX_NAME + 1).saturating_sub(self.text.len());
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_string(&mut self) {
        if std::mem::take(&mut self.field) != Field::Name {
            return;
        }
        let name = std::str::from_utf8(&self.text).ok().filter(|name| is_name(name, "batches/"));
        let name = name.map(str::to_owned);
        if let Some(operation) = self.operation() {
            operation.name = name;
        }
    }

    fn end_literal(&mut self) {
        let is_done = self.field == Field::Done && self.text == b"true";
        self.field = Field::Other;
        if let Some(operation) = self.operation().filter(|_| is_done) {
            operation.is_done = true;
        }
    }

    fn end_object(&mut self) {
        let operation = self.operation().map(std::mem::take).unwrap_or_default();
        if let Operation { name: Some(name), is_done: true } = operation
            && self.ended.len() < MAX_ENDED
        {
            self.ended.push(name);
        }
        self.depth = self.depth.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The jobs that have ended, which are the same wherever the answer is cut in two.
    fn ended(answer: &str) -> Vec<String> {
        let whole = JobScanner::default().scan(answer.as_bytes());
        for cut in 0..=answer.len() {
            let (one, other) = answer.as_bytes().split_at(cut);
            let mut scanner = JobScanner::default();
            let mut cut_in_two = scanner.scan(one);
            cut_in_two.extend(scanner.scan(other));
            assert_eq!(cut_in_two, whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn a_job_has_ended_when_its_operation_is_done() {
        let done = r#"{"name": "batches/a", "metadata": {"name": "batches/a", "state": "x"},
            "response": {"inlinedResponses": [{"done": false, "name": "x"}]}, "done": true}"#;
        assert_eq!(ended(done), ["batches/a"]);
        assert_eq!(ended(r#"{"done":true,"name":"batches/a"}"#), ["batches/a"]);
        let list = r#"{"operations":[{"name":"batches/a","done":true,"metadata":{"done":true}},
            {"name":"batches/b"},{"name":"batches/c","done":true}],"nextPageToken":"done"}"#;
        assert_eq!(ended(list), ["batches/a", "batches/c"]);
    }

    #[test]
    fn a_text_of_a_caller_does_not_end_a_job() {
        for answer in [
            r#"{"name":"batches/a","done":false}"#,
            r#"{"name":"batches/a"}"#,
            r#"{"name":"batches/a","metadata":{"displayName":"\"done\":true","done":true}}"#,
            r#"{"name":"batches/a","x":["done",true],"y":"done\":true"}"#,
            r#"{"name":"batches/a\u0062","done":true}"#,
            r#"{"name":"files/a","done":true}"#,
            r#"{"name":"batches/a/b","done":true}"#,
            r#"{"operations":[{"x":{"name":"batches/a","done":true}}]}"#,
            "}}}{",
            "",
        ] {
            assert_eq!(ended(answer), [""; 0], "{answer}");
        }
        let long = format!(r#"{{"name":"batches/{}","done":true}}"#, "a".repeat(MAX_NAME));
        assert_eq!(ended(&long), [""; 0]);
        let many = r#"{"name":"batches/a","done":true},"#.repeat(MAX_ENDED + 1);
        assert_eq!(JobScanner::default().scan(many.as_bytes()).len(), MAX_ENDED);
    }

    #[test]
    fn a_job_whose_file_is_named_twice_is_rejected() {
        let (one, two) = (r#""fileName":"files/a""#, r#""file_name":"files/b""#);
        for (body, name) in [
            (format!(r#"{{"batch":{{"inputConfig":{{{one},{two}}}}}}}"#), "fileName"),
            (
                format!(r#"{{"batch":{{"inputConfig":{{{one}}},"input_config":{{{two}}}}}}}"#),
                "inputConfig",
            ),
            (format!(r#"{{"batch":{{}},"batch":{{"inputConfig":{{{one}}}}}}}"#), "batch"),
        ] {
            assert_eq!(batch_file(body.as_bytes()), Err(RepeatedField(name)), "{body}");
        }
    }

    #[test]
    fn the_file_of_a_job_and_its_size_are_read() {
        let named = |body: &str| batch_file(body.as_bytes()).unwrap();
        let camel = r#"{"batch":{"displayName":"a","inputConfig":{"fileName":"files/a-1"}}}"#;
        assert_eq!(named(camel).as_deref(), Some("files/a-1"));
        let snake = r#"{"batch":{"input_config":{"file_name":"files/a"}}}"#;
        assert_eq!(named(snake).as_deref(), Some("files/a"));
        for body in [
            r#"{"batch":{"inputConfig":{"requests":{"requests":[{"fileName":"files/a"}]}}}}"#,
            r#"{"batch":{"inputConfig":{"fileName":"files/../models"}}}"#,
            r#"{"batch":{"inputConfig":{"fileName":"files/"}}}"#,
            "{}",
        ] {
            assert_eq!(named(body), None, "{body}");
        }
        assert_eq!(file_size(br#"{"name":"files/a","sizeBytes":"123"}"#), Some(123));
        assert_eq!(file_size(br#"{"name":"files/a","sizeBytes":"many"}"#), None);
        assert_eq!(
            job_name(br#"{"name":"batches/a","metadata":{}}"#).as_deref(),
            Some("batches/a")
        );
        assert_eq!(job_name(br#"{"name":"operations/a"}"#), None);
    }
}
