//! The lines of results, as far as the output and the summary need them.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::jobs::JobKind;

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub struct ItemResult<'a> {
    /// The index of the item, if the line has it.
    pub index: Option<u64>,
    /// The name that the item has.
    pub custom_id: Option<Cow<'a, str>>,
    /// The answer: a text, or JSON.
    pub answer: Result<Cow<'a, str>, ItemFailure>,
}

/// Why an item has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemFailure {
    /// The error code.
    pub code: String,
    /// What went wrong.
    pub message: String,
}

/// A result in the form of the gateway's own batches.
#[derive(Deserialize)]
struct OwnResult<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    custom_id: Option<Cow<'a, str>>,
    success: bool,
    #[serde(borrow)]
    response: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    error: Option<Value>,
    error_code: Option<String>,
}

impl<'a> ItemResult<'a> {
    /// Reads a line of results of this kind.
    ///
    /// # Errors
    /// If the line has not the form of its kind.
    pub fn read(kind: JobKind, line: &'a [u8]) -> Result<Self, serde_json::Error> {
        match kind {
            JobKind::Chat | JobKind::StructuredOutput | JobKind::CinematicStoryDesign => {
                serde_json::from_slice(line).map(Self::of_own)
            }
            JobKind::OpenAi => serde_json::from_slice(line).map(of_openai),
            JobKind::Gemini => serde_json::from_slice(line).map(of_gemini),
        }
    }

    fn of_own(result: OwnResult<'a>) -> Self {
        let OwnResult { index, custom_id, success, response, data, error, error_code } = result;
        let data = || data.map(|data| Cow::from(data.get()));
        let answer = match success {
            true => Ok(response.or_else(data).unwrap_or_default()),
            false => Err(ItemFailure {
                code: error_code.unwrap_or_default(),
                message: text(error.unwrap_or_default()),
            }),
        };
        Self { index, custom_id, answer }
    }
}

/// A line of OpenAI's batch output. Source: OpenAI's API reference, "The request output object".
fn of_openai(mut line: Value) -> ItemResult<'static> {
    let index = line["index"].as_u64();
    let custom_id = named(take(&mut line, "/custom_id"));
    let error = take(&mut line, "/error");
    if !error.is_null() {
        return ItemResult { index, custom_id, answer: Err(failure(error)) };
    }
    let status = line["response"]["status_code"].as_u64();
    let mut body = take(&mut line, "/response/body");
    if status.is_none_or(|status| status >= 400) {
        let error = match take(&mut body, "/error") {
            Value::Null => body,
            error => error,
        };
        return ItemResult { index, custom_id, answer: Err(failure(error)) };
    }
    let is_blocked = body["choices"][0]["finish_reason"] == "content_filter";
    let answer = match take(&mut body, "/choices/0/message/content") {
        Value::Null if is_blocked => return blocked(index, custom_id),
        Value::String(content) if content.is_empty() && is_blocked => {
            return blocked(index, custom_id);
        }
        Value::String(content) => content,
        // Such as the answer to a request for embeddings.
        _ => body.to_string(),
    };
    ItemResult { index, custom_id, answer: Ok(answer.into()) }
}

/// The result of an item whose answer was withheld.
fn blocked(index: Option<u64>, custom_id: Option<Cow<'static, str>>) -> ItemResult<'static> {
    let message = "the answer was blocked (content_filter)".to_owned();
    let failure = ItemFailure { code: "content_blocked".to_owned(), message };
    ItemResult { index, custom_id, answer: Err(failure) }
}

/// A line of Gemini's batch output. Source: Gemini API documentation, "Batch API".
fn of_gemini(mut line: Value) -> ItemResult<'static> {
    let index = line["index"].as_u64();
    let custom_id = named(take(&mut line, "/key"));
    let error = match take(&mut line, "/error") {
        Value::Null => take(&mut line, "/status"),
        error => error,
    };
    let response = take(&mut line, "/response");
    if response.is_null() {
        return ItemResult { index, custom_id, answer: Err(failure(error)) };
    }
    let parts = response["candidates"][0]["content"]["parts"].as_array();
    let parts = parts.into_iter().flatten();
    let said = parts.filter(|part| part["thought"] != true);
    let answer: String = said.filter_map(|part| part["text"].as_str()).collect();
    ItemResult { index, custom_id, answer: Ok(answer.into()) }
}

/// A value at a path, which is null where it was afterwards; null if there is none.
fn take(value: &mut Value, path: &str) -> Value {
    value.pointer_mut(path).map(Value::take).unwrap_or_default()
}

