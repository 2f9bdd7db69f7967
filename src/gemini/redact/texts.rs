//! Keys that are cut in two by the JSON around them, and what has the form of a secret in errors
//! that come in the midst of an answer.
//!
//! A stream spreads a text over its events: `{"text":"AIzaSy"}` and `{"text":"D-9…"}`. Clients put
//! the pieces together, and so must the search for keys.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use memchr::memchr3;

use super::{
    MASK,
    escaped::{Unescaped, has_escapes},
    forms_in,
    needle::Needle,
};

/// How a body is written that has strings of JSON in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wording {
    /// It is JSON.
    Json,
    /// Its lines are those of server-sent events, with JSON in them. Other lines are no answer's.
    Events,
}

/// With how many characters a text must end that are the beginning of a key before it is held back.
/// A few characters are no secret, and many texts end with them.
const MIN_HELD: usize = 4;

/// How many texts may stand between two parts of a key: several events have no more. Gemini's have
/// about 20 texts each, names of fields included.
const BETWEEN: u64 = 128;

/// How many beginnings of keys are remembered at once.
const MAX_BEGUN: usize = 64;

/// How much of a text, or after the first part of a key, is held back at most, in bytes.
const MAX_HELD: usize = 64 * 1024;

/// How deep the `error` of an answer can stand: in an object, in a list of objects.
const ERROR_DEPTH: usize = 2;

/// Reads the texts in what comes piece by piece: strings, and the words outside of JSON.
pub(super) struct Texts {
    wording: Wording,
    /// What has come and was not passed on.
    held: BytesMut,
    /// How much was passed on.
    passed: u64,
    /// How much of what is held was read.
    read: usize,
    place: Place,
    /// The text that has begun.
    text: Option<Text>,
    beginnings: Beginnings,
}

/// The beginnings of needles with which texts have ended, as far as they can still be gone on with.
#[derive(Default)]
struct Beginnings {
    /// How many texts were read.
    texts: u64,
    begun: VecDeque<Begun>,
}

/// Where the reader is in JSON.
#[derive(Default)]
struct Place {
    depth: usize,
    /// The depth of the object that is an error.
    error: Option<usize>,
    /// What the last string says.
    string: Word,
    /// What the last name says, until its value is over.
    name: Word,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Word {
    #[default]
    Other,
    Error,
    Type,
}

/// A text whose end has not come.
#[derive(Clone, Copy)]
struct Text {
    /// Where its characters begin in what is held.
    start: usize,
    is_string: bool,
    /// Whether its beginning was passed on, because it is long.
    is_cut: bool,
}

/// A beginning of a needle with which a text ended.
#[derive(Clone)]
struct Begun {
    needle: usize,
    /// How much of it there was.
    matched: usize,
    /// Where it stands in all that has come, in parts. Those that are too short to be held back are
    /// left out, however the pieces were cut.
    parts: Vec<Range<u64>>,
    /// The number of the last text that can go on with it.
    until: u64,
}

impl Texts {
    pub(super) fn new(wording: Wording) -> Self {
        Self {
            wording,
            held: BytesMut::new(),
            passed: 0,
            read: 0,
            place: Place::default(),
            text: None,
            beginnings: Beginnings::default(),
        }
    }

    /// How many bytes are held back.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// The next piece: see `Masker::push`.
    pub(super) fn next(&mut self, needles: &[Arc<Needle>], piece: Bytes, is_last: bool) -> Bytes {
        self.held.extend_from_slice(&piece);
        self.read(needles);
        if is_last && let Some(text) = self.text.take() {
            self.end(needles, text, self.held.len());
        }
        let end = if is_last { self.held.len() } else { self.may_pass(needles) };
        self.passed += end as u64;
        self.read = self.read.saturating_sub(end);
        if let Some(text) = &mut self.text {
            text.start = text.start.saturating_sub(end);
        }
        self.held.split_to(end).freeze()
    }

