//! Decodes compressed bodies, and removes a byte order mark.

mod pieces;

use std::io::{self, BufReader, Cursor, Read};

use brotli_decompressor::Decompressor;
use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_ENCODING};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::buffered::Buffered;
use super::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::API_KEY;
use crate::generation::InvalidField;
use crate::generation::offload::CallerId;
use crate::memory::{OverBudget, Share};

pub(super) use pieces::PieceDecoder;

/// The supported encodings, as `Accept-Encoding` lists them.
const SUPPORTED: &str = "gzip, deflate, br, zstd";

/// The largest ratio of the decoded to the encoded size, and the decoded size, in bytes, up to which any
/// ratio is accepted. Requests compress to about a tenth; a body that compresses much further is made
/// to fill memory.
pub(super) const MAX_RATIO: usize = 200;
pub(super) const ANY_RATIO: usize = 1 << 20;

/// The largest window of zstd, as an exponent of two. Source: RFC 8878, section 3.1.1.1.2, which
/// advises decoders to take 8 MiB.
const ZSTD_WINDOW: u32 = 23;

/// A body of more bytes than this is decoded on an offload thread, because that can take a second.
const LARGE: usize = 16 * 1024;

/// How much is decoded at once, in bytes.
const PIECE: usize = 64 * 1024;

/// How a body is encoded. Source: RFC 9110, section 8.4.1, RFC 7932 and RFC 8878.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// Why a body was not decoded.
enum DecodeError {
    /// It is not in its encoding, or incomplete.
    Invalid,
    /// It is too large once it is decoded.
    TooLarge,
    /// The memory budget for bodies is used up.
    OverBudget(OverBudget),
    /// The request was dropped.
    Stopped,
}

impl Coding {
    /// The encoding of a body; `None` if it is not encoded.
    ///
    /// # Errors
    /// 415 for an encoding that is not supported, and for more than one encoding.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let unknown = || ApiError::unknown_encoding(SUPPORTED);
        let mut codings = Vec::new();
        for value in headers.get_all(CONTENT_ENCODING) {
            let value = value.to_str().map_err(|_| unknown())?;
            let names = value.split(',').map(|name| name.trim().to_ascii_lowercase());
            codings.extend(names.filter(|name| !matches!(&**name, "" | "identity")));
        }
        match &*codings {
            [] => Ok(None),
            [coding] => Self::named(coding).map(Some).ok_or_else(unknown),
            _ => Err(unknown()),
        }
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gzip" | "x-gzip" => Self::Gzip,
            "deflate" => Self::Deflate,
            "br" => Self::Brotli,
            "zstd" => Self::Zstd,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// The window of the decoder, in bytes; `None` if the body is invalid.
    pub(super) fn window(self, body: &[u8]) -> Option<usize> {
        match self {
            Self::Gzip | Self::Deflate => Some(1 << 15),
            Self::Brotli => brotli_window(*body.first()?),
            Self::Zstd => Some(1 << ZSTD_WINDOW),
        }
    }

    fn decoder<'a>(self, body: Feed<'a>) -> io::Result<Box<dyn Read + 'a>> {
        let is_zlib = is_zlib(body.body.get_ref());
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(body)),
            Self::Deflate if is_zlib => Box::new(ZlibDecoder::new(body)),
            Self::Deflate => Box::new(DeflateDecoder::new(body)),
            Self::Brotli => Box::new(Decompressor::new(body, PIECE)),
            Self::Zstd => {
                let mut decoder =
                    zstd::Decoder::with_buffer(BufReader::with_capacity(PIECE, body))?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Box::new(decoder)
            }
        })
    }
}

/// The encoded body. Reading fails once the request was dropped, because a decoder may read on without
/// producing output, for example through empty parts.
struct Feed<'a> {
    body: Cursor<Bytes>,
    may_continue: &'a dyn Fn() -> bool,
}

impl Read for Feed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.may_continue)() {
            return Err(io::Error::other("the request was dropped"));
        }
        let most = buffer.len().min(PIECE);
        self.body.read(&mut buffer[..most])
    }
}

