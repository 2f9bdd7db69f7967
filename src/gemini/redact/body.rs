//! A body whose keys are overwritten as it passes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::Masker;

/// A body whose keys are overwritten. It has as many bytes as the inner body, also if that breaks off.
/// Trailers are dropped; Gemini sends none.
#[derive(Debug)]
pub struct MaskedBody<B: Body> {
    body: B,
    masker: Masker,
    ended: bool,
    /// The inner body's error, until it is returned.
    broken: Option<B::Error>,
}

impl<B: Body> MaskedBody<B> {
    /// Wraps a body.
    pub fn new(body: B, masker: Masker) -> Self {
        Self { body, masker, ended: false, broken: None }
    }
}

impl<B: Body<Data = Bytes, Error: Unpin> + Unpin> Body for MaskedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        while !self.ended {
            let piece;
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.ended = self.body.is_end_stream();
                    if self.ended {
                        piece = self.masker.push_last(data);
                    } else {
                        piece = self.masker.push(data);
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    self.broken = Some(error);
                    piece = self.masker.finish();
                }
                None => {
                    self.ended = true;
                    piece = self.masker.finish();
                }
            }
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(self.broken.take().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        (self.ended && self.broken.is_none())
            || (!self.ended && self.body.is_end_stream() && self.masker.held() == 0)
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http_body_util::BodyExt;

    use super::*;
    use crate::gemini::{ApiKey, Secrets};

    struct Broken(VecDeque<&'static str>);

    impl Body for Broken {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            let piece = self.0.pop_front();
            Poll::Ready(Some(piece.map(|piece| Frame::data(piece.into())).ok_or("broken")))
        }
    }

    #[tokio::test]
    async fn held_bytes_are_sent_before_the_error_when_a_body_breaks_off() {
        let secrets = Secrets::new([&ApiKey::new("the-server-key").unwrap()]);
        let pieces = ["a the-server-key, the-s", "erve"];
        let mut body = MaskedBody::new(Broken(pieces.into()), secrets.masker());
        let mut passed = Vec::new();
        let error = loop {
            assert!(!body.is_end_stream());
            match body.frame().await.unwrap() {
                Ok(frame) => passed.extend_from_slice(&frame.into_data().unwrap()),
                Err(error) => break error,
            }
        };
        assert_eq!((&*passed, error), (&b"a **************, the-serve"[..], "broken"));
        assert!(body.frame().await.is_none());
    }
}
