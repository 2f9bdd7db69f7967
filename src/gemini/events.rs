//! Server-sent events, as Gemini writes them.

use bytes::{Bytes, BytesMut};

use super::{Error, client::MAX_ANSWER};

/// Cuts a stream of bytes into the data of its events, however the bytes are cut themselves.
///
/// An event of Gemini's is one line, `data: {…}`, and an empty one; lines end with CR LF. Source:
/// recorded streams; other fields and lines that end otherwise are as in the HTML standard, section
/// "Server-sent events".
#[derive(Debug, Default)]
pub struct Events {
    bytes: BytesMut,
    /// How many of the bytes are known to have no end of a line in them.
    searched: usize,
}

impl Events {
    /// More bytes have come.
    ///
    /// # Errors
    /// An [`Error`] where they are more than the longest event.
    pub fn extend(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > MAX_ANSWER { Err(Error::too_long()) } else { Ok(()) }
    }

    /// The data of the next event that is there whole.
    pub fn pop(&mut self) -> Option<Bytes> {
        while let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') {
            let line = self.bytes.split_to(self.searched + end + 1).freeze();
            self.searched = 0;
            if let Some(data) = data(&line) {
                return Some(data);
            }
        }
        self.searched = self.bytes.len();
        None
    }

    /// What is left at the end: an event whose line was not ended, or what is no event at all.
    pub fn rest(&mut self) -> Option<Bytes> {
        let rest = self.bytes.split().freeze();
        self.searched = 0;
        data(&rest).or_else(|| (!rest.trim_ascii().is_empty()).then_some(rest))
    }
}

/// What a line says that has data.
fn data(line: &Bytes) -> Option<Bytes> {
    let data = line.strip_prefix(b"data:")?.trim_ascii();
    Some(line.slice_ref(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<Bytes> {
        let mut events = Events::default();
        let mut all = Vec::new();
        for piece in pieces {
            events.extend(piece.as_ref()).unwrap();
            all.extend(std::iter::from_fn(|| events.pop()));
        }
        all.extend(events.rest());
        all
    }

    #[test]
    fn events_are_found_wherever_the_bytes_are_cut() {
        let stream = "data: {\"a\":1}\r\n\r\n: comment\nevent: x\ndata:{\"ß\":2}\n\ndata: last";
        let expected = ["{\"a\":1}", "{\"ß\":2}", "last"].map(str::as_bytes);
        assert_eq!(read([stream]), expected);
        assert_eq!(read(stream.as_bytes().chunks(1)), expected);
        for cut in 0..stream.len() {
            let (one, other) = stream.as_bytes().split_at(cut);
            assert_eq!(read([one, other]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn an_event_without_an_end_is_cut_off() {
        let mut events = Events::default();
        let piece = vec![b' '; MAX_ANSWER / 4];
        for _ in 0..4 {
            events.extend(&piece).unwrap();
            assert_eq!(events.pop(), None);
        }
        assert!(events.extend(b" ").is_err());
    }

    #[test]
    fn what_is_no_event_is_what_is_left() {
        let error = "{\"error\":{\"code\":503}}";
        assert_eq!(read([error]), [error.as_bytes()]);
        assert_eq!(read(["\r\n"]), [] as [&[u8]; 0]);
    }
}