/// Whether a body has a zlib header, as HTTP's deflate has; some clients send it without. Source: RFC 9110,
/// section 8.4.1.2.
fn is_zlib(body: &[u8]) -> bool {
    matches!(*body, [first, second, ..]
        if first & 0x0f == 8 && u16::from_be_bytes([first, second]).is_multiple_of(31))
}

/// The window that the first byte of a brotli stream announces, in bytes; `None` if the byte is invalid,
/// or announces the extension to windows of up to a gigabyte. Source: RFC 7932, section 9.1.
fn brotli_window(first: u8) -> Option<usize> {
    let bits = match (first & 1, first >> 1 & 7, first >> 4 & 7) {
        (0, ..) => 16,
        (_, 0, 0) => 17,
        (_, 0, 1) => return None,
        (_, 0, n) => 8 + n,
        (_, n, _) => 17 + n,
    };
    Some(1 << bits)
}

/// Decodes a body to at most `limit` bytes, off the serving threads.
///
/// # Errors
/// 400 if the body is not in its encoding, 413 if it becomes too large, 503 if the memory budget is used
/// up.
pub(super) async fn decoded(
    coding: Coding,
    Buffered { bytes, mut share }: Buffered,
    limit: usize,
    headers: &HeaderMap,
    gateway: &Gateway,
) -> Result<Buffered, ApiError> {
    let budget = &gateway.bodies;
    let most = limit.min(bytes.len().saturating_mul(MAX_RATIO).max(ANY_RATIO));
    let size = coding.window(&bytes).ok_or_else(|| ApiError::not_decoded(coding.name()))?;
    let mut window = budget.share();
    window.grow(size.min(budget.largest()))?;
    let is_large = bytes.len() > LARGE;
    let decode = move |may_continue: &dyn Fn() -> bool| {
        let decoded = decode(coding, bytes, most, &mut share, may_continue);
        drop(window);
        decoded.map(|bytes| Buffered { bytes, share })
    };
    let decoded = if is_large {
        let deadline = Instant::now() + gateway.config.request_timeout;
        let caller = caller(headers);
        let decoded = gateway.offload.run(&caller, deadline, move |work| {
            // The amount does not matter: this only checks whether the job is to stop.
            decode(&|| work.spend(PIECE).is_ok())
        });
        decoded.await.map_err(ApiError::not_decoded_in_time)?
    } else {
        spawn_blocking(move || decode(&|| true)).await.map_err(|_| ApiError::internal())?
    };
    decoded.map_err(|error| match error {
        DecodeError::Invalid => ApiError::not_decoded(coding.name()),
        DecodeError::TooLarge if most < limit => ApiError::expands_too_much(MAX_RATIO),
        DecodeError::TooLarge => ApiError::body_too_large(limit),
        DecodeError::OverBudget(error) => error.into(),
        DecodeError::Stopped => ApiError::internal(),
    })
}

/// Identifies the caller before it is known who pays: by the key in the headers. All requests without a
/// key count as one caller.
fn caller(headers: &HeaderMap) -> CallerId {
    let key = headers.get(API_KEY).or_else(|| headers.get(AUTHORIZATION));
    Sha256::digest(key.map_or(&b""[..], |key| key.as_bytes())).into()
}

