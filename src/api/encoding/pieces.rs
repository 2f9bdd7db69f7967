//! Decodes a body of any size piece by piece, in constant memory.

use std::fmt;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::{Coding, ZSTD_WINDOW};

/// The window of gzip, as an exponent of two. Source: RFC 1951, section 2.
const GZIP_WINDOW: u8 = 15;

/// How much is decoded at once, in bytes.
const PIECE: usize = 64 * 1024;

/// Brotli's decoder, with memory of the heap.
type Brotli = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

/// A decoder that takes a body in pieces of any size.
pub(in crate::api) struct PieceDecoder {
    decoder: Decoding,
    /// Whether the encoded body may end here.
    is_at_end: bool,
    piece: Box<[u8]>,
}

enum Decoding {
    /// A file may consist of several that follow each other.
    Gzip(Decompress),
    /// zlib or bare deflate.
    Deflate(Decompress),
    Brotli(Box<Brotli>),
    Zstd(Decoder<'static>),
}

/// The body is not in its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) struct NotDecoded;

/// What one step took and gave, in bytes.
struct Step {
    read: usize,
    written: usize,
    is_at_end: bool,
}

impl PieceDecoder {
    /// A decoder for a body that starts with these bytes, two or more if it has as many.
    ///
    /// # Errors
    /// [`NotDecoded`] if there is no memory for it.
    pub(in crate::api) fn new(coding: Coding, start: &[u8]) -> Result<Self, NotDecoded> {
        let decoder = match coding {
            Coding::Gzip => Decoding::Gzip(Decompress::new_gzip(GZIP_WINDOW)),
            Coding::Deflate => Decoding::Deflate(Decompress::new(super::is_zlib(start))),
            Coding::Brotli => {
                let alloc = StandardAlloc::default;
                Decoding::Brotli(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc())))
            }
            Coding::Zstd => {
                let mut decoder = Decoder::new().map_err(|_| NotDecoded)?;
                let window = DParameter::WindowLogMax(ZSTD_WINDOW);
                decoder.set_parameter(window).map_err(|_| NotDecoded)?;
                Decoding::Zstd(decoder)
            }
        };
        Ok(Self { decoder, is_at_end: false, piece: vec![0; PIECE].into() })
    }

    /// Takes from `input`, and gives the next piece; `None` when all of it is taken and more is
    /// needed.
    ///
    /// # Errors
    /// [`NotDecoded`].
    pub(in crate::api) fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, NotDecoded> {
        loop {
            if self.is_at_end && input.is_empty() {
                return Ok(None);
            }
            let Step { read, written, is_at_end } = self.step(input)?;
            input.advance(read);
            if read > 0 || written > 0 {
                self.is_at_end = is_at_end;
            }
            if written > 0 {
                return Ok(Some(Bytes::copy_from_slice(&self.piece[..written])));
            }
            if read == 0 {
                return if input.is_empty() { Ok(None) } else { Err(NotDecoded) };
            }
        }
    }

    /// Whether the body is complete if nothing more comes.
    pub(in crate::api) fn is_complete(&self) -> bool {
        self.is_at_end
    }

    fn step(&mut self, input: &[u8]) -> Result<Step, NotDecoded> {
        let Self { decoder, is_at_end, piece } = self;
        match decoder {
            Decoding::Gzip(gzip) => {
                if *is_at_end {
                    *gzip = Decompress::new_gzip(GZIP_WINDOW);
                }
                inflate(gzip, input, piece)
            }
            Decoding::Deflate(_) | Decoding::Brotli(_) if *is_at_end => Err(NotDecoded),
            Decoding::Deflate(deflate) => inflate(deflate, input, piece),
            Decoding::Brotli(brotli) => unbrotli(brotli, input, piece),
            Decoding::Zstd(zstd) => {
                let done = zstd.run_on_buffers(input, piece).map_err(|_| NotDecoded)?;
                let (read, written) = (done.bytes_read, done.bytes_written);
                Ok(Step { read, written, is_at_end: done.remaining == 0 })
            }
        }
    }
}

