//! The records of an input: lines of text or JSON, or rows of a table.
//!
//! An input is read several times: to check it, to send it, and to repeat its columns in the output. What
//! can be read only once, such as a pipe, is copied to a temporary file first.

mod lines;
mod table;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::str::Utf8Error;
use std::sync::Arc;

use clap::ValueEnum;

use lines::Lines;
use table::Table;

/// The form of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// A JSON object on each line
    Jsonl,
    /// A table with a header, separated by commas
    Csv,
    /// A table with a header, separated by tabs
    Tsv,
    /// A prompt on each line
    Lines,
}

/// An input that can be read again and again.
#[derive(Debug)]
pub struct Input {
    /// How messages call it.
    name: String,
    file: Arc<File>,
    /// The device and the number of the file it comes from, if it is one.
    identity: Option<(u64, u64)>,
    format: InputFormat,
    /// Where it begins: after a byte order mark.
    start: u64,
    /// The longest record, in bytes.
    max_record: usize,
}

/// One record, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub position: Position,
    pub content: Content,
}

/// Where a record begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// On the line with this number, from 1.
    Line(u64),
    /// After the empty lines that begin at a line and at a byte, from the start.
    AfterEmptyLines { line: u64, byte: u64 },
}

/// What a record contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A line without its end.
    Line(String),
    /// A row of a table, with as many fields as its header.
    Row { header: Arc<Vec<String>>, fields: Vec<String> },
}

/// Why an input cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be read.
    #[error("{name}: {error}")]
    Unreadable {
        /// Its name.
        name: String,
        /// What the system says.
        error: io::Error,
    },
    /// It has not the expected form.
    #[error("{name}{}: {message}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Invalid {
        /// Its name.
        name: String,
        /// The number of the line, from 1.
        line: Option<u64>,
        /// What is wrong.
        message: String,
    },
}

