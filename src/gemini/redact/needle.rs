//! The texts that are looked for.

use std::ops::Range;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use memchr::{memchr, memmem};
use secrecy::{ExposeSecret, SecretSlice};

/// One spelling of one key. The memory is wiped when it is dropped.
pub(super) struct Needle {
    bytes: SecretSlice<u8>,
    /// For each length of a beginning of the needle, less 1: how long the longest shorter beginning
    /// is with which it ends, as in the search of Knuth, Morris and Pratt.
    borders: Box<[u32]>,
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
        let mut needle = Self { borders: vec![0; bytes.len()].into(), bytes: bytes.into() };
        for end in 1..needle.borders.len() {
            let (border, byte) = (needle.border(end), needle.bytes()[end]);
            let border = needle.advance(border, byte);
            needle.borders[end] = u32::try_from(border).expect("a key is short");
        }
        needle
    }

    /// How long the longest shorter beginning is with which a beginning of this length ends.
    fn border(&self, length: usize) -> usize {
        self.borders[length - 1] as usize
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

    /// How long the longest beginning of the needle is with which a text ends, the whole needle
    /// left out.
    pub(super) fn beginning_at_end(&self, text: &[u8]) -> usize {
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

/// Looks for needles.
pub(super) fn find(needles: &[Needle], text: &[u8]) -> Found {
    let mut found = Found { whole: Vec::new(), open: text.len() };
    for needle in needles {
        needle.find(text, &mut found.whole);
        found.open = found.open.min(text.len() - needle.beginning_at_end(text));
    }
    found
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
        let standard = &BASE64_STANDARD.encode(&encoded)[own.clone()];
        let url_safe = &BASE64_URL_SAFE.encode(&encoded)[own];
        spellings.push(standard.into());
        if url_safe != standard {
            spellings.push(url_safe.into());
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
