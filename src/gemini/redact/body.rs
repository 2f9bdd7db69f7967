//! A body with keys overwritten in it as it passes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::Masker;

/// A body with keys overwritten in it. It has as many bytes as the one below. Trailers are left out:
/// Gemini sends none.
#[derive(Debug)]
pub struct Masked<B> {
    body: B,
    masker: Masker,
    ended: bool,
}

impl<B> Masked<B> {
    /// A body in which the masker overwrites keys.
    pub fn new(body: B, masker: Masker) -> Self {
        Self { body, masker, ended: false }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Masked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        while !self.ended {
            let mut piece = Bytes::new();
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        piece = self.masker.push(data);
                    }
                    self.ended = self.body.is_end_stream();
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.ended = true,
            }
            if self.ended {
                let rest = self.masker.finish();
                piece = if rest.is_empty() { piece } else { [piece, rest].concat().into() };
            }
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.body.is_end_stream() && self.masker.held() == 0)
    }

    fn size_hint(&self) -> SizeHint {
        let (below, held) = (self.body.size_hint(), self.masker.held() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(below.lower().saturating_add(held));
        if let Some(upper) = below.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}