fn decode(
    coding: Coding,
    body: Bytes,
    most: usize,
    share: &mut Share,
    may_continue: &dyn Fn() -> bool,
) -> Result<Bytes, DecodeError> {
    let body = Feed { body: Cursor::new(body), may_continue };
    let mut decoder = coding.decoder(body).map_err(|_| DecodeError::Invalid)?;
    let mut whole = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        if !may_continue() {
            return Err(DecodeError::Stopped);
        }
        match decoder.read(&mut piece) {
            Ok(0) => return Ok(whole.into()),
            Ok(read) if read > most - whole.len() => return Err(DecodeError::TooLarge),
            Ok(read) => {
                let capacity = whole.capacity();
                if capacity - whole.len() < read {
                    let more = capacity.max(PIECE).min(most - whole.len());
                    share.grow(more).map_err(DecodeError::OverBudget)?;
                    whole.reserve_exact(more);
                }
                whole.extend_from_slice(&piece[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if !may_continue() => return Err(DecodeError::Stopped),
            Err(_) => return Err(DecodeError::Invalid),
        }
    }
}

/// Removes the byte order mark that some programs write before UTF-8.
///
/// # Errors
/// 422 for JSON in UTF-16, which programs on Windows write. Source: RFC 8259, section 8.1.
pub(super) fn in_utf8(body: Bytes) -> Result<Bytes, ApiError> {
    if body.starts_with(b"\xef\xbb\xbf") {
        return Ok(body.slice(3..));
    }
    if matches!(*body, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'{' | b'[', 0, ..])
        || matches!(*body, [0, b'{' | b'[', ..])
    {
        let message = "The body is in UTF-16: send it in UTF-8".to_owned();
        let field = InvalidField { path: Vec::new(), kind: "json_invalid", message };
        return Err(ApiError::invalid(vec![field]));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use http::HeaderValue;

    use super::*;
    use crate::memory::BodyBudget;

    #[test]
    fn a_supported_encoding_is_recognized_by_its_name() {
        let of = |values: &[&'static str]| {
            let headers =
                values.iter().map(|value| (CONTENT_ENCODING, HeaderValue::from_static(value)));
            Coding::of(&headers.collect()).map_err(|error| error.code())
        };
        for (values, coding) in [
            (&[][..], None),
            (&["identity"], None),
            (&["GZIP"], Some(Coding::Gzip)),
            (&["x-gzip"], Some(Coding::Gzip)),
            (&["deflate, identity"], Some(Coding::Deflate)),
            (&["br"], Some(Coding::Brotli)),
            (&["", "zstd"], Some(Coding::Zstd)),
        ] {
            assert_eq!(of(values), Ok(coding), "{values:?}");
        }
        for values in [&["compress"][..], &["gzip, gzip"], &["gzip", "br"], &["gzip;q=1"]] {
            assert_eq!(of(values), Err("unsupported_media_type"), "{values:?}");
        }
    }

    #[test]
    fn decoding_stops_when_the_request_was_dropped() {
        let gzip = GzEncoder::new(Vec::new(), Compression::none()).finish().unwrap();
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        let stored = [0, 0, 0, 0xff, 0xff];
        for (coding, part) in
            [(Coding::Gzip, &*gzip), (Coding::Zstd, &skipped), (Coding::Deflate, &stored)]
        {
            let body = Bytes::from(part.repeat((4 << 20) / part.len()));
            let asked = AtomicUsize::new(0);
            let may_continue = || asked.fetch_add(1, Ordering::Relaxed) < 5;
            let mut share = BodyBudget::new(Some(1 << 20)).share();
            let decoded = decode(coding, body, 1 << 20, &mut share, &may_continue);
            assert!(matches!(decoded, Err(DecodeError::Stopped)), "{coding:?}");
        }
    }

    #[test]
    fn the_window_of_brotli_is_read_and_large_windows_are_refused() {
        for (first, window) in [
            (0b0000_0000, Some(1 << 16)),
            (0b0000_0001, Some(1 << 17)),
            (0b0000_0011, Some(1 << 18)),
            (0b0000_1111, Some(1 << 24)),
            (0b0010_0001, Some(1 << 10)),
            (0b0111_0001, Some(1 << 15)),
            (0b0001_0001, None),
            (0b1001_0001, None),
        ] {
            assert_eq!(brotli_window(first), window, "{first:#010b}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_removed_and_utf_16_is_refused() {
        let read = |body: &'static [u8]| in_utf8(Bytes::from_static(body)).ok();
        assert_eq!(read(b"\xef\xbb\xbf{}").unwrap(), "{}");
        assert_eq!(read(b"{}").unwrap(), "{}");
        assert_eq!(read(b"").unwrap(), "");
        for body in [b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}", b"{\0}\0\0\0", b"\0{\0}\0\0"] {
            assert_eq!(read(body), None, "{body:?}");
        }
    }
}
