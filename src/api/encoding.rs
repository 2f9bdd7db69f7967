//! Bodies that come compressed, and what else stands between their bytes and their JSON.

use std::io::{self, BufReader, Cursor, Read};

use brotli_decompressor::Decompressor;
use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_ENCODING};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::body::Buffered;
use super::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::API_KEY;
use crate::generation::InvalidField;
use crate::generation::offload::Caller;
use crate::memory::{OverBudget, Share};

/// The encodings that are taken, as `Accept-Encoding` writes them.
pub(super) const TAKEN: &str = "gzip, deflate, br, zstd";

/// How many times its size a compressed body may have once it is decoded, in bytes, and the size up
/// to which it may be anything. JSON of requests shrinks to a tenth; what shrinks further is made to
/// fill memory.
const MAX_RATIO: usize = 200;
const ANY_RATIO: usize = 1 << 20;

/// The largest window of zstd, as an exponent of two. Source: RFC 8878, section 3.1.1.1.2, which
/// advises decoders to take 8 MiB.
const ZSTD_WINDOW: u32 = 23;

/// A body of more bytes than this is decoded in its caller's turn, at a low priority: what comes of
/// it can take the time of a second.
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

/// Why a body could not be decoded.
enum Fault {
    /// It is not of its encoding, or not all of it.
    Invalid,
    /// More comes of it than may.
    TooLarge,
    /// The memory of all bodies is used up.
    OverBudget(OverBudget),
    /// Nobody waits for it any more.
    Stopped,
}

impl Coding {
    /// How a body is encoded; `None` where it came as it is.
    ///
    /// # Errors
    /// 415 for an encoding that is not taken, and for several on top of each other.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut codings = Vec::new();
        for value in headers.get_all(CONTENT_ENCODING) {
            let value = value.to_str().map_err(|_| ApiError::unknown_encoding())?;
            let names = value.split(',').map(|name| name.trim().to_ascii_lowercase());
            codings.extend(names.filter(|name| !matches!(&**name, "" | "identity")));
        }
        match &*codings {
            [] => Ok(None),
            [coding] => Self::named(coding).map(Some).ok_or_else(ApiError::unknown_encoding),
            _ => Err(ApiError::unknown_encoding()),
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

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// How much of what was decoded the decoder keeps, in bytes.
    fn window(self, body: &[u8]) -> Option<usize> {
        match self {
            Self::Gzip | Self::Deflate => Some(1 << 15),
            Self::Brotli => brotli_window(*body.first()?),
            Self::Zstd => Some(1 << ZSTD_WINDOW),
        }
    }

    fn decoder<'a>(self, body: Feed<'a>) -> io::Result<Box<dyn Read + 'a>> {
        // HTTP's deflate is zlib's form of it; some send it bare. Source: RFC 9110, section 8.4.1.2.
        let is_zlib = matches!(**body.body.get_ref(), [first, second, ..]
            if first & 0x0f == 8 && u16::from_be_bytes([first, second]).is_multiple_of(31));
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

/// What is to be decoded. It ends in an error where nobody waits for it any more: a decoder reads on and
/// on where nothing comes of what it reads, such as parts without content.
struct Feed<'a> {
    body: Cursor<Bytes>,
    goes_on: &'a dyn Fn() -> bool,
}

impl Read for Feed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.goes_on)() {
            return Err(io::Error::other("nobody waits for it"));
        }
        let most = buffer.len().min(PIECE);
        self.body.read(&mut buffer[..most])
    }
}

/// The window that a brotli stream begins with, in bytes; `None` for what no such stream begins with,
/// and for windows of up to a gigabyte, which are an extension. Source: RFC 7932, section 9.1.
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