impl Input {
    /// Opens an input; `-` is standard input. Without a format, the name's extension or the first byte
    /// decides: a brace begins lines of JSON.
    ///
    /// # Errors
    /// [`InputError`] if it cannot be read or is not in UTF-8.
    pub fn open(
        path: &Path,
        format: Option<InputFormat>,
        max_record: usize,
    ) -> Result<Self, InputError> {
        let is_standard = path == Path::new("-");
        let name = if is_standard { "standard input".into() } else { path.display().to_string() };
        let opened = if is_standard { spooled(io::stdin().lock()) } else { open(path) };
        let file = opened.map_err(|error| InputError::Unreadable { name: name.clone(), error })?;
        let format = format.or_else(|| by_extension(path));
        let lines = InputFormat::Lines;
        let file = Arc::new(file);
        let identity = identity(path, is_standard);
        let mut input = Self { name, file, identity, format: lines, start: 0, max_record };
        let mut head = [0; 1024];
        let head = input.reader().read(&mut head).map(|length| &head[..length]);
        let head = head.map_err(|error| input.unreadable(error))?;
        if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
            return Err(input.invalid(None, "it is in UTF-16; UTF-8 is expected"));
        }
        let text = head.strip_prefix(b"\xef\xbb\xbf");
        input.start = if text.is_some() { 3 } else { 0 };
        let is_json = text.unwrap_or(head).trim_ascii_start().first() == Some(&b'{');
        let guessed = if is_json { InputFormat::Jsonl } else { InputFormat::Lines };
        input.format = format.unwrap_or(guessed);
        Ok(input)
    }

    /// How messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device and the number of the file it comes from; `None` if they are not known.
    pub fn identity(&self) -> Option<(u64, u64)> {
        self.identity
    }

    /// Its form.
    pub fn format(&self) -> InputFormat {
        self.format
    }

    /// The longest record, in bytes.
    pub fn max_record(&self) -> usize {
        self.max_record
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Reads it from its beginning.
    ///
    /// # Errors
    /// [`InputError`] if the header of a table cannot be read.
    pub fn records(&self) -> Result<Records<'_>, InputError> {
        let reader = match self.format {
            InputFormat::Csv => Reader::Table(Table::new(self, b',')?),
            InputFormat::Tsv => Reader::Table(Table::new(self, b'\t')?),
            InputFormat::Jsonl | InputFormat::Lines => Reader::Lines(Lines::new(self)),
        };
        Ok(Records { reader })
    }

    /// The columns of a table; `None` if it is none.
    ///
    /// # Errors
    /// [`InputError`] if the header cannot be read.
    pub fn header(&self) -> Result<Option<Arc<Vec<String>>>, InputError> {
        Ok(match self.records()?.reader {
            Reader::Table(table) => Some(table.header()),
            Reader::Lines(_) => None,
        })
    }

    /// The number of the line on which a record begins, from 1.
    pub fn line(&self, position: Position) -> u64 {
        let (mut line, mut byte) = match position {
            Position::Line(line) => return line,
            Position::AfterEmptyLines { line, byte } => (line, self.start + byte),
        };
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.file.read_at(&mut buffer, byte) {
            let read = &buffer[..length];
            let empty = read.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            line += read[..empty].iter().filter(|byte| **byte == b'\n').count() as u64;
            if empty < length {
                break;
            }
            byte += length as u64;
        }
        line
    }

    fn reader(&self) -> PositionedReader {
        PositionedReader { file: Arc::clone(&self.file), offset: self.start }
    }

    /// The error for a line.
    pub fn invalid(&self, line: Option<u64>, message: impl Into<String>) -> InputError {
        InputError::Invalid { name: self.name.clone(), line, message: message.into() }
    }

    fn unreadable(&self, error: io::Error) -> InputError {
        InputError::Unreadable { name: self.name.clone(), error }
    }

    fn too_long(&self, line: u64) -> InputError {
        let limit = self.max_record;
        self.invalid(Some(line), format!("a record of more than {limit} bytes (MAX_BODY_BYTES)"))
    }

    fn text(&self, line: u64, bytes: Vec<u8>) -> Result<String, InputError> {
        String::from_utf8(bytes).map_err(|error| self.not_utf8(line, error.utf8_error()))
    }

    fn not_utf8(&self, line: u64, error: Utf8Error) -> InputError {
        let byte = error.valid_up_to() + 1;
        self.invalid(Some(line), format!("byte {byte} of the text is not UTF-8"))
    }
}

/// The records of an input, in order.
#[derive(Debug)]
pub struct Records<'a> {
    reader: Reader<'a>,
}

#[derive(Debug)]
enum Reader<'a> {
    Lines(Lines<'a>),
    Table(Table<'a>),
}

impl Iterator for Records<'_> {
    type Item = Result<Record, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.reader {
            Reader::Lines(lines) => lines.next(),
            Reader::Table(table) => table.next(),
        }
    }
}

/// Reads a file from a position of its own, so that one open file has several readers.
#[derive(Debug)]
struct PositionedReader {
    file: Arc<File>,
    offset: u64,
}

impl Read for PositionedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

fn identity(path: &Path, is_standard: bool) -> Option<(u64, u64)> {
    let metadata = if is_standard {
        File::from(io::stdin().as_fd().try_clone_to_owned().ok()?).metadata()
    } else {
        path.metadata()
    };
    metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if kind.is_file() { Ok(file) } else { spooled(file) }
}

/// A copy in a temporary file without a name, which only this process can read.
fn spooled(mut reader: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut reader, &mut file)?;
    Ok(file)
}

fn by_extension(path: &Path) -> Option<InputFormat> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match &*extension {
        "jsonl" | "ndjson" | "json" => Some(InputFormat::Jsonl),
        "csv" => Some(InputFormat::Csv),
        "tsv" | "tab" => Some(InputFormat::Tsv),
        "txt" => Some(InputFormat::Lines),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
