//! The texts that are looked for.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use memchr::{memchr, memchr2, memmem};
use secrecy::{ExposeSecret, SecretBox, SecretSlice};

/// Texts of at most so many bytes are first looked through for the bytes that are in them, which
/// leaves few needles to look for. In longer ones a search for each needle takes less.
const SHORT: usize = 1024;

/// One spelling of one key. The memory is wiped when it is dropped.
pub(super) struct Needle {
    bytes: SecretSlice<u8>,
    /// For each length of a beginning of the needle, less 1: how long the longest shorter beginning
    /// is with which it ends, as in the search of Knuth, Morris and Pratt. Most needles are dropped
    /// before it is asked for.
    borders: OnceLock<Box<[u32]>>,
    /// Which pairs of bytes follow each other in the needle, each one bit of a few hundred: a bit
    /// that is not set tells that none of its pairs does.
    pairs: SecretBox<[u64; 8]>,
}

/// The place of the bit of a pair of bytes: in which number, and in it.
fn bit(first: u8, second: u8) -> (usize, u64) {
    let bit = (usize::from(first) * 37 + usize::from(second)) % 512;
    (bit / 64, 1 << (bit % 64))
}

/// What was found in some bytes.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Where needles stand. They may overlap.
    pub whole: Vec<Range<usize>>,
    /// Where the end of the bytes begins that may be the beginning of a needle: their length where
    /// it is none.
    pub open: usize,
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

    /// How long the longest shorter beginning is with which a beginning of this length ends.
    fn border(&self, length: usize) -> usize {
        self.borders.get_or_init(|| borders(self.bytes()))[length - 1] as usize
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.expose_secret()
    }

    /// With how many bytes of the needle a text ends after one byte more.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        let bytes = self.bytes();
        while matched > 0 && bytes[matched] != byte {
            matched = self.border(matched);
        }
        matched + usize::from(bytes[matched] == byte)
    }

    /// Adds where the needle stands in a text, in time linear in its length.
    fn find(&self, text: &[u8], found: &mut Vec<Range<usize>>) {
        let length = self.bytes().len();
        let mut at = 0;
        while let Some(start) = memmem::find(&text[at..], self.bytes()) {
            at += start + length;
            found.push(at - length..at);
            // The next one may overlap it.
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

    /// Whether a text may end with two bytes that follow each other in the needle, or ends with its
    /// first byte.
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

    /// How long the longest beginning of the needle is with which a text ends, the whole needle
    /// left out.
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

/// The borders of a needle: see [`Needle::borders`].
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

/// Looks for needles. Behind the last text nothing follows that a needle could go on with.
pub(super) fn find(needles: &[Arc<Needle>], text: &[u8], is_last: bool) -> Found {
    let mut whole = Vec::new();
    if needles.is_empty() {
        return Found { whole, open: text.len() };
    }
    let is_there = bytes_of(text);
    for needle in needles {
        let bytes = needle.bytes();
        let may_hold =
            |is_there: &[bool; 256]| bytes.iter().all(|byte| is_there[usize::from(*byte)]);
        if bytes.len() <= text.len() && is_there.as_ref().is_none_or(may_hold) {
            needle.find(text, &mut whole);
        }
    }
    let at_end = |needle: &Arc<Needle>| needle.beginning_at_end(text);
    let open = if is_last { 0 } else { needles.iter().map(at_end).max().unwrap_or_default() };
    Found { whole, open: text.len() - open }
}

/// Which bytes are in a text, where it is short.
fn bytes_of(text: &[u8]) -> Option<[bool; 256]> {
    (text.len() <= SHORT).then(|| {
        let mut is_there = [false; 256];
        text.iter().for_each(|byte| is_there[usize::from(*byte)] = true);
        is_there
    })
}

/// How a key may be spelled: as it is, in UTF-16, and in base64, wherever it stands in what was
/// encoded. Escapes are looked through apart.
pub fn spellings(key: &[u8]) -> Vec<Vec<u8>> {
    let mut spellings = vec![key.to_vec(), utf16(key)];
    for before in 0..3 {
        let mut encoded = vec![0; before];
        encoded.extend_from_slice(key);
        // Characters that also hold bits of the bytes around the key are left out.
        let own = (8 * before).div_ceil(6)..8 * encoded.len() / 6;
        let standard = BASE64_STANDARD.encode(&encoded).as_bytes()[own.clone()].to_vec();
        let is_odd = memchr2(b'+', b'/', &standard).is_some();
        spellings.push(standard);
        if is_odd {
            spellings.push(BASE64_URL_SAFE.encode(&encoded).as_bytes()[own].into());
        }
    }
    spellings
}

/// What the two byte orders have in common: the zeros between the characters.
fn utf16(key: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = key.iter().flat_map(|byte| [*byte, 0]).collect();
    bytes.pop();
    bytes
}