fn named(name: Value) -> Option<Cow<'static, str>> {
    match name {
        Value::String(name) => Some(name.into()),
        _ => None,
    }
}

/// An error of Gemini's or OpenAI's form. Gemini's names the code among its details, in capitals.
fn failure(error: Value) -> ItemFailure {
    let reason = error["details"][0]["reason"].as_str().map(str::to_ascii_lowercase);
    let code = error["code"].as_str().map(str::to_owned);
    let status = || error["status"].as_str().map(str::to_ascii_lowercase);
    let code = reason.or(code).or_else(status).unwrap_or_else(|| "unknown".to_owned());
    let message = error["message"].as_str().map(str::to_owned);
    ItemFailure { code, message: message.unwrap_or_else(|| text(error)) }
}

fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(kind: JobKind, line: &Value) -> (Option<String>, Result<String, (String, String)>) {
        let line = line.to_string();
        let result = ItemResult::read(kind, line.as_bytes()).unwrap();
        let answer = result.answer.map(Cow::into_owned);
        let answer = answer.map_err(|failure| (failure.code, failure.message));
        (result.custom_id.map(Cow::into_owned), answer)
    }

    #[test]
    fn answers_are_found_in_every_form() {
        let own = |fields: Value| {
            let mut line = json!({"success": true, "index": 0, "custom_id": "a\n", "usage": {}});
            line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            line
        };
        let openai = json!({"custom_id": "a\n", "error": null, "response": {"status_code": 200,
            "body": {"choices": [{"message": {"content": "b\"c"}}]}}});
        let gemini = json!({"key": "a\n", "response": {"candidates": [{"content": {"parts": [
            {"text": "hidden", "thought": true}, {"text": "b"}, {"text": "\"c"}]}}]}});
        for (kind, line, answer) in [
            (JobKind::Chat, own(json!({"response": "b\"c"})), "b\"c"),
            (JobKind::StructuredOutput, own(json!({"data": {"b": [1]}})), "{\"b\":[1]}"),
            (JobKind::OpenAi, openai, "b\"c"),
            (JobKind::Gemini, gemini, "b\"c"),
        ] {
            assert_eq!(read(kind, &line), (Some("a\n".to_owned()), Ok(answer.to_owned())));
        }
        let embedding = json!({"response": {"status_code": 200, "body": {"data": []}}});
        assert_eq!(read(JobKind::OpenAi, &embedding), (None, Ok("{\"data\":[]}".to_owned())));
    }

    #[test]
    fn an_answer_that_was_filtered_is_a_failure_unless_there_is_some_of_it() {
        for (content, expected) in
            [(json!(null), None), (json!(""), None), (json!("some"), Some("some"))]
        {
            let choice =
                json!({"message": {"content": content}, "finish_reason": "content_filter"});
            let line = json!({"response": {"status_code": 200, "body": {"choices": [choice]}}});
            let answer = read(JobKind::OpenAi, &line).1;
            match expected {
                Some(expected) => assert_eq!(answer.as_deref(), Ok(expected)),
                None => assert_eq!(answer.unwrap_err().0, "content_blocked"),
            }
        }
    }

    #[test]
    fn failures_are_found_in_every_form() {
        let google = json!({"code": 404, "message": "gone", "status": "NOT_FOUND", "details": [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "MODEL_NOT_FOUND"}]});
        let of_gemini = json!({"message": "gone", "status": "NOT_FOUND"});
        let of_openai = json!({"message": "gone", "code": "model_not_found"});
        let body = json!({"error": of_openai});
        for (kind, line, code) in [
            (
                JobKind::Chat,
                json!({"success": false, "error": "gone", "error_code": "model_not_found"}),
                "model_not_found",
            ),
            (JobKind::Gemini, json!({"key": "a", "error": google}), "model_not_found"),
            (JobKind::Gemini, json!({"key": "a", "error": of_gemini}), "not_found"),
            (
                JobKind::OpenAi,
                json!({"response": {"status_code": 404, "body": body}, "error": null}),
                "model_not_found",
            ),
            (JobKind::OpenAi, json!({"response": null, "error": of_openai}), "model_not_found"),
        ] {
            let expected = Err((code.to_owned(), "gone".to_owned()));
            assert_eq!(read(kind, &line).1, expected, "{line}");
        }
        assert!(ItemResult::read(JobKind::Chat, b"{\"success\": tru").is_err());
        for line in [json!([1]), json!("x"), json!({"response": {"body": []}}), json!(null)] {
            for kind in [JobKind::OpenAi, JobKind::Gemini] {
                let (custom_id, _) = read(kind, &line);
                assert_eq!(custom_id, None);
            }
        }
    }
}
