//! Reads the events of a stream: server-sent events, JSON lists, and errors between them.

use std::mem;

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

use super::client::MAX_ANSWER;
use super::json::{BOM, Nesting};

/// One item of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The data of an event, or a JSON object outside of events: an item of a list, or the error
    /// that Gemini writes into a stream whose status was already sent.
    Data(Bytes),
    /// A line that is neither, such as a proxy's.
    Unrecognized(Bytes),
    /// An item that exceeds the size limit.
    TooLong,
}

/// Splits a stream of bytes into events, wherever the bytes are cut.
///
/// An event of Gemini's is one line, `data: {…}`, and an empty line; lines end with CR LF. An error in
/// the middle of a stream is JSON over several lines, without `data:`. Without `alt=sse` a stream is a
/// list of objects. Source: recorded streams. Other fields, other line ends, and data of several lines
/// follow the HTML standard, section "Server-sent events".
#[derive(Debug)]
pub struct Events {
    bytes: BytesMut,
    /// How many bytes were searched without finding an end.
    searched: usize,
    /// The most bytes that are kept of an unfinished item.
    limit: usize,
    /// The lines so far of data that continues on the next line.
    data: BytesMut,
    /// The nesting, inside an object outside of events.
    object: Option<Nesting>,
    /// Whether the current item has exceeded the limit.
    is_too_long: bool,
    /// Whether a line feed here belongs to the end of the previous line.
    is_after_return: bool,
    /// Whether a byte order mark may still follow.
    is_at_start: bool,
    is_over: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self::within(MAX_ANSWER)
    }
}

/// The result of a search step: `None` if more bytes are needed, `Some(None)` if the search
/// continues.
type Step = Option<Option<Event>>;

impl Events {
    /// Keeps at most this many bytes of an unfinished event.
    pub(super) fn within(limit: usize) -> Self {
        Self {
            bytes: BytesMut::new(),
            searched: 0,
            limit,
            data: BytesMut::new(),
            object: None,
            is_too_long: false,
            is_after_return: false,
            is_at_start: true,
            is_over: false,
        }
    }

    /// Adds bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Marks the end of the stream: unfinished items count as complete.
    pub fn end(&mut self) {
        self.is_over = true;
    }

    /// The next complete item.
    pub fn pop(&mut self) -> Option<Event> {
        loop {
            let found = if self.object.is_some() { self.object() } else { self.line() };
            match found {
                Some(None) => {}
                Some(event) => return event,
                None => {
                    // A stream that stays silent for long keeps no buffer.
                    if self.bytes.is_empty() {
                        self.bytes = BytesMut::new();
                    }
                    return None;
                }
            }
        }
    }

    /// Continues to read an object.
    fn object(&mut self) -> Step {
        let end = self.object.as_mut()?.close(&self.bytes[self.searched..]);
        let Some(end) =
            end.map(|end| self.searched + end).or(self.is_over.then_some(self.bytes.len()))
        else {
            self.wait();
            return None;
        };
        self.object = None;
        let object = self.take(end);
        Some(Some(if mem::take(&mut self.is_too_long) {
            Event::TooLong
        } else {
            Event::Data(object)
        }))
    }

    /// Reads a line, or the start of an object.
    fn line(&mut self) -> Step {
        if self.searched == 0 && !self.is_too_long {
            match self.skip_to_line()? {
                b'{' if self.data.is_empty() => {
                    self.object = Some(Nesting::default());
                    return Some(None);
                }
                b'{' => return Some(self.take_data()),
                // The brackets and commas of a list.
                b'[' | b']' | b',' => {
                    self.bytes.advance(1);
                    return Some(None);
                }
                _ => {}
            }
        }
        let end = memchr2(b'\r', b'\n', &self.bytes[self.searched..]);
        let Some(end) =
            end.map(|end| self.searched + end + 1).or(self.is_over.then_some(self.bytes.len()))
        else {
            self.wait();
            return None;
        };
        let line = self.take(end);
        self.is_after_return = line.ends_with(b"\r");
        if mem::take(&mut self.is_too_long) {
            return Some(Some(Event::TooLong));
        }
        Some(self.read(&line))
    }

