//! Forms (`multipart/form-data`), in which OpenAI's clients send requests for videos.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use multer::{Multipart, parse_boundary};

use super::buffered::with_body;
use super::error::ApiError;
use crate::gemini::InputFeatures;
use crate::generation::InvalidField;
use crate::memory::BodyBudget;

/// How many fields a form has at most.
const MAX_FIELDS: usize = 1000;

/// What a form says about the call.
#[derive(Debug, Default)]
pub(super) struct Form {
    /// The model that it names.
    pub model: Option<String>,
    /// The features of its fields and files from which their tokens are estimated.
    pub input: InputFeatures,
}

impl Form {
    /// Reads a body; `None` if it is not a form.
    ///
    /// # Errors
    /// 422 if the form is invalid or names its model twice; 503 if the memory budget is used up.
    pub(super) async fn read(
        headers: &HeaderMap,
        body: &Bytes,
        budget: &Arc<BodyBudget>,
    ) -> Result<Option<Self>, ApiError> {
        if !is_form(headers) {
            return Ok(None);
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let boundary = parse_boundary(content_type.unwrap_or_default()).map_err(invalid)?;
        // Reading a form copies it.
        let mut copy = budget.share();
        copy.grow(body.len())?;
        let whole = body.clone();
        let form = with_body(body.clone(), move |_| {
            let _copy = copy;
            // The whole body is there, so the future is ready at once.
            Self::read_fields(whole, boundary).now_or_never().ok_or_else(ApiError::internal)?
        });
        form.await?.map(Some)
    }

    async fn read_fields(body: Bytes, boundary: String) -> Result<Self, ApiError> {
        let whole = stream::iter([Ok::<_, multer::Error>(body)]);
        let mut fields = Multipart::new(whole, boundary);
        let mut form = Self::default();
        let mut count = 0;
        while let Some(mut field) = fields.next_field().await.map_err(invalid)? {
            count += 1;
            if count > MAX_FIELDS {
                return Err(invalid_form(
                    "too_long",
                    format!("A form has at most {MAX_FIELDS} fields"),
                ));
            }
            let is_model = field.name() == Some("model");
            let media_type = field.content_type().map(ToString::to_string);
            let is_file = field.file_name().is_some();
            let (mut size, mut model) = (0, String::new());
            while let Some(piece) = field.chunk().await.map_err(invalid)? {
                size += piece.len();
                if is_file {
                    continue;
                }
                let text = String::from_utf8_lossy(&piece);
                form.input = form.input + InputFeatures::of(&text);
                if is_model {
                    model.push_str(&text);
                }
            }
            if is_file {
                let media_type = media_type.unwrap_or_default();
                form.input = form.input + InputFeatures::of_file(&media_type, size);
            } else if is_model && form.model.replace(model.trim().to_owned()).is_some() {
                let field =
                    InvalidField::new("model", "duplicate", "The form names the model twice");
                return Err(ApiError::invalid(vec![field]));
            }
        }
        Ok(form)
    }
}

/// Whether a body is sent as a form.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    const FORM: &[u8] = b"multipart/form-data";
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let start = content_type.and_then(|content_type| content_type.get(..FORM.len()));
    start.is_some_and(|start| start.eq_ignore_ascii_case(FORM))
}

fn invalid(error: multer::Error) -> ApiError {
    invalid_form("form_invalid", format!("The body is not a valid form: {error}"))
}

fn invalid_form(kind: &'static str, message: String) -> ApiError {
    ApiError::invalid(vec![InvalidField { path: Vec::new(), kind, message }])
}
