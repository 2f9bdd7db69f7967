//! Finds the encodings of keys in bytes.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use memchr::{memchr, memchr2, memmem};
use secrecy::{ExposeSecret, SecretBox, SecretSlice};

/// For texts up to this length in bytes, a table of the bytes that occur rules out most needles. In
/// longer texts, searching for each needle is cheaper.
const SHORT: usize = 1024;

/// One encoding of one key. The memory is wiped when it is dropped.
pub(super) struct Needle {
    bytes: SecretSlice<u8>,
    /// The failure table of the Knuth-Morris-Pratt search: for each prefix of the needle, the length
    /// of its longest proper prefix that is also its suffix. Computed on first use, since most
    /// needles are dropped without it.
    borders: OnceLock<Box<[u32]>>,
    /// A Bloom filter of the byte pairs in the needle: a pair whose bit is not set does not occur.
    pairs: SecretBox<[u64; 8]>,
}

/// The word and the bit for a pair of bytes in the filter.
fn bit(first: u8, second: u8) -> (usize, u64) {
    let bit = (usize::from(first) * 37 + usize::from(second)) % 512;
    (bit / 64, 1 << (bit % 64))
}

/// The result of a search.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// Complete needles. They may overlap.
    pub complete: Vec<Range<usize>>,
    /// Where a possible start of a needle at the end begins; the length of the text if there is
    /// none.
    pub partial_from: usize,
}

impl Needle {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let mut pairs = Box::new([0; 8]);
        for pair in bytes.windows(2) {
            let (at, bit) = bit(pair[0], pair[1]);
            pairs[at] |= bit;
        }
        Self { bytes: bytes.into(), borders: OnceLock::new(), pairs: SecretBox::new(pairs) }
    }

    /// The length of the longest border of a prefix of this length.
    fn border(&self, length: usize) -> usize {
        self.borders.get_or_init(|| borders(self.bytes()))[length - 1] as usize
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.expose_secret()
    }

    /// How many bytes of the needle match at the end of the text after one more byte.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        let bytes = self.bytes();
        while matched > 0 && bytes[matched] != byte {
            matched = self.border(matched);
        }
        matched + usize::from(bytes[matched] == byte)
    }

    /// Adds all matches in a text, in linear time.
    fn find(&self, text: &[u8], found: &mut Vec<Range<usize>>) {
        let length = self.bytes().len();
        let mut at = 0;
        while let Some(start) = memmem::find(&text[at..], self.bytes()) {
            at += start + length;
            found.push(at - length..at);
            // The next match may overlap this one.
            let mut matched = self.border(length);
            while matched > 0 && at < text.len() {
                matched = self.advance(matched, text[at]);
                at += 1;
                if matched == length {
                    found.push(at - length..at);
                    matched = self.border(length);
                }
            }
        }
    }

    /// Quickly checks whether a text may end with a prefix of the needle: with two bytes that are
    /// adjacent in the needle, or with its first byte.
    fn may_begin_at_end(&self, text: &[u8]) -> bool {
        let follows = |first, second| {
            let (at, bit) = bit(first, second);
            self.pairs.expose_secret()[at] & bit != 0
        };
        match *text {
            [.., first, second] if follows(first, second) => true,
            [.., last] => last == self.bytes()[0],
            [] => false,
        }
    }

    /// The length of the longest proper prefix of the needle at the end of a text.
    pub(super) fn beginning_at_end(&self, text: &[u8]) -> usize {
        if !self.may_begin_at_end(text) {
            return 0;
        }
        let tail = &text[text.len().saturating_sub(self.bytes().len() - 1)..];
        let (mut matched, mut at) = (0, 0);
        while at < tail.len() {
            if matched == 0 {
                match memchr(self.bytes()[0], &tail[at..]) {
                    Some(skip) => at += skip,
                    None => return 0,
                }
            }
            matched = self.advance(matched, tail[at]);
            at += 1;
        }
        matched
    }
}

/// The failure table of a needle: see [`Needle::borders`].
fn borders(bytes: &[u8]) -> Box<[u32]> {
    let mut borders: Vec<usize> = vec![0; bytes.len()];
    for end in 1..bytes.len() {
        let mut border = borders[end - 1];
        while border > 0 && bytes[border] != bytes[end] {
            border = borders[border - 1];
        }
        borders[end] = border + usize::from(bytes[border] == bytes[end]);
    }
    let short = |border| u32::try_from(border).expect("a key is short");
    borders.into_iter().map(short).collect()
}

/// Searches for needles. In the last text, no needle can start at the end and continue.
pub(super) fn find(needles: &[Arc<Needle>], text: &[u8], is_last: bool) -> Matches {
    let mut complete = Vec::new();
    if needles.is_empty() {
        return Matches { complete, partial_from: text.len() };
    }
    let is_there = bytes_of(text);
    for needle in needles {
        let bytes = needle.bytes();
        let may_hold =
            |is_there: &[bool; 256]| bytes.iter().all(|byte| is_there[usize::from(*byte)]);
        if bytes.len() <= text.len() && is_there.as_ref().is_none_or(may_hold) {
            needle.find(text, &mut complete);
        }
    }
    let at_end = |needle: &Arc<Needle>| needle.beginning_at_end(text);
    let partial_from =
        if is_last { 0 } else { needles.iter().map(at_end).max().unwrap_or_default() };
    Matches { complete, partial_from: text.len() - partial_from }
}

/// Which bytes occur in a text; `None` for long texts.
fn bytes_of(text: &[u8]) -> Option<[bool; 256]> {
    (text.len() <= SHORT).then(|| {
        let mut is_there = [false; 256];
        text.iter().for_each(|byte| is_there[usize::from(*byte)] = true);
        is_there
    })
}

/// The encodings of a key that are searched for: as it is, in UTF-16, and in base64 at each alignment.
/// Escapes are handled separately.
pub fn encodings(key: &[u8]) -> Vec<Vec<u8>> {
    let mut encodings = vec![key.to_vec(), utf16(key)];
    for before in 0..3 {
        let mut encoded = vec![0; before];
        encoded.extend_from_slice(key);
        // Characters that also encode neighbouring bytes are left out.
        let own = (8 * before).div_ceil(6)..8 * encoded.len() / 6;
        let standard = BASE64_STANDARD.encode(&encoded).as_bytes()[own.clone()].to_vec();
        let is_odd = memchr2(b'+', b'/', &standard).is_some();
        encodings.push(standard);
        if is_odd {
            encodings.push(BASE64_URL_SAFE.encode(&encoded).as_bytes()[own].into());
        }
    }
    encodings
}

/// UTF-16 without the first or last zero byte, so that it matches both byte orders.
fn utf16(key: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = key.iter().flat_map(|byte| [*byte, 0]).collect();
    bytes.pop();
    bytes
}
