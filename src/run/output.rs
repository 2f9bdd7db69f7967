//! The output: results in the order of the items, as lines of JSON or as a table.
//!
//! A file is written beside its final name, as `….part`, and renamed once it is complete: a file with the
//! final name is always whole.

mod table;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::input::{Input, InputError};
use super::result::ItemResult;
use super::upload::Upload;
use table::ResultTable;

/// How much is collected before it is written, in bytes.
const CHUNK: usize = 64 << 10;

/// The form of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// The result of each item as JSON on a line
    Jsonl,
    /// A table with the input's columns and the answers
    Csv,
}

/// Where results are written.
#[derive(Debug)]
pub struct Output<'a> {
    target: Target,
    form: Form<'a>,
    /// Whole lines that are not written yet.
    waiting: Vec<u8>,
}

#[derive(Debug)]
enum Target {
    Standard(io::Stdout),
    File { path: PathBuf, part: PathBuf, file: File },
}

#[derive(Debug)]
enum Form<'a> {
    Lines,
    Table(ResultTable<'a>),
}

/// Why a result was not written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The output cannot be written.
    #[error("{name}: {error}")]
    Unwritable {
        /// Its name.
        name: String,
        /// What the system says.
        error: io::Error,
    },
    /// The input, whose columns are repeated, cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
}

/// Whether the output is standard output.
pub fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// A name beside that of the output, which it begins with.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Refuses an output that is not a file which may be replaced: a device, a directory, or the input, if there is
/// one.
///
/// # Errors
/// What is wrong with it.
pub fn check_replaceable(output: &Path, input: Option<&Input>) -> Result<(), String> {
    if is_standard(output) {
        return Ok(());
    }
    let name = output.display();
    for path in [output.to_owned(), beside(output, ".part")] {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            return Err(format!("{} is {what}: name another output", path.display()));
        }
        let identity = input.and_then(Input::identity);
        if identity == Some((metadata.dev(), metadata.ino())) {
            return Err(format!("the output {name} would replace the input: name another output"));
        }
    }
    Ok(())
}

/// Removes what was written of an output that is not complete.
///
/// # Errors
/// [`OutputError`] if it cannot be removed.
pub fn remove_part(path: &Path) -> Result<(), OutputError> {
    if is_standard(path) {
        return Ok(());
    }
    let part = beside(path, ".part");
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OutputError::Unwritable { name: part.display().to_string(), error })
        }
        _ => Ok(()),
    }
}

impl<'a> Output<'a> {
    /// Begins an output. Without a format, the extension of its name decides. Only if an earlier run may
    /// have left a part of it, that is replaced.
    ///
    /// # Errors
    /// [`OutputError`] if it cannot be written.
    pub fn create(
        path: &Path,
        format: Option<OutputFormat>,
        upload: &'a Upload,
        replaces_part: bool,
    ) -> Result<Self, OutputError> {
        let target = Target::create(path, replaces_part)?;
        let mut waiting = Vec::new();
        let form = match format.unwrap_or_else(|| by_extension(path)) {
            OutputFormat::Jsonl => Form::Lines,
            OutputFormat::Csv => Form::Table(ResultTable::new(upload, &mut waiting)?),
        };
        Ok(Self { target, form, waiting })
    }

    /// Begins an output of lines that come as they are to be written.
    ///
    /// # Errors
    /// [`OutputError`] if it cannot be written.
    pub fn of_lines(path: &Path, replaces_part: bool) -> Result<Self, OutputError> {
        let target = Target::create(path, replaces_part)?;
        Ok(Self { target, form: Form::Lines, waiting: Vec::new() })
    }

    /// Adds a line that comes as it is to be written, without its end.
    ///
    /// # Errors
    /// [`OutputError`] if it cannot be written.
    pub fn add_line(&mut self, line: &[u8]) -> Result<(), OutputError> {
        self.waiting.extend_from_slice(line);
        self.waiting.push(b'\n');
        if self.waiting.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Adds the result of the next item.
    ///
    /// # Errors
    /// [`OutputError`] if it cannot be written.
    pub fn add(&mut self, line: &[u8], result: &ItemResult<'_>) -> Result<(), OutputError> {
        match &mut self.form {
            Form::Lines => return self.add_line(line),
            Form::Table(table) => table.add(result, &mut self.waiting)?,
        }
        if self.waiting.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Writes what was collected.
    ///
    /// # Errors
    /// [`OutputError`] if it cannot be written.
    pub fn flush(&mut self) -> Result<(), OutputError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.target.write(&waiting).map_err(|error| self.target.unwritable(error))
    }

    /// Whether the output appears on a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(&self.target, Target::Standard(output) if output.is_terminal())
    }

    /// Ends a complete output: gives the file its final name.
    ///
    /// # Errors
    /// [`OutputError`] if it cannot be written.
    pub fn finish(mut self) -> Result<(), OutputError> {
        self.flush()?;
        self.target.finish().map_err(|error| self.target.unwritable(error))
    }
}

impl Target {
    fn create(path: &Path, replaces_part: bool) -> Result<Self, OutputError> {
        if is_standard(path) {
            return Ok(Self::Standard(io::stdout()));
        }
        let part = beside(path, ".part");
        let unwritable =
            |error| OutputError::Unwritable { name: part.display().to_string(), error };
        let file = match replaces_part {
            true => File::create(&part),
            false => File::create_new(&part),
        };
        let file = file.map_err(unwritable)?;
        Ok(Self::File { path: path.to_owned(), part, file })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Standard(output) => {
                output.write_all(bytes)?;
                output.flush()
            }
            Self::File { file, .. } => file.write_all(bytes),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        let Self::File { path, part, file } = self else { return Ok(()) };
        file.sync_all()?;
        fs::rename(part, &path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn unwritable(&self, error: io::Error) -> OutputError {
        let name = match self {
            Self::Standard(_) => "standard output".to_owned(),
            Self::File { part, .. } => part.display().to_string(),
        };
        OutputError::Unwritable { name, error }
    }
}

fn by_extension(path: &Path) -> OutputFormat {
    let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
    match extension.is_some_and(|extension| extension == "csv") {
        true => OutputFormat::Csv,
        false => OutputFormat::Jsonl,
    }
}

#[cfg(test)]
mod tests;