/// A body as it was before it was encoded, of at most `limit` bytes. It takes its time on a thread
/// for such work.
///
/// # Errors
/// 400 for what is not of its encoding, 413 for what becomes too large, 503.
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
    let decode = move |goes_on: &dyn Fn() -> bool| {
        let decoded = decode(coding, bytes, most, &mut share, goes_on);
        drop(window);
        decoded.map(|bytes| Buffered { bytes, share })
    };
    let decoded = if is_large {
        let deadline = Instant::now() + gateway.config.request_timeout;
        let caller = caller(headers);
        let decoded = gateway.offload.run(&caller, deadline, move |work| {
            // How much a piece counts for does not matter: the work is looked after at each.
            decode(&|| work.spend(PIECE).is_ok())
        });
        decoded.await.map_err(ApiError::not_decoded_in_time)?
    } else {
        spawn_blocking(move || decode(&|| true)).await.map_err(|_| ApiError::internal())?
    };
    decoded.map_err(|fault| match fault {
        Fault::Invalid => ApiError::not_decoded(coding.name()),
        Fault::TooLarge if most < limit => ApiError::expands_too_much(MAX_RATIO),
        Fault::TooLarge => ApiError::body_too_large(limit),
        Fault::OverBudget(error) => error.into(),
        Fault::Stopped => ApiError::internal(),
    })
}

/// Whose turn a body is decoded in, before it is known who pays: those who bring the same key share
/// one, and those who bring none.
fn caller(headers: &HeaderMap) -> Caller {
    let key = headers.get(API_KEY).or_else(|| headers.get(AUTHORIZATION));
    Sha256::digest(key.map_or(&b""[..], |key| key.as_bytes())).into()
}

fn decode(
    coding: Coding,
    body: Bytes,
    most: usize,
    share: &mut Share,
    goes_on: &dyn Fn() -> bool,
) -> Result<Bytes, Fault> {
    let body = Feed { body: Cursor::new(body), goes_on };
    let mut decoder = coding.decoder(body).map_err(|_| Fault::Invalid)?;
    let mut whole = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        if !goes_on() {
            return Err(Fault::Stopped);
        }
        match decoder.read(&mut piece) {
            Ok(0) => return Ok(whole.into()),
            Ok(read) if read > most - whole.len() => return Err(Fault::TooLarge),
            Ok(read) => {
                let capacity = whole.capacity();
                if capacity - whole.len() < read {
                    let more = capacity.max(PIECE).min(most - whole.len());
                    share.grow(more).map_err(Fault::OverBudget)?;
                    whole.reserve_exact(more);
                }
                whole.extend_from_slice(&piece[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if !goes_on() => return Err(Fault::Stopped),
            Err(_) => return Err(Fault::Invalid),
        }
    }
}

/// A body without the byte order mark that some write in front of UTF-8.
///
/// # Errors
/// 422 for JSON in UTF-16, which Windows writes. Source: RFC 8259, section 8.1.
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
    fn one_encoding_is_taken_by_its_name() {
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
    fn a_body_of_parts_without_content_is_not_decoded_to_its_end_for_nobody() {
        let gzip = GzEncoder::new(Vec::new(), Compression::none()).finish().unwrap();
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        let stored = [0, 0, 0, 0xff, 0xff];
        for (coding, part) in
            [(Coding::Gzip, &*gzip), (Coding::Zstd, &skipped), (Coding::Deflate, &stored)]
        {
            let body = Bytes::from(part.repeat((4 << 20) / part.len()));
            let asked = AtomicUsize::new(0);
            let goes_on = || asked.fetch_add(1, Ordering::Relaxed) < 5;
            let mut share = BodyBudget::new(Some(1 << 20)).share();
            let decoded = decode(coding, body, 1 << 20, &mut share, &goes_on);
            assert!(matches!(decoded, Err(Fault::Stopped)), "{coding:?}");
        }
    }

    #[test]
    fn the_window_of_brotli_is_read_and_no_gigabyte_is_taken() {
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
    fn a_byte_order_mark_is_left_out_and_utf_16_is_told() {
        let read = |body: &'static [u8]| in_utf8(Bytes::from_static(body)).ok();
        assert_eq!(read(b"\xef\xbb\xbf{}").unwrap(), "{}");
        assert_eq!(read(b"{}").unwrap(), "{}");
        assert_eq!(read(b"").unwrap(), "");
        for body in [b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}", b"{\0}\0\0\0", b"\0{\0}\0\0"] {
            assert_eq!(read(body), None, "{body:?}");
        }
    }
}