    fn read(&mut self, needles: &[Arc<Needle>]) {
        while self.read < self.held.len() {
            let Some(text) = self.text else {
                self.outside();
                continue;
            };
            let end = if text.is_string { self.end_of_string() } else { self.end_of_word() };
            let Some(end) = end else { return };
            self.text = None;
            self.end(needles, text, end);
        }
    }

    /// Reads one byte outside of all texts.
    fn outside(&mut self) {
        let byte = self.held[self.read];
        let is_string = byte == b'"';
        if is_string || (self.place.depth == 0 && is_of_word(byte)) {
            let start = self.read + usize::from(is_string);
            self.text = Some(Text { start, is_string, is_cut: false });
            self.read = start;
            return;
        }
        self.read += 1;
        match byte {
            b'\n' if self.wording == Wording::Events => self.place = Place::default(),
            _ => self.place.step(byte),
        }
    }

    /// Where the string ends, as far as it has come.
    fn end_of_string(&mut self) -> Option<usize> {
        loop {
            let Some(skip) = memchr3(b'"', b'\\', b'\n', &self.held[self.read..]) else {
                self.read = self.held.len();
                return None;
            };
            let at = self.read + skip;
            if self.held[at] != b'\\' {
                // No string goes on in another line.
                self.read = at + usize::from(self.held[at] == b'"');
                return Some(at);
            }
            self.read = at;
            if at + 1 == self.held.len() {
                return None;
            }
            self.read = at + 2;
        }
    }

    fn end_of_word(&mut self) -> Option<usize> {
        let word = self.held[self.read..].iter().position(|byte| !is_of_word(*byte));
        self.read = word.map_or(self.held.len(), |length| self.read + length);
        word.map(|_| self.read)
    }

    /// A text has ended.
    fn end(&mut self, needles: &[Arc<Needle>], text: Text, end: usize) {
        let range = text.start.min(end)..end;
        if self.place.is_error() {
            redact(&mut self.held[range.clone()]);
        }
        if text.is_string {
            self.place.string(&self.held[range.clone()]);
        }
        if range.is_empty() || needles.is_empty() {
            return;
        }
        let unescaped = Unescaped::of(&self.held[range.clone()]);
        let piece = Piece { unescaped, start: self.passed + range.start as u64 };
        for part in self.beginnings.read(needles, &piece, text.is_cut) {
            self.mask(part);
        }
    }

    /// Overwrites a part, where it was not passed on.
    fn mask(&mut self, part: Range<u64>) {
        let place = |at: u64| usize::try_from(at.saturating_sub(self.passed)).unwrap_or_default();
        let range = place(part.start)..place(part.end);
        self.held[range].fill(MASK);
    }

    /// Up to where what is held may be passed on.
    fn may_pass(&mut self, needles: &[Arc<Needle>]) -> usize {
        let mut end = self.held.len();
        if let Some(text) = &mut self.text {
            if end - text.start > MAX_HELD {
                if self.place.is_error() {
                    redact(&mut self.held[text.start..]);
                }
                text.is_cut = true;
                let longest = needles.iter().map(|needle| needle.bytes().len()).max();
                // Each character of a key may take 6, and so may an escape that has not come whole.
                let kept = (6 * (longest.unwrap_or_default() + 1)).min(MAX_HELD / 2);
                end = text.start.max(end.saturating_sub(kept));
            } else {
                end = text.start;
            }
        }
        for begun in &self.beginnings.begun {
            let Some(part) = begun.parts.iter().find(|part| part.start >= self.passed) else {
                continue;
            };
            let start = usize::try_from(part.start - self.passed).unwrap_or(end);
            // What is held for too long is passed on, and only the rest of the key overwritten.
            if self.held.len() - start <= MAX_HELD {
                end = end.min(start);
            }
        }
        end
    }
}

/// A text, and where it stands in all that has come.
struct Piece<'a> {
    unescaped: Unescaped<'a>,
    start: u64,
}

