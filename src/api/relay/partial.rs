//! Calls that ask for a part of an answer, or for another form of it.
//!
//! What a call cost stands in its answer. A caller that leaves it out would spend more than is counted
//! wherever the cost does not show in the request, as that of a cached content or of a file does not.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::api::auth::{decoded, name_of, parameters};
use crate::api::error::ApiError;
use crate::dispatch::CallKind;
use crate::gemini::{Forward, Surface};
use crate::generation::InvalidField;

/// The kinds of calls whose answers have all of [`NEEDED`]. Gemini refuses a mask with other fields in
/// it.
const KINDS: [CallKind; 2] = [CallKind::GenerateContent, CallKind::StreamGenerateContent];

/// The parameters of a query that say which fields of an answer are wanted, and in which form it is.
/// Source: Google's system parameters.
const FIELDS: [&str; 2] = ["fields", "$fields"];
const FORMS: [&str; 2] = ["alt", "$alt"];

/// The header that says which fields are wanted.
const FIELD_MASK: HeaderName = HeaderName::from_static("x-goog-fieldmask");

/// What is read here of an answer: its cost, its model, and how it ended.
const NEEDED: &str = "usageMetadata,modelVersion,promptFeedback,candidates/finishReason";

/// Asks for what is read here too, where a request asks for a part of an answer.
///
/// # Errors
/// 400 for an answer in another form than JSON: its cost could not be read.
pub(super) fn complete(request: Forward, kind: CallKind) -> Result<Forward, ApiError> {
    if request.surface != Surface::Gemini || !KINDS.contains(&kind) {
        return Ok(request);
    }
    let Forward { mut path, mut headers, .. } = request;
    complete_header(&mut headers);
    if let Some(query) = path.query() {
        parameters(query).try_for_each(check_form)?;
        if parameters(query).any(|parameter| FIELDS.contains(&&*name_of(parameter))) {
            let query: Vec<_> = parameters(query).map(completed).collect();
            let completed = format!("{}?{}", path.path(), query.join("&")).parse();
            path = completed.map_err(|_| ApiError::unusable_path("The query is too long."))?;
        }
    }
    Ok(Forward { path, headers, ..request })
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

/// Whether a mask leaves anything out.
fn is_mask(mask: &str) -> bool {
    !matches!(mask.trim(), "" | "*")
}

fn check_form(parameter: &str) -> Result<(), ApiError> {
    let name = name_of(parameter);
    let form = parameter.split_once('=').map_or("", |(_, form)| form);
    let form = decoded(form).trim().to_ascii_lowercase();
    let is_read = matches!(form.split(';').next(), Some("" | "json" | "sse"));
    if is_read || !FORMS.contains(&&*name) {
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
        }
    }

    fn completed(query: &str, mask: Option<&'static str>) -> (String, Option<String>) {
        let Forward { path, headers, .. } =
            complete(request(query, mask), CallKind::GenerateContent).unwrap();
        let mask = headers.get(FIELD_MASK).map(|mask| mask.to_str().unwrap().to_owned());
        (path.query().unwrap_or_default().to_owned(), mask)
    }

    #[test]
    fn what_a_call_cost_is_asked_for_with_a_part_of_the_answer() {
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
    fn an_answer_whose_cost_could_not_be_read_is_not_asked_for() {
        for query in ["?alt=proto", "?%24alt=Proto", "?alt=sse&alt=media"] {
            assert!(complete(request(query, None), CallKind::GenerateContent).is_err(), "{query}");
            assert!(complete(request(query, None), CallKind::Predict).is_ok(), "{query}");
        }
    }
}
