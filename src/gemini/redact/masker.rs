//! Overwrites keys in something that comes piece by piece.

use std::{fmt, mem, sync::Arc};

use bytes::Bytes;

use super::{
    MASK, Secrets,
    escaped::{find_escaped, has_escapes},
    needle::{Found, Needle, find},
    texts::Texts,
};

/// Overwrites keys in something that comes piece by piece, and may cut a key in two.
///
/// It holds back the end of a piece as long as that may be a part of a key, and little else. In
/// all, as many bytes come out as went in.
#[derive(Default)]
pub struct Masker {
    secrets: Secrets,
    plain: Stage,
    escaped: Stage,
    /// In what has strings of JSON in it.
    texts: Option<Texts>,
}

impl Masker {
    pub(super) fn new(secrets: Secrets, texts: Option<Texts>) -> Self {
        Self { secrets, texts, ..Self::default() }
    }

    /// The next piece, with what was held back before it and without what is held back of it.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        self.next(piece, false)
    }

    /// The last piece, with what was held back before it.
    pub(super) fn push_last(&mut self, piece: Bytes) -> Bytes {
        self.next(piece, true)
    }

    /// What is held back, at the end.
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
        let in_texts = self.texts.as_ref().map_or(0, Texts::held);
        self.plain.held.len() + self.escaped.held.len() + in_texts
    }
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Masker(…)")
    }
}

/// Overwrites needles in something that is there whole.
pub(super) fn mask(needles: &[Arc<Needle>], bytes: Bytes) -> Bytes {
    let bytes = Stage::default().next(bytes, true, |text| find(needles, text, true));
    mask_escaped(&mut Stage::default(), needles, bytes, true)
}

fn mask_escaped(stage: &mut Stage, needles: &[Arc<Needle>], piece: Bytes, is_last: bool) -> Bytes {
    // Without an escape there is nothing in it that the search before has not found.
    if needles.is_empty() || (stage.held.is_empty() && !has_escapes(&piece)) {
        return piece;
    }
    stage.next(piece, is_last, |text| find_escaped(needles, text, is_last))
}

/// One kind of search.
#[derive(Default)]
struct Stage {
    /// The end of what has come, where it may be the beginning of a needle.
    held: Vec<u8>,
    /// How much of its beginning is the end of a needle that was found.
    covered: usize,
}

impl Stage {
    fn next(&mut self, piece: Bytes, is_last: bool, find: impl Fn(&[u8]) -> Found) -> Bytes {
        let piece = match mem::take(&mut self.held) {
            held if held.is_empty() => piece,
            held => [&*held, &piece].concat().into(),
        };
        let Found { mut whole, open } = find(&piece);
        let open = if is_last { piece.len() } else { open };
        if self.covered > 0 {
            whole.push(0..mem::take(&mut self.covered));
        }
        if whole.is_empty() && open == piece.len() {
            return piece;
        }
        self.held = piece[open..].to_vec();
        let mut passed = piece[..open].to_vec();
        for found in whole.into_iter().filter(|found| found.start <= open) {
            passed[found.start..found.end.min(open)].fill(MASK);
            self.covered = self.covered.max(found.end.saturating_sub(open));
        }
        passed.into()
    }
}
