//! Resolves escapes that hide characters: `\u0041Iza…` in JSON, `%41Iza…` in a URL.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use memchr::memchr2;

use super::needle::{Matches, Needle, find};

/// A text without its escapes, and the positions of its characters.
pub(super) struct Unescaped<'a> {
    /// The characters. Characters beyond Latin-1 are 0.
    pub text: Cow<'a, [u8]>,
    /// After each escape: the position of the next character in `text` and in the original bytes.
    places: Vec<(usize, usize)>,
    /// The position of an incomplete escape, or the length.
    end: usize,
}

impl<'a> Unescaped<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        if !has_escapes(bytes) {
            return Self { text: bytes.into(), places: Vec::new(), end: bytes.len() };
        }
        let (mut text, mut places) = (Vec::with_capacity(bytes.len()), Vec::new());
        let mut at = 0;
        while let Some(skip) = memchr2(b'\\', b'%', &bytes[at..]) {
            text.extend_from_slice(&bytes[at..at + skip]);
            at += skip;
            let Some((byte, length)) = character(&bytes[at..]) else {
                return Self { text: text.into(), places, end: at };
            };
            text.push(byte);
            at += length;
            places.push((text.len(), at));
        }
        text.extend_from_slice(&bytes[at..]);
        Self { text: text.into(), places, end: bytes.len() }
    }

    /// The position of a range of characters in the original bytes.
    pub(super) fn range(&self, characters: Range<usize>) -> Range<usize> {
        self.place(characters.start)..self.place(characters.end)
    }

    fn place(&self, character: usize) -> usize {
        let next = self.places.partition_point(|(at, _)| *at <= character);
        let (at, place) = next.checked_sub(1).map_or((0, 0), |last| self.places[last]);
        place + (character - at)
    }
}

/// Finds needles with escaped characters.
pub(super) fn find_escaped(needles: &[Arc<Needle>], bytes: &[u8], is_last: bool) -> Matches {
    let unescaped = Unescaped::of(bytes);
    let Matches { complete, partial_from } = find(needles, &unescaped.text, is_last);
    let partial_from = if partial_from == unescaped.text.len() {
        unescaped.end
    } else {
        unescaped.place(partial_from)
    };
    Matches {
        complete: complete.into_iter().map(|found| unescaped.range(found)).collect(),
        partial_from,
    }
}

pub(super) fn has_escapes(bytes: &[u8]) -> bool {
    memchr2(b'\\', b'%', bytes).is_some()
}

/// The first character (0 beyond Latin-1) and its length in bytes; `None` if the bytes are
/// incomplete.
fn character(bytes: &[u8]) -> Option<(u8, usize)> {
    match bytes {
        [] | [b'\\' | b'%'] => None,
        [b'\\', b'u', digits @ ..] => code(digits, 4, b'\\', 2),
        [b'\\', escaped @ (b'\\' | b'/' | b'"'), ..] => Some((*escaped, 2)),
        [b'\\', _, ..] => Some((0, 2)),
        [b'%', digits @ ..] => code(digits, 2, b'%', 1),
        [byte, ..] => Some((*byte, 1)),
    }
}

/// The character of an escape with this many digits, whose prefix has the length `beginning`. If the
/// digits are invalid, the prefix's first character stands for itself.
fn code(digits: &[u8], length: usize, first: u8, beginning: usize) -> Option<(u8, usize)> {
    let digits = &digits[..length.min(digits.len())];
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return Some((first, 1));
    }
    if digits.len() < length {
        return None;
    }
    let digits = str::from_utf8(digits).expect("digits are ASCII");
    let code = u32::from_str_radix(digits, 16).expect("all digits are hexadecimal");
    Some((u8::try_from(code).unwrap_or(0), beginning + length))
}
