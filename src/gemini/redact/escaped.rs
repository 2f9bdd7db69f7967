//! Keys that escapes hide: `\u0041Iza…` in a string of JSON, `%41Iza…` in a URL.

use std::{collections::VecDeque, mem};

use bytes::Bytes;
use memchr::{memchr2, memchr3};

use super::{MASK, Needle};

/// Overwrites one key, with some of its characters escaped, in something that comes piece by piece.
#[derive(Clone, Default)]
pub(super) struct Escaped {
    /// The end of what has come, where it may be the beginning of the key or of an escape.
    held: Vec<u8>,
}

impl Escaped {
    /// The next piece, with what was held back before it and without what is held back of it.
    pub fn push(&mut self, key: &Needle, piece: Bytes) -> Bytes {
        if self.held.is_empty() && !has_escapes(&piece) {
            return piece;
        }
        let mut bytes = [&mem::take(&mut self.held), &*piece].concat();
        let end = overwrite(key, &mut bytes);
        self.held = bytes.split_off(end);
        bytes.into()
    }

    /// What is held back, at the end.
    pub fn finish(&mut self) -> Bytes {
        mem::take(&mut self.held).into()
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

/// Overwrites a key in something that is there whole.
pub(super) fn mask(key: &Needle, bytes: Bytes) -> Bytes {
    if !has_escapes(&bytes) {
        return bytes;
    }
    let mut bytes = bytes.to_vec();
    overwrite(key, &mut bytes);
    bytes.into()
}

fn has_escapes(bytes: &[u8]) -> bool {
    memchr2(b'\\', b'%', bytes).is_some()
}

/// Overwrites a key, and says where the end begins that may be the beginning of another one.
fn overwrite(key: &Needle, bytes: &mut [u8]) -> usize {
    // Where the characters begin that were read last, as many as the key has.
    let mut starts = VecDeque::with_capacity(key.bytes.len());
    let (mut matched, mut at) = (0, 0);
    loop {
        if matched == 0 {
            at = memchr3(key.bytes[0], b'\\', b'%', &bytes[at..])
                .map_or(bytes.len(), |skip| at + skip);
        }
        let Some((byte, length)) = character(&bytes[at..]) else { break };
        if starts.len() == key.bytes.len() {
            starts.pop_front();
        }
        starts.push_back(at);
        at += length;
        matched = key.advance(matched, byte);
        if matched == key.bytes.len() {
            bytes[starts[0]..at].fill(MASK);
            matched = 0;
        }
    }
    if matched == 0 { at } else { starts[starts.len() - matched] }
}

/// The first character, if it is one of ASCII and else 0, and how many bytes it takes; `None` where
/// too few have come.
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
