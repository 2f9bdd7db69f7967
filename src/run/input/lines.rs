//! Lines of text or JSON.

use std::io::{BufRead, BufReader, Read};

use super::{Content, Input, InputError, Position, PositionedReader, Record};

/// Reads lines. Blank ones are skipped.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    input: &'a Input,
    reader: BufReader<PositionedReader>,
    /// The number of the last line that was read.
    line: u64,
}

impl<'a> Lines<'a> {
    pub(super) fn new(input: &'a Input) -> Self {
        Self { input, reader: BufReader::with_capacity(64 << 10, input.reader()), line: 0 }
    }

    pub(super) fn next(&mut self) -> Option<Result<Record, InputError>> {
        loop {
            match self.next_line().transpose()? {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    let position = Position::Line(self.line);
                    return Some(Ok(Record { position, content: Content::Line(line) }));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<String>, InputError> {
        let input = self.input;
        let mut bytes = Vec::new();
        let limit = input.max_record as u64 + 2;
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes);
        read.map_err(|error| input.unreadable(error))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        if bytes.len() > input.max_record {
            return Err(input.too_long(self.line));
        }
        input.text(self.line, bytes).map(Some)
    }
}
