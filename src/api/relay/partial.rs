//! Calls that ask for a part of the answer, or for it in another format.
//!
//! The answer says what the call cost. If it were left out, a call could cost more than is counted:
//! the size of a cached content or of a file does not show in the request.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::api::auth::{decoded, name_of, parameters};
use crate::api::error::ApiError;
use crate::dispatch::CallKind;
use crate::gemini::{Forward, Surface};
use crate::generation::InvalidField;

/// The kinds of calls whose answers have all fields of [`NEEDED`]. Gemini rejects a mask that names
/// fields that an answer does not have.
const KINDS: [CallKind; 2] = [CallKind::GenerateContent, CallKind::StreamGenerateContent];

/// The parameters that select the fields of an answer, and those that select its format. Source:
/// Google's system parameters.
const FIELDS: [&str; 2] = ["fields", "$fields"];
const FORMATS: [&str; 2] = ["alt", "$alt"];

/// The header that selects the fields of an answer.
const FIELD_MASK: HeaderName = HeaderName::from_static("x-goog-fieldmask");

/// The fields that the gateway reads: the cost, the model, and how the answer ended.
const NEEDED: &str = "usageMetadata,modelVersion,promptFeedback,candidates/finishReason";

/// Adds the fields that the gateway reads to those that a request selects, if it selects any.
///
/// # Errors
/// 400 if the answer would come in another format than JSON, in which its cost cannot be read.
pub(super) fn complete(request: Forward, kind: CallKind) -> Result<Forward, ApiError> {
    if kind == CallKind::Interaction {
        return check_whole(request);
    }
    if request.surface != Surface::Gemini || !KINDS.contains(&kind) {
        return Ok(request);
    }
    let Forward { mut path, mut headers, .. } = request;
    complete_header(&mut headers);
    if let Some(query) = path.query() {
        parameters(query).try_for_each(check_format)?;
        if parameters(query).any(|parameter| FIELDS.contains(&&*name_of(parameter))) {
            let query: Vec<_> = parameters(query).map(completed).collect();
            let completed = format!("{}?{}", path.path(), query.join("&")).parse();
            path = completed.map_err(|_| ApiError::unusable_path("The query is too long."))?;
        }
    }
    Ok(Forward { path, headers, ..request })
}

/// Refuses a request for a part of an interaction. Its state could not be read, and a run in the
/// background could not be followed. Which fields its events have depends on their type, so that none
/// can be added.
fn check_whole(request: Forward) -> Result<Forward, ApiError> {
    let query = request.path.query().unwrap_or_default();
    parameters(query).try_for_each(check_format)?;
    let in_query = parameters(query).any(|parameter| {
        let mask = parameter.split_once('=').map_or("", |(_, mask)| mask);
        FIELDS.contains(&&*name_of(parameter)) && is_mask(&decoded(mask))
    });
    let mut masks = request.headers.get_all(&FIELD_MASK).iter();
    if in_query || masks.any(|mask| is_mask(&String::from_utf8_lossy(mask.as_bytes()))) {
        let message = "An interaction is answered whole".to_owned();
        let field = InvalidField { path: vec!["fields".into()], kind: "mask", message };
        return Err(ApiError::invalid(vec![field]));
    }
    Ok(request)
}

fn complete_header(headers: &mut HeaderMap) {
    let mask: Vec<_> = headers.get_all(&FIELD_MASK).iter().map(HeaderValue::as_bytes).collect();
    let mask = mask.join(&b","[..]);
    if is_mask(&String::from_utf8_lossy(&mask)) {
        let mask = [&mask[..], b",", NEEDED.replace('/', ".").as_bytes()].concat();
        headers.insert(FIELD_MASK, HeaderValue::from_bytes(&mask).expect("it was a header"));
    }
}

fn completed(parameter: &str) -> String {
    let value = parameter.split_once('=').map_or("", |(_, value)| value);
    let is_completed = FIELDS.contains(&&*name_of(parameter)) && is_mask(&decoded(value));
    if is_completed { format!("{parameter},{NEEDED}") } else { parameter.to_owned() }
}

/// Whether a mask leaves out any field.
fn is_mask(mask: &str) -> bool {
    !matches!(mask.trim(), "" | "*")
}

fn check_format(parameter: &str) -> Result<(), ApiError> {
    let name = name_of(parameter);
    let form = parameter.split_once('=').map_or("", |(_, form)| form);
    let form = decoded(form).trim().to_ascii_lowercase();
    let is_read = matches!(form.split(';').next(), Some("" | "json" | "sse"));
    if is_read || !FORMATS.contains(&&*name) {
        return Ok(());
    }
    let message = "An answer comes as JSON or as server-sent events".to_owned();
    let field = InvalidField { path: vec!["alt".into()], kind: "form", message };
    Err(ApiError::invalid(vec![field]))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn request(query: &str, mask: Option<&'static str>) -> Forward {
        let mask = mask.map(|mask| (FIELD_MASK, HeaderValue::from_static(mask)));
        Forward {
            surface: Surface::Gemini,
            method: Method::POST,
            path: format!("/v1beta/models/m:generateContent{query}").parse().unwrap(),
            headers: mask.into_iter().collect(),
            streams: false,
            is_read: false,
            runs_on: false,
        }
    }

    fn completed(query: &str, mask: Option<&'static str>) -> (String, Option<String>) {
        let Forward { path, headers, .. } =
            complete(request(query, mask), CallKind::GenerateContent).unwrap();
        let mask = headers.get(FIELD_MASK).map(|mask| mask.to_str().unwrap().to_owned());
        (path.query().unwrap_or_default().to_owned(), mask)
    }

    #[test]
    fn an_interaction_is_answered_whole_and_as_json() {
        let answered = |query: &str, mask| {
            let request = Forward { surface: Surface::Interactions, ..request(query, mask) };
            complete(request, CallKind::Interaction).is_ok()
        };
        for query in ["", "?alt=sse", "?fields=*", "?fields="] {
            assert!(answered(query, None), "{query}");
        }
        assert!(answered("", Some("*")));
        for query in ["?alt=proto", "?%24alt=media", "?fields=output", "?$fields=id"] {
            assert!(!answered(query, None), "{query}");
        }
        assert!(!answered("", Some("steps")));
    }

    #[test]
    fn the_fields_that_the_gateway_reads_are_added_to_a_mask() {
        for mask in ["fields=candidates", "%24fields=candidates%2Fcontent", "fie%6cds=a"] {
            let (query, _) = completed(&format!("?alt=sse&{mask}&x=y"), None);
            assert_eq!(query, format!("alt=sse&{mask},{NEEDED}&x=y"));
        }
        for query in
            ["", "alt=json", "fields=", "fields=*", "fields", "$alt=json;enum-encoding=int"]
        {
            assert_eq!(completed(&format!("?{query}"), None).0, query);
        }
        let mask = completed("", Some("candidates.content")).1.unwrap();
        assert!(mask.starts_with("candidates.content,usageMetadata,"), "{mask}");
        assert!(mask.ends_with(",candidates.finishReason"), "{mask}");
        assert_eq!(completed("", Some("*")).1.as_deref(), Some("*"));
    }

    #[test]
    fn a_call_whose_answer_is_not_json_is_refused() {
        for query in ["?alt=proto", "?%24alt=Proto", "?alt=sse&alt=media"] {
            assert!(complete(request(query, None), CallKind::GenerateContent).is_err(), "{query}");
            assert!(complete(request(query, None), CallKind::Predict).is_ok(), "{query}");
        }
    }
}
