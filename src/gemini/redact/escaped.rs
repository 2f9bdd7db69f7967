//! Characters that escapes hide: `\u0041Iza…` in a string of JSON, `%41Iza…` in a URL.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use memchr::memchr2;

use super::needle::{Found, Needle, find};

/// A text without its escapes, and where its characters stood.
pub(super) struct Unescaped<'a> {
    /// The characters. One beyond Latin-1 is 0.
    pub text: Cow<'a, [u8]>,
    /// After each escape: where in `text` and where in the bytes the next character begins.
    places: Vec<(usize, usize)>,
    /// Where an escape begins that has not come whole, or the end.
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

    /// Where a range of the characters stands in the bytes.
    pub(super) fn range(&self, characters: Range<usize>) -> Range<usize> {
        self.place(characters.start)..self.place(characters.end)
    }

    fn place(&self, character: usize) -> usize {
        let next = self.places.partition_point(|(at, _)| *at <= character);
        let (at, place) = next.checked_sub(1).map_or((0, 0), |last| self.places[last]);
        place + (character - at)
    }
}

/// Looks for needles some of whose characters are escaped.
pub(super) fn find_escaped(needles: &[Arc<Needle>], bytes: &[u8], is_last: bool) -> Found {
    let unescaped = Unescaped::of(bytes);
    let Found { whole, open } = find(needles, &unescaped.text, is_last);
    let open = if open == unescaped.text.len() { unescaped.end } else { unescaped.place(open) };
    Found { whole: whole.into_iter().map(|found| unescaped.range(found)).collect(), open }
}

pub(super) fn has_escapes(bytes: &[u8]) -> bool {
    memchr2(b'\\', b'%', bytes).is_some()
}

/// The first character, if it is one of Latin-1 and else 0, and how many bytes it takes; `None`
/// where too few have come.
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

/// The character that an escape stands for, which has so many digits after its beginning. What is
/// no escape after all is the character that it began with.
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
