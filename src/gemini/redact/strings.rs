//! Finds keys that are split over several strings of JSON, and the forms of secrets in errors in the
//! middle of an answer.
//!
//! A stream spreads a text over its events: `{"text":"AIzaSy"}` and `{"text":"D-9…"}`. Clients join
//! the pieces, so the search for keys does the same.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use memchr::memchr3;

use super::{
    MASK,
    escaped::{Unescaped, has_escapes},
    forms_in,
    needle::Needle,
};

/// The format of a body that contains JSON strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFormat {
    /// The complete body is JSON.
    Json,
    /// Lines of server-sent events that contain JSON. Other lines are not part of an answer.
    Events,
}

/// How many characters of a key a text must end with before it is held back. Fewer are no secret, and
/// many texts end with them.
const MIN_HELD: usize = 4;

/// How many strings may lie between two parts of a key: enough for several events. Gemini's events have
/// about 20 strings each, including field names.
const BETWEEN: u64 = 128;

/// How many partial matches are remembered at once.
const MAX_PARTIAL_MATCHES: usize = 64;

/// The most bytes of a string, or after the first part of a key, that are held back.
const MAX_HELD: usize = 64 * 1024;

/// The depth at which an answer's `error` may appear: in an object, in a list of objects.
const ERROR_DEPTH: usize = 2;

/// Reads the strings of a body that arrives in pieces, and the words outside of JSON.
pub(super) struct StringScanner {
    format: BodyFormat,
    /// Bytes that have arrived and were not passed on.
    held: BytesMut,
    /// How many bytes were passed on.
    passed: u64,
    /// How many of the held bytes were read.
    read: usize,
    place: JsonPosition,
    /// The string whose end has not arrived.
    text: Option<Text>,
    partial_matches: PartialMatches,
}

/// Partial matches at the ends of strings that later strings may continue.
#[derive(Default)]
struct PartialMatches {
    /// How many strings were read.
    texts: u64,
    matches: VecDeque<PartialMatch>,
}

/// The reader's position in the JSON.
#[derive(Default)]
struct JsonPosition {
    depth: usize,
    /// The depth of the error object.
    error: Option<usize>,
    /// The last string.
    string: KnownString,
    /// The name of the current field, until its value ends.
    name: KnownString,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum KnownString {
    #[default]
    Other,
    Error,
    Type,
}

/// A string whose end has not arrived.
#[derive(Clone, Copy)]
struct Text {
    /// The position of its first character in the held bytes.
    start: usize,
    is_string: bool,
    /// Whether its start was passed on because it is long.
    is_cut: bool,
}

/// A partial match at the end of a string.
#[derive(Clone)]
struct PartialMatch {
    needle: usize,
    /// How many bytes of the needle match.
    matched: usize,
    /// The positions of its parts in the complete body. Parts that are too short to be held back are
    /// left out, however the body is cut.
    parts: Vec<Range<u64>>,
    /// The number of the last string that can continue it.
    until: u64,
}

impl StringScanner {
    pub(super) fn new(format: BodyFormat) -> Self {
        Self {
            format,
            held: BytesMut::new(),
            passed: 0,
            read: 0,
            place: JsonPosition::default(),
            text: None,
            partial_matches: PartialMatches::default(),
        }
    }

    /// How many bytes are held back.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes the next piece: see `Masker::push`.
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

    /// Reads one byte outside of strings.
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
            b'\n' if self.format == BodyFormat::Events => self.place = JsonPosition::default(),
            _ => self.place.step(byte),
        }
    }

    /// The end of the string, if it has arrived.
    fn end_of_string(&mut self) -> Option<usize> {
        loop {
            let Some(skip) = memchr3(b'"', b'\\', b'\n', &self.held[self.read..]) else {
                self.read = self.held.len();
                return None;
            };
            let at = self.read + skip;
            if self.held[at] != b'\\' {
                // No JSON string continues on another line.
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

    /// Handles the end of a string.
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
        for part in self.partial_matches.read(needles, &piece, text.is_cut) {
            self.mask(part);
        }
    }

    /// Overwrites a part, as far as it was not passed on.
    fn mask(&mut self, part: Range<u64>) {
        let place = |at: u64| usize::try_from(at.saturating_sub(self.passed)).unwrap_or_default();
        let range = place(part.start)..place(part.end);
        self.held[range].fill(MASK);
    }

    /// The position up to which the held bytes can pass.
    fn may_pass(&mut self, needles: &[Arc<Needle>]) -> usize {
        let mut end = self.held.len();
        if let Some(text) = &mut self.text {
            if end - text.start > MAX_HELD {
                if self.place.is_error() {
                    redact(&mut self.held[text.start..]);
                }
                text.is_cut = true;
                let longest = needles.iter().map(|needle| needle.bytes().len()).max();
                // Each character of a key may take 6 bytes, and so may an incomplete escape.
                let kept = (6 * (longest.unwrap_or_default() + 1)).min(MAX_HELD / 2);
                end = text.start.max(end.saturating_sub(kept));
            } else {
                end = text.start;
            }
        }
        for partial in &self.partial_matches.matches {
            let Some(part) = partial.parts.iter().find(|part| part.start >= self.passed) else {
                continue;
            };
            let start = usize::try_from(part.start - self.passed).unwrap_or(end);
            // A part held for too long is passed on; only the rest of the key is overwritten.
            if self.held.len() - start <= MAX_HELD {
                end = end.min(start);
            }
        }
        end
    }
}

/// A string and its position in the complete body.
struct Piece<'a> {
    unescaped: Unescaped<'a>,
    start: u64,
}