impl Piece<'_> {
    /// Where some of its characters stand in all that has come.
    fn part(&self, characters: Range<usize>) -> Range<u64> {
        let part = self.unescaped.range(characters);
        self.start + part.start as u64..self.start + part.end as u64
    }
}

impl Beginnings {
    /// Reads the next text. Gives the parts of the needles of which it has the last part, and
    /// remembers those of which it has another. What is cut off at its beginning goes on with none.
    fn read(
        &mut self,
        needles: &[Arc<Needle>],
        piece: &Piece<'_>,
        is_cut: bool,
    ) -> Vec<Range<u64>> {
        self.texts += 1;
        self.begun.retain(|begun| begun.until >= self.texts);
        let parts = if is_cut { Vec::new() } else { self.go_on(needles, piece) };
        let text = &*piece.unescaped.text;
        for (index, needle) in needles.iter().enumerate() {
            let matched = needle.beginning_at_end(text);
            if matched > 0 {
                let part =
                    (matched >= MIN_HELD).then(|| piece.part(text.len() - matched..text.len()));
                let parts = part.into_iter().collect();
                self.begin(Begun { needle: index, matched, parts, until: 0 });
            }
        }
        parts
    }

    fn go_on(&mut self, needles: &[Arc<Needle>], piece: &Piece<'_>) -> Vec<Range<u64>> {
        let text = &*piece.unescaped.text;
        let mut whole = Vec::new();
        for at in 0..self.begun.len() {
            let Begun { needle, matched, .. } = self.begun[at];
            let rest = &needles[needle].bytes()[matched..];
            let length = rest.len().min(text.len());
            if rest[..length] != text[..length] {
                continue;
            }
            let mut begun = self.begun[at].clone();
            begun.matched += length;
            if begun.matched >= MIN_HELD {
                begun.parts.push(piece.part(0..length));
            }
            if length == rest.len() { whole.push(begun) } else { self.begin(begun) }
        }
        for Begun { needle, .. } in &whole {
            self.begun.retain(|begun| begun.needle != *needle);
        }
        whole.into_iter().flat_map(|begun| begun.parts).collect()
    }

    fn begin(&mut self, begun: Begun) {
        if self.begun.len() == MAX_BEGUN {
            self.begun.pop_front();
        }
        self.begun.push_back(Begun { until: self.texts + BETWEEN, ..begun });
    }
}

impl Place {
    /// Whether what stands here is an error's, or no JSON.
    fn is_error(&self) -> bool {
        self.depth == 0 || self.error.is_some()
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                self.depth += 1;
                self.name = Word::Other;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.error.is_some_and(|error| error > self.depth) {
                    self.error = None;
                }
            }
            b':' => {
                self.name = self.string;
                if self.name == Word::Error && self.depth <= ERROR_DEPTH {
                    self.error = self.error.or(Some(self.depth));
                }
            }
            b',' => self.name = Word::Other,
            _ => {}
        }
    }

    /// A string has ended.
    fn string(&mut self, content: &[u8]) {
        self.string = match content {
            b"error" => Word::Error,
            b"event_type" | b"type" => Word::Type,
            _ => Word::Other,
        };
        // An error of Interactions.
        if (self.name, self.string) == (Word::Type, Word::Error) && self.depth <= ERROR_DEPTH {
            self.error = self.error.or(Some(self.depth));
        }
    }
}

/// Whether a byte can be one of a word outside of JSON: those of secrets are such words.
fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-./+=%\\".contains(&byte)
}

/// Overwrites everything that has the form of a known secret, escaped or not.
pub(super) fn redact(bytes: &mut [u8]) {
    forms_in(bytes).into_iter().for_each(|secret| bytes[secret].fill(MASK));
    if has_escapes(bytes) {
        let unescaped = Unescaped::of(bytes);
        let found = forms_in(&unescaped.text).into_iter();
        let found: Vec<_> = found.map(|secret| unescaped.range(secret)).collect();
        found.into_iter().for_each(|secret| bytes[secret].fill(MASK));
    }
}