fn inflate(inflate: &mut Decompress, input: &[u8], output: &mut [u8]) -> Result<Step, NotDecoded> {
    let (taken, given) = (inflate.total_in(), inflate.total_out());
    let status = inflate.decompress(input, output, FlushDecompress::None);
    let is_at_end = status.map_err(|_| NotDecoded)? == Status::StreamEnd;
    let size = |now: u64, before: u64| usize::try_from(now - before).map_err(|_| NotDecoded);
    let (read, written) = (size(inflate.total_in(), taken)?, size(inflate.total_out(), given)?);
    Ok(Step { read, written, is_at_end })
}

fn unbrotli(brotli: &mut Brotli, input: &[u8], output: &mut [u8]) -> Result<Step, NotDecoded> {
    let (mut left, mut read) = (input.len(), 0);
    let (mut room, mut written, mut total) = (output.len(), 0, 0);
    let result = BrotliDecompressStream(
        &mut left,
        &mut read,
        input,
        &mut room,
        &mut written,
        output,
        &mut total,
        brotli,
    );
    match result {
        BrotliResult::ResultFailure => Err(NotDecoded),
        result => {
            let is_at_end = matches!(result, BrotliResult::ResultSuccess);
            Ok(Step { read, written, is_at_end })
        }
    }
}

impl fmt::Debug for PieceDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PieceDecoder").field("is_at_end", &self.is_at_end).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn text() -> Vec<u8> {
        (0..40_000).flat_map(|n: u32| format!("line {n}\n").into_bytes()).collect()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn encoded(text: &[u8]) -> Vec<(Coding, Vec<u8>)> {
        let level = Compression::default();
        let mut zlib = ZlibEncoder::new(Vec::new(), level);
        zlib.write_all(text).unwrap();
        let mut deflate = DeflateEncoder::new(Vec::new(), level);
        deflate.write_all(text).unwrap();
        vec![
            (Coding::Gzip, gzip(text)),
            (Coding::Deflate, zlib.finish().unwrap()),
            (Coding::Deflate, deflate.finish().unwrap()),
            (Coding::Zstd, zstd::encode_all(text, 3).unwrap()),
        ]
    }

    /// What comes of a body that arrives in pieces of this size; `None` if it is not valid.
    fn decoded(coding: Coding, body: &[u8], size: usize) -> Option<Vec<u8>> {
        let mut decoder = PieceDecoder::new(coding, body).ok()?;
        let mut whole = Vec::new();
        for piece in body.chunks(size) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(decoded) = decoder.next(&mut piece).ok()? {
                assert!(decoded.len() <= PIECE);
                whole.extend_from_slice(&decoded);
            }
        }
        decoder.is_complete().then_some(whole)
    }

    #[test]
    fn a_body_is_decoded_whatever_the_pieces_in_which_it_comes() {
        let text = text();
        for (coding, body) in encoded(&text) {
            for size in [1, 7, 1000, body.len()] {
                assert!(decoded(coding, &body, size).as_ref() == Some(&text), "{coding:?} {size}");
            }
        }
    }

    #[test]
    fn files_that_follow_each_other_are_one_body() {
        let (first, second) = (gzip(b"one "), gzip(b"two"));
        let body = [&first[..], &second[..]].concat();
        assert_eq!(decoded(Coding::Gzip, &body, 5).unwrap(), b"one two");
        let frames = [zstd::encode_all(&b"one "[..], 0), zstd::encode_all(&b"two"[..], 0)];
        let body = frames.map(Result::unwrap).concat();
        assert_eq!(decoded(Coding::Zstd, &body, 5).unwrap(), b"one two");
    }

    #[test]
    fn a_body_that_is_cut_off_or_damaged_is_invalid() {
        for (coding, body) in encoded(&text()) {
            assert_eq!(decoded(coding, &body[..body.len() - 1], 1000), None, "{coding:?}");
            assert_eq!(
                decoded(coding, &[&body[..], b"garbage"].concat(), 1000),
                None,
                "{coding:?}"
            );
        }
        for coding in [Coding::Gzip, Coding::Brotli, Coding::Zstd] {
            assert_eq!(decoded(coding, b"garbage", 1000), None, "{coding:?}");
        }
    }
}
