//! Reads `.env`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Read};
use std::path::Path;

use crate::regular_file;

/// The file with settings, in the working directory. dotenvy's own search would go on in the directories
/// above.
const FILE: &str = ".env";

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// `.env` cannot be read. The error quotes no line, which may contain a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(".env: {0}")]
pub struct InvalidFile(String);

impl InvalidFile {
    pub(super) fn missing() -> Self {
        Self("the file is missing".to_owned())
    }

    fn in_line(line: usize, problem: &str) -> Self {
        Self(format!("line {line}: {problem}"))
    }
}

/// The variables of `.env`.
#[derive(Default)]
pub(super) struct SettingsFile {
    variables: BTreeMap<String, Variable>,
    /// The names that are set again, with the lines at which that begins. They have no effect.
    pub(super) repeated: Vec<(String, usize)>,
}

/// A variable of `.env`.
pub(super) struct Variable {
    pub(super) value: String,
    /// The line at which it begins, from 1.
    pub(super) line: usize,
}

impl SettingsFile {
    /// Reads the file; `None` if there is none.
    pub(super) fn read() -> Result<Option<Self>, InvalidFile> {
        match regular_file::read(Path::new(FILE), MAX_FILE) {
            Ok(Some(content)) => Self::parse(content).map(Some),
            Ok(None) => Err(InvalidFile(format!("it has more than {MAX_FILE} bytes"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(InvalidFile(error.to_string())),
        }
    }

    pub(super) fn parse(content: Vec<u8>) -> Result<Self, InvalidFile> {
        let mut text = String::from_utf8(content).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
            InvalidFile::in_line(line, "expected text in UTF-8")
        })?;
        // dotenvy rejects white space at the end of a file without a last line break.
        text.push('\n');
        let text = text.trim_start_matches('\u{feff}');
        let is_empty = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
        let read = Cell::new(0);
        let mut variables =
            dotenvy::from_read_iter(LineByLine { rest: text.as_bytes(), read: &read });
        // The lines that dotenvy has not read.
        let (mut lines, mut number) = (text.lines(), 0);
        let mut file = Self::default();
        loop {
            lines.by_ref().take(read.get() - number).for_each(drop);
            number = read.get();
            let line = number + lines.clone().take_while(is_empty).count() + 1;
            let Some(variable) = variables.next() else { return Ok(file) };
            let (name, value) = variable.map_err(|_| {
                let expected =
                    "expected NAME=value, with quotes around a value that contains spaces or quotes";
                InvalidFile::in_line(line, expected)
            })?;
            if value.contains('\0') {
                return Err(InvalidFile::in_line(line, "it contains a NUL byte"));
            }
            match file.variables.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(Variable { value, line });
                }
                Entry::Occupied(entry) => file.repeated.push((entry.key().clone(), line)),
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Variable> {
        self.variables.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }
}

/// Gives one line at each read and counts them, so that it is known how far dotenvy has read.
struct LineByLine<'a> {
    rest: &'a [u8],
    read: &'a Cell<usize>,
}

impl Read for LineByLine<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.split_inclusive(|&byte| byte == b'\n').next().unwrap_or_default();
        let (piece, rest) = self.rest.split_at(line.len().min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(piece);
        self.rest = rest;
        self.read.set(self.read.get() + usize::from(piece.ends_with(b"\n")));
        Ok(piece.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SettingsFile, InvalidFile> {
        SettingsFile::parse(text.as_bytes().to_vec())
    }

    fn shown(text: &str) -> Vec<(String, String, usize)> {
        let file = parse(text).unwrap();
        let variables = file.variables.into_iter();
        variables.map(|(name, Variable { value, line })| (name, value, line)).collect()
    }

    #[test]
    fn each_variable_has_the_line_at_which_it_begins() {
        let long = "x".repeat(20_000);
        let text = format!(
            "\u{feff}A=1\r\n\n# B=2\n  # C\n \nD='a\nb' # more\nexport E=\"${{A}}2\"\nF={long}\nG=7  "
        );
        let expected =
            [("A", "1", 1), ("D", "a\nb", 6), ("E", "12", 8), ("F", &long, 9), ("G", "7", 10)];
        let expected =
            expected.map(|(name, value, line)| (name.to_owned(), value.to_owned(), line));
        assert_eq!(shown(&text), expected);
        assert!(shown("").is_empty());
    }

    #[test]
    fn of_variables_with_the_same_name_the_first_holds() {
        let file = parse("A=1\nB=2\nA=3\n").unwrap();
        assert_eq!(file.get("A").unwrap().value, "1");
        assert_eq!(file.repeated, [("A".to_owned(), 3)]);
    }

    #[test]
    fn an_error_names_the_line_and_quotes_nothing() {
        for (text, line) in [
            ("A=1\n\nthe-secret\nB=2\n", 3),
            ("A=1\n# B\nB=the secret\n", 3),
            ("A=1\nB='the-secret\nC=3\n", 2),
            ("A=the-secret\0\n", 1),
            ("A=1\n=the-secret", 2),
        ] {
            let error = parse(text).err().unwrap().to_string();
            assert!(error.starts_with(&format!(".env: line {line}: ")), "{text:?}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let error = SettingsFile::parse(b"A=1\nB=\xff".to_vec()).err().unwrap();
        assert_eq!(error.to_string(), ".env: line 2: expected text in UTF-8");
    }
}