    /// Skips to the first byte of the next line that is not white space, and returns it: a line feed
    /// if the line is empty.
    fn skip_to_line(&mut self) -> Option<u8> {
        if self.is_at_start {
            if self.bytes.len() < BOM.len() && BOM.starts_with(&self.bytes) && !self.is_over {
                return None;
            }
            self.is_at_start = false;
            if self.bytes.starts_with(BOM) {
                self.bytes.advance(BOM.len());
            }
        }
        if self.is_after_return && !self.bytes.is_empty() {
            self.is_after_return = false;
            if self.bytes.starts_with(b"\n") {
                self.bytes.advance(1);
            }
        }
        let blanks = self.bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.bytes.advance(blanks);
        let first = self.bytes.first().copied();
        // The last event may lack its empty line.
        first.or((self.is_over && !self.data.is_empty()).then_some(b'\n'))
    }

    /// Interprets a line.
    fn read(&mut self, line: &Bytes) -> Option<Event> {
        let text = line.trim_ascii();
        if text.is_empty() {
            return self.take_data();
        }
        if text == b"data" || text.starts_with(b"data:") {
            let data = text[b"data".len()..].strip_prefix(b":").unwrap_or_default().trim_ascii();
            return self.read_data(line.slice_ref(data));
        }
        if is_field(text) {
            return None;
        }
        // An error counts whatever precedes it on the line.
        let object = memchr(b'{', line).filter(|at| begins_error(&line[*at..]));
        if let Some(at) = object {
            let mut bytes = BytesMut::from(&line[at..]);
            bytes.unsplit(self.bytes.split());
            self.bytes = bytes;
            self.is_after_return = false;
        }
        let unrecognized = line[..object.unwrap_or(line.len())].trim_ascii();
        Some(Event::Unrecognized(line.slice_ref(unrecognized)))
    }

    /// Interprets a line of data. Gemini's data is complete on one line and is returned at once. A
    /// line with only the start of an object waits for the empty line that ends the event.
    fn read_data(&mut self, data: Bytes) -> Option<Event> {
        let is_part = match *data {
            [b'{', .., b'}'] | [b'[', .., b']'] => false,
            [b'{' | b'[', ..] => true,
            _ => false,
        };
        if !is_part && self.data.is_empty() {
            return (!data.is_empty()).then_some(Event::Data(data));
        }
        if self.data.len() + data.len() >= self.limit {
            self.data.clear();
            return Some(Event::TooLong);
        }
        self.data.extend_from_slice(&data);
        self.data.extend_from_slice(b"\n");
        None
    }

    /// Takes the collected lines of data.
    fn take_data(&mut self) -> Option<Event> {
        let data = self.data.split().freeze();
        (!data.is_empty()).then_some(Event::Data(data))
    }

    /// Takes the bytes up to `end`.
    fn take(&mut self, end: usize) -> Bytes {
        self.searched = 0;
        self.bytes.split_to(end).freeze()
    }

    /// Waits for more bytes. Drops what has arrived if it exceeds the limit.
    fn wait(&mut self) {
        self.searched = self.bytes.len();
        if self.searched > self.limit {
            (self.bytes, self.searched) = (BytesMut::new(), 0);
            self.is_too_long = true;
        }
    }
}

/// Whether a line is a comment or an irrelevant field.
fn is_field(line: &[u8]) -> bool {
    let name = &line[..memchr(b':', line).unwrap_or(line.len())];
    matches!(name, b"" | b"event" | b"id" | b"retry")
}

/// Whether an object may be an error's envelope.
fn begins_error(object: &[u8]) -> bool {
    let inner = object[1..].trim_ascii();
    inner.is_empty() || inner.starts_with(b"\"error\"")
}

#[cfg(test)]
mod tests;
