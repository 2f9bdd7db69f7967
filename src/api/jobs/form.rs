//! Jobs that are sent as a form with a file.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, try_unfold};
use multer::{Field, Multipart};

use super::options::{JobOptions, MAX_OPTIONS};
use super::pieces::Pieces;
use crate::api::error::ApiError;
use crate::generation::InvalidField;

/// How many fields may precede the file.
const MAX_FIELDS: usize = 100;

/// The most bytes that are read for one field that has not begun, or of a file without giving any of it.
const MAX_UNREAD: usize = 2 << 20;

/// Reads a form up to its file. Gives the options in its fields, and the pieces of the file.
///
/// # Errors
/// 422 if it is not a form, or has no file; and the errors of its pieces.
pub(super) async fn file_of(
    pieces: Pieces,
    boundary: String,
) -> Result<(JobOptions, Pieces), ApiError> {
    let unread = Arc::new(AtomicUsize::new(0));
    let paced = Paced { pieces, unread: Arc::clone(&unread), is_due: false };
    let mut form = Multipart::new(paced, boundary);
    let mut options = JobOptions::default();
    for _ in 0..MAX_FIELDS {
        let Some(field) = form.next_field().await.map_err(failed)? else { break };
        unread.store(0, Ordering::Relaxed);
        if field.file_name().is_some() || field.name() == Some("file") {
            return Ok((options, pieces_of(field, form, unread)));
        }
        let name = field.name().unwrap_or_default().to_owned();
        let value = text_of(field, &unread).await?;
        // OpenAI's clients send the purpose of a file.
        if !options.set(&name, value).map_err(invalid)? && name != "purpose" {
            return Err(invalid(InvalidField::new(
                &name,
                "extra_forbidden",
                "There is no such field",
            )));
        }
    }
    let message = "The form has no file, or too many fields before it";
    Err(invalid(InvalidField::new("file", "missing", message)))
}

async fn text_of(mut field: Field<'static>, unread: &AtomicUsize) -> Result<String, ApiError> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut text = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(failed)? {
        unread.store(0, Ordering::Relaxed);
        text.extend_from_slice(&piece);
        if text.len() > MAX_OPTIONS {
            let message = format!("A field has at most {MAX_OPTIONS} bytes");
            return Err(invalid(InvalidField::new(&name, "too_long", message)));
        }
    }
    String::from_utf8(text)
        .map_err(|_| invalid(InvalidField::new(&name, "string_unicode", "The text is not UTF-8")))
}

/// The pieces of the file. Fields after it would come too late to have an effect, so that they are errors.
fn pieces_of(field: Field<'static>, form: Multipart<'static>, unread: Arc<AtomicUsize>) -> Pieces {
    let state = (Some(field), form, unread);
    let pieces = try_unfold(state, async |(mut field, mut form, unread)| {
        if let Some(open) = &mut field
            && let Some(piece) = open.chunk().await.map_err(failed)?
        {
            unread.store(0, Ordering::Relaxed);
            return Ok(Some((piece, (field, form, unread))));
        }
        drop(field);
        match form.next_field().await.map_err(failed)? {
            None => Ok(None),
            Some(field) => {
                let name = field.name().unwrap_or_default();
                let message = "The file has to be the last field of the form";
                Err(invalid(InvalidField::new(name, "extra_forbidden", message)))
            }
        }
    });
    pieces.boxed()
}

fn invalid(field: InvalidField) -> ApiError {
    ApiError::invalid(vec![field])
}

/// The error of a piece, if it was one, or of the form.
fn failed(error: multer::Error) -> ApiError {
    match error {
        multer::Error::StreamReadFailed(error) => match error.downcast::<Failed>() {
            Ok(failed) => failed.0,
            Err(_) => ApiError::internal(),
        },
        multer::Error::IncompleteStream
        | multer::Error::IncompleteHeaders
        | multer::Error::IncompleteFieldData { .. } => ApiError::body_broken(),
        error => {
            let message = format!("The body is not a valid form: {error}");
            invalid(InvalidField { path: Vec::new(), kind: "form_invalid", message })
        }
    }
}

/// The error of a piece, on its way through the form.
#[derive(Debug, thiserror::Error)]
#[error("a piece of the form did not come")]
struct Failed(ApiError);

/// Gives one piece at a time. The reader of a form takes all pieces that are there at once, and so would
/// fill memory.
struct Paced {
    pieces: Pieces,
    /// The bytes that were given since the reader gave any on.
    unread: Arc<AtomicUsize>,
    /// Whether it is time to let the reader work on what it has.
    is_due: bool,
}

impl Stream for Paced {
    type Item = Result<Bytes, Failed>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_due {
            self.is_due = false;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = std::task::ready!(self.pieces.poll_next_unpin(context));
        self.is_due = true;
        Poll::Ready(piece.map(|piece| {
            let piece = piece.map_err(Failed)?;
            let unread = self.unread.fetch_add(piece.len(), Ordering::Relaxed);
            if unread > MAX_UNREAD {
                let message = "The body is not a valid form: a part of it does not end".to_owned();
                let field = InvalidField { path: Vec::new(), kind: "form_invalid", message };
                return Err(Failed(invalid(field)));
            }
            Ok(piece)
        }))
    }
}