impl Piece<'_> {
    /// The position of a range of its characters in the complete body.
    fn part(&self, characters: Range<usize>) -> Range<u64> {
        let part = self.unescaped.range(characters);
        self.start + part.start as u64..self.start + part.end as u64
    }
}

impl PartialMatches {
    /// Reads the next string. Returns the parts of all needles that it completes, and remembers
    /// partial matches. A string whose start was cut off continues no match.
    fn read(
        &mut self,
        needles: &[Arc<Needle>],
        piece: &Piece<'_>,
        is_cut: bool,
    ) -> Vec<Range<u64>> {
        self.texts += 1;
        self.matches.retain(|partial| partial.until >= self.texts);
        let parts = if is_cut { Vec::new() } else { self.continue_matches(needles, piece) };
        let text = &*piece.unescaped.text;
        for (index, needle) in needles.iter().enumerate() {
            let matched = needle.beginning_at_end(text);
            if matched > 0 {
                let part =
                    (matched >= MIN_HELD).then(|| piece.part(text.len() - matched..text.len()));
                let parts = part.into_iter().collect();
                self.remember(PartialMatch { needle: index, matched, parts, until: 0 });
            }
        }
        parts
    }

    fn continue_matches(&mut self, needles: &[Arc<Needle>], piece: &Piece<'_>) -> Vec<Range<u64>> {
        let text = &*piece.unescaped.text;
        let mut complete = Vec::new();
        for at in 0..self.matches.len() {
            let PartialMatch { needle, matched, .. } = self.matches[at];
            let rest = &needles[needle].bytes()[matched..];
            let length = rest.len().min(text.len());
            if rest[..length] != text[..length] {
                continue;
            }
            let mut partial = self.matches[at].clone();
            partial.matched += length;
            if partial.matched >= MIN_HELD {
                partial.parts.push(piece.part(0..length));
            }
            if length == rest.len() { complete.push(partial) } else { self.remember(partial) }
        }
        for PartialMatch { needle, .. } in &complete {
            self.matches.retain(|partial| partial.needle != *needle);
        }
        complete.into_iter().flat_map(|partial| partial.parts).collect()
    }

    fn remember(&mut self, partial: PartialMatch) {
        if self.matches.len() == MAX_PARTIAL_MATCHES {
            self.matches.pop_front();
        }
        self.matches.push_back(PartialMatch { until: self.texts + BETWEEN, ..partial });
    }
}

impl JsonPosition {
    /// Whether the position is inside an error, or outside of JSON.
    fn is_error(&self) -> bool {
        self.depth == 0 || self.error.is_some()
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                self.depth += 1;
                self.name = KnownString::Other;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.error.is_some_and(|error| error > self.depth) {
                    self.error = None;
                }
            }
            b':' => {
                self.name = self.string;
                if self.name == KnownString::Error && self.depth <= ERROR_DEPTH {
                    self.error = self.error.or(Some(self.depth));
                }
            }
            b',' => self.name = KnownString::Other,
            _ => {}
        }
    }

    /// Handles the end of a string.
    fn string(&mut self, content: &[u8]) {
        self.string = match content {
            b"error" => KnownString::Error,
            b"event_type" | b"type" => KnownString::Type,
            _ => KnownString::Other,
        };
        // An error of the Interactions API.
        if (self.name, self.string) == (KnownString::Type, KnownString::Error)
            && self.depth <= ERROR_DEPTH
        {
            self.error = self.error.or(Some(self.depth));
        }
    }
}

/// Whether a byte can be part of a word outside of JSON. Secrets consist of such bytes.
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
