//! Cuts an upload into lines.

use std::mem;

use bytes::{Buf, Bytes};
use futures_util::stream::TryStreamExt;
use memchr::memchr;
use tokio::task::coop::consume_budget;

use super::pieces::Pieces;
use crate::api::encoding::in_utf8;
use crate::api::error::ApiError;
use crate::memory::Share;

/// The lines of an upload. Empty ones are left out.
pub(super) struct Lines {
    pieces: Pieces,
    /// What has come and is not cut yet.
    piece: Bytes,
    /// The start of a line whose end has not come.
    start: Vec<u8>,
    /// The memory of that start.
    share: Share,
    /// The number of the last line, from 1.
    number: u64,
    /// How many bytes have come.
    bytes: u64,
    /// The longest line, and the most bytes of all.
    most_of_line: usize,
    most: u64,
}

/// A line that is not empty, without white space around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number, from 1. Empty lines count.
    pub number: u64,
    pub text: Bytes,
}

impl Lines {
    /// The lines of some pieces. A line may have `most_of_line` bytes, and all together `most`.
    pub(super) fn of(pieces: Pieces, share: Share, most_of_line: usize, most: u64) -> Self {
        let (piece, start) = (Bytes::new(), Vec::new());
        Self { pieces, piece, start, share, number: 0, bytes: 0, most_of_line, most }
    }

    /// The next line.
    ///
    /// # Errors
    /// 413 if a line or the whole is too long, 422 for UTF-16, 503 if there is no memory for the line,
    /// and the errors of the pieces.
    pub(super) async fn next(&mut self) -> Result<Option<Line>, ApiError> {
        loop {
            let text = match memchr(b'\n', &self.piece) {
                Some(end) => {
                    let rest = self.piece.split_to(end);
                    self.piece.advance(1);
                    self.joined(rest)?
                }
                None => {
                    let rest = mem::take(&mut self.piece);
                    self.keep(&rest)?;
                    if self.receive().await? {
                        continue;
                    }
                    if self.start.is_empty() {
                        return Ok(None);
                    }
                    self.joined(Bytes::new())?
                }
            };
            self.number += 1;
            let text = if self.number == 1 { in_utf8(text)? } else { text };
            let trimmed = text.trim_ascii();
            if !trimmed.is_empty() {
                return Ok(Some(Line { number: self.number, text: text.slice_ref(trimmed) }));
            }
        }
    }

    /// Whether there was another piece.
    async fn receive(&mut self) -> Result<bool, ApiError> {
        // A piece that was decoded is there at once, and others wait for this thread.
        consume_budget().await;
        let Some(piece) = self.pieces.try_next().await? else { return Ok(false) };
        self.bytes += piece.len() as u64;
        if self.bytes > self.most {
            return Err(ApiError::job_too_large(self.most));
        }
        self.piece = piece;
        Ok(true)
    }

    /// Keeps the start of a line.
    fn keep(&mut self, start: &[u8]) -> Result<(), ApiError> {
        if start.len() > self.most_of_line.saturating_sub(self.start.len()) {
            return Err(ApiError::line_too_long(self.number + 1, self.most_of_line));
        }
        self.share.grow(start.len())?;
        self.start.extend_from_slice(start);
        Ok(())
    }

    /// A line that ends with this.
    fn joined(&mut self, rest: Bytes) -> Result<Bytes, ApiError> {
        if self.start.is_empty() && rest.len() <= self.most_of_line {
            return Ok(rest);
        }
        self.keep(&rest)?;
        let line = mem::take(&mut self.start);
        self.share.shrink(line.len());
        Ok(line.into())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream::{self, StreamExt};

    use super::*;
    use crate::memory::BodyBudget;

    async fn lines(text: &[u8], size: usize) -> Result<Vec<(u64, String)>, &'static str> {
        let pieces: Vec<_> = text.chunks(size).map(Bytes::copy_from_slice).map(Ok).collect();
        let budget = BodyBudget::new(Some(1 << 20));
        let mut lines = Lines::of(stream::iter(pieces).boxed(), budget.share(), 12, 60);
        let mut all = Vec::new();
        while let Some(Line { number, text }) = lines.next().await.map_err(|error| error.code())? {
            all.push((number, String::from_utf8(text.to_vec()).unwrap()));
        }
        drop(lines);
        assert_eq!(budget.used(), 0);
        Ok(all)
    }

    #[tokio::test]
    async fn lines_are_cut_whatever_the_pieces_in_which_they_come() {
        let text = b"\xef\xbb\xbf{\"a\": 1}\r\n\r\n \n{}\n\n[1,\r2]  \nlast";
        let expected = [(1, "{\"a\": 1}"), (4, "{}"), (6, "[1,\r2]"), (7, "last")];
        let expected: Vec<_> = expected.map(|(number, text)| (number, text.to_owned())).into();
        for size in 1..=text.len() {
            assert_eq!(lines(text, size).await.as_ref(), Ok(&expected), "{size}");
        }
        for empty in [&b""[..], b"\n", b"\xef\xbb\xbf", b" \r\n\n "] {
            assert_eq!(lines(empty, 1).await, Ok(Vec::new()));
        }
    }

    #[tokio::test]
    async fn a_line_and_an_upload_that_are_too_long_are_refused() {
        for size in [1, 5, 100] {
            assert_eq!(lines(b"{\"a\": 12345}\n", size).await.unwrap().len(), 1);
            assert_eq!(lines(b"{}\n{\"a\": 123456}\n", size).await, Err("body_too_large"));
            assert_eq!(lines(&b"\n".repeat(60), size).await, Ok(Vec::new()));
            assert_eq!(lines(&b"\n".repeat(61), size).await, Err("body_too_large"));
            assert_eq!(lines(b"\xff\xfe{\0}\0\n\0", size).await, Err("validation_error"));
        }
    }
}
