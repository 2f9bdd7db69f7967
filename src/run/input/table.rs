//! Rows of a table with a header.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};

use super::{Content, Input, InputError, Position, PositionedReader, Record};

/// How much the reader of tables reads ahead, in bytes.
const READ_AHEAD: usize = 64 << 10;

/// Reads rows. Empty lines are skipped.
#[derive(Debug)]
pub(super) struct Table<'a> {
    input: &'a Input,
    reader: csv::Reader<BoundedReader>,
    header: Arc<Vec<String>>,
    record: ByteRecord,
    /// Where the last row begins.
    last: Position,
}

/// A reader with a limit on what is read for one record: a quote that is never closed would otherwise
/// make one record of the rest of the input.
#[derive(Debug)]
struct BoundedReader {
    reader: PositionedReader,
    left: usize,
}

impl Read for BoundedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let length = buffer.len().min(self.left);
        let length = self.reader.read(&mut buffer[..length])?;
        self.left -= length;
        Ok(length)
    }
}

impl<'a> Table<'a> {
    pub(super) fn new(input: &'a Input, delimiter: u8) -> Result<Self, InputError> {
        let reader = BoundedReader { reader: input.reader(), left: 0 };
        let reader = ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(READ_AHEAD)
            .from_reader(reader);
        let (header, record) = (Arc::default(), ByteRecord::new());
        let mut table = Self { input, reader, header, record, last: Position::Line(1) };
        match table.row()? {
            Some((_, header)) => table.header = Arc::new(header),
            None => return Err(input.invalid(None, "it has no header")),
        }
        Ok(table)
    }

    pub(super) fn header(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.header)
    }

    pub(super) fn next(&mut self) -> Option<Result<Record, InputError>> {
        let (position, fields) = match self.row().transpose()? {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        let columns = self.header.len();
        if fields.len() != columns {
            let count = fields.len();
            let fields = if count == 1 { "field" } else { "fields" };
            let message = format!("a row with {count} {fields}, under a header with {columns}");
            return Some(Err(self.input.invalid(Some(self.input.line(position)), message)));
        }
        Some(Ok(Record { position, content: Content::Row { header: self.header(), fields } }))
    }

    /// The next row, and where it begins.
    fn row(&mut self) -> Result<Option<(Position, Vec<String>)>, InputError> {
        let input = self.input;
        self.reader.get_mut().left = input.max_record.saturating_add(READ_AHEAD);
        let before = self.reader.position();
        let position = Position::AfterEmptyLines { line: before.line(), byte: before.byte() };
        let found = self.reader.read_byte_record(&mut self.record);
        let found = found.map_err(|error| match error.into_kind() {
            ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                input.too_long(input.line(position))
            }
            ErrorKind::Io(error) => input.unreadable(error),
            other => input.invalid(Some(input.line(position)), format!("{other:?}")),
        })?;
        if !found {
            self.check_end()?;
            return Ok(None);
        }
        if self.record.as_slice().len() > input.max_record {
            return Err(input.too_long(input.line(position)));
        }
        self.last = position;
        let text = |field: &[u8]| match std::str::from_utf8(field) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(input.not_utf8(input.line(position), error)),
        };
        let fields = self.record.iter().map(text).collect::<Result<_, _>>()?;
        Ok(Some((position, fields)))
    }

    /// Refuses a last record of several lines that ends within quotes: it would contain what was meant as
    /// further rows. The length of a record bounds what is read.
    fn check_end(&self) -> Result<(), InputError> {
        let Position::AfterEmptyLines { byte, .. } = self.last else { return Ok(()) };
        let start = self.input.start + byte;
        let length = self.input.size().saturating_sub(start);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut raw = vec![0; length.min(self.input.max_record.saturating_mul(2))];
        let read = self.input.file.read_at(&mut raw, start);
        let read = read.map_err(|error| self.input.unreadable(error))?;
        let raw = raw[..read].trim_ascii();
        let quotes = raw.iter().filter(|byte| **byte == b'"').count();
        if raw.contains(&b'\n') && quotes % 2 == 1 {
            let line = self.input.line(self.last);
            return Err(self.input.invalid(Some(line), "a quote is opened and never closed"));
        }
        Ok(())
    }
}
