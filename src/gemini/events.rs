//! Streams: server-sent events, lists of JSON, and what else comes in them.

use std::mem;

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

use super::client::MAX_ANSWER;
use super::json::{BOM, Nesting};

/// One thing that a stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The data of an event, or an object of JSON that stands outside of events: an item of a list,
    /// or the error that Gemini writes into a stream whose status is already gone.
    Data(Bytes),
    /// A line that is neither, such as a proxy's.
    Stray(Bytes),
    /// Something longer than is read.
    TooLong,
}

/// Cuts a stream of bytes into what it says, however the bytes are cut themselves.
///
/// An event of Gemini's is one line, `data: {…}`, and an empty one; lines end with CR LF. An error in
/// the middle of a stream is JSON over several lines, without `data:`. Without `alt=sse` a stream is a
/// list of objects. Source: recorded streams; other fields, lines that end otherwise, and data of
/// several lines are as in the HTML standard, section "Server-sent events".
#[derive(Debug)]
pub struct Events {
    bytes: BytesMut,
    /// How many of the bytes are known to have no end in them.
    searched: usize,
    /// The most bytes that are kept of anything whose end has not come.
    limit: usize,
    /// The lines so far of data that go on in the next line.
    data: BytesMut,
    /// In an object outside of events: how deep.
    object: Option<Nesting>,
    /// Whether what is under way has become too long.
    is_too_long: bool,
    /// Whether a line feed would belong to the end of the line before.
    is_after_return: bool,
    /// Whether a byte order mark can still come.
    is_at_start: bool,
    is_over: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self::within(MAX_ANSWER)
    }
}

/// What a search for an event found: `None` where more bytes are needed, `Some(None)` where the
/// search goes on.
type Found = Option<Option<Event>>;

impl Events {
    /// Keeps at most so many bytes of an event that has not come whole.
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

    /// More bytes have come.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// No more bytes will come: what is left is all there is of it.
    pub fn end(&mut self) {
        self.is_over = true;
    }

    /// The next thing that is there whole.
    pub fn pop(&mut self) -> Option<Event> {
        loop {
            let found = if self.object.is_some() { self.object() } else { self.line() };
            match found {
                Some(None) => {}
                Some(event) => return event,
                None => {
                    // A stream that is silent for long holds no memory meanwhile.
                    if self.bytes.is_empty() {
                        self.bytes = BytesMut::new();
                    }
                    return None;
                }
            }
        }
    }

    /// Reads on in an object.
    fn object(&mut self) -> Found {
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

    /// Reads a line, or the beginning of an object.
    fn line(&mut self) -> Found {
        if self.searched == 0 && !self.is_too_long {
            match self.skip_to_line()? {
                b'{' if self.data.is_empty() => {
                    self.object = Some(Nesting::default());
                    return Some(None);
                }
                b'{' => return Some(self.held()),
                // What stands around the items of a list.
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

    /// Goes to the first byte of the next line that is not white space, and returns it: a line feed
    /// where the line is empty.
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
        // The last data may stand without an empty line after them.
        first.or((self.is_over && !self.data.is_empty()).then_some(b'\n'))
    }

    /// What a line says.
    fn read(&mut self, line: &Bytes) -> Option<Event> {
        let text = line.trim_ascii();
        if text.is_empty() {
            return self.held();
        }
        if text == b"data" || text.starts_with(b"data:") {
            let data = text[b"data".len()..].strip_prefix(b":").unwrap_or_default().trim_ascii();
            return self.read_data(line.slice_ref(data));
        }
        if is_field(text) {
            return None;
        }
        // Whatever stands before it, an error is one.
        let object = memchr(b'{', line).filter(|at| begins_error(&line[*at..]));
        if let Some(at) = object {
            let mut bytes = BytesMut::from(&line[at..]);
            bytes.unsplit(self.bytes.split());
            self.bytes = bytes;
            self.is_after_return = false;
        }
        let stray = line[..object.unwrap_or(line.len())].trim_ascii();
        Some(Event::Stray(line.slice_ref(stray)))
    }

    /// What a line of data says. Gemini's are whole in one line, and wait for nothing; a line with
    /// only the beginning of an object waits for the empty one that ends the event.
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

    /// The data of which all lines have come.
    fn held(&mut self) -> Option<Event> {
        let data = self.data.split().freeze();
        (!data.is_empty()).then_some(Event::Data(data))
    }

    /// Takes the first bytes.
    fn take(&mut self, end: usize) -> Bytes {
        self.searched = 0;
        self.bytes.split_to(end).freeze()
    }

    /// Keeps what has come until more does.
    fn wait(&mut self) {
        self.searched = self.bytes.len();
        if self.searched > self.limit {
            (self.bytes, self.searched) = (BytesMut::new(), 0);
            self.is_too_long = true;
        }
    }
}

/// Whether a line is a comment or a field that says nothing here.
fn is_field(line: &[u8]) -> bool {
    let name = &line[..memchr(b':', line).unwrap_or(line.len())];
    matches!(name, b"" | b"event" | b"id" | b"retry")
}

/// Whether what begins with a brace can be an error's envelope.
fn begins_error(object: &[u8]) -> bool {
    let inner = object[1..].trim_ascii();
    inner.is_empty() || inner.starts_with(b"\"error\"")
}

#[cfg(test)]
mod tests;
