//! Overwrites keys in a text that arrives in pieces.

use std::{fmt, mem, sync::Arc};

use bytes::Bytes;

use super::{
    MASK, Secrets,
    escaped::{find_escaped, has_escapes},
    needle::{Matches, Needle, find},
    strings::StringScanner,
};

/// Overwrites keys in a text that arrives in pieces, also if a key is split over two of them.
///
/// It holds back the end of a piece only while that may be part of a key. The total length does not
/// change.
#[derive(Default)]
pub struct Masker {
    secrets: Secrets,
    plain: Stage,
    escaped: Stage,
    /// Set for a format with JSON strings.
    texts: Option<StringScanner>,
}

impl Masker {
    pub(super) fn new(secrets: Secrets, texts: Option<StringScanner>) -> Self {
        Self { secrets, texts, ..Self::default() }
    }

    /// Takes the next piece and returns the bytes that can pass.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        self.next(piece, false)
    }

    /// Takes the last piece and returns all remaining bytes.
    pub(super) fn push_last(&mut self, piece: Bytes) -> Bytes {
        self.next(piece, true)
    }

    /// Returns the bytes held back. Call it at the end.
    pub fn finish(&mut self) -> Bytes {
        self.next(Bytes::new(), true)
    }

    fn next(&mut self, piece: Bytes, is_last: bool) -> Bytes {
        let needles = &self.secrets.needles;
        let piece = self.plain.next(piece, is_last, |text| find(needles, text, is_last));
        let piece = mask_escaped(&mut self.escaped, needles, piece, is_last);
        match &mut self.texts {
            Some(texts) => texts.next(needles, piece, is_last),
            None => piece,
        }
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        let in_texts = self.texts.as_ref().map_or(0, StringScanner::held);
        self.plain.held.len() + self.escaped.held.len() + in_texts
    }
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Masker(…)")
    }
}

/// Overwrites needles in a complete text.
pub(super) fn mask(needles: &[Arc<Needle>], bytes: Bytes) -> Bytes {
    let bytes = Stage::default().next(bytes, true, |text| find(needles, text, true));
    mask_escaped(&mut Stage::default(), needles, bytes, true)
}

fn mask_escaped(stage: &mut Stage, needles: &[Arc<Needle>], piece: Bytes, is_last: bool) -> Bytes {
    // Without an escape, the first search has found everything.
    if needles.is_empty() || (stage.held.is_empty() && !has_escapes(&piece)) {
        return piece;
    }
    stage.next(piece, is_last, |text| find_escaped(needles, text, is_last))
}

/// One search: for plain or for escaped needles.
#[derive(Default)]
struct Stage {
    /// The end of the bytes so far, if it may be the start of a needle.
    held: Vec<u8>,
    /// How many bytes at the start of `held` belong to a needle that was found.
    covered: usize,
}

impl Stage {
    fn next(&mut self, piece: Bytes, is_last: bool, find: impl Fn(&[u8]) -> Matches) -> Bytes {
        let piece = match mem::take(&mut self.held) {
            held if held.is_empty() => piece,
            held => [&*held, &piece].concat().into(),
        };
        let Matches { mut complete, partial_from } = find(&piece);
        let partial_from = if is_last { piece.len() } else { partial_from };
        if self.covered > 0 {
            complete.push(0..mem::take(&mut self.covered));
        }
        if complete.is_empty() && partial_from == piece.len() {
            return piece;
        }
        self.held = piece[partial_from..].to_vec();
        let mut passed = piece[..partial_from].to_vec();
        for found in complete.into_iter().filter(|found| found.start <= partial_from) {
            passed[found.start..found.end.min(partial_from)].fill(MASK);
            self.covered = self.covered.max(found.end.saturating_sub(partial_from));
        }
        passed.into()
    }
}
