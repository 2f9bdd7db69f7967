//! Reads files that settings name.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Reads a file of at most `most` bytes; `None` if it is larger.
///
/// # Errors
/// If it cannot be read, or is a pipe, a socket or a device: reading those may block forever.
pub fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= most).then_some(content))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_file_is_read_up_to_a_limit() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "1234").unwrap();
        assert_eq!(read(&path, 4).unwrap().as_deref(), Some(&b"1234"[..]));
        assert_eq!(read(&path, 3).unwrap(), None);
        let error = read(folder.path(), 3).unwrap_err();
        assert!(error.to_string().starts_with("Is a directory"), "{error}");
    }

    #[test]
    fn a_pipe_or_a_device_is_not_read() {
        let folder = TempDir::new().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [&*pipe, Path::new("/dev/zero")] {
            let error = read(path, 4).unwrap_err();
            assert_eq!(error.to_string(), "it is not a regular file");
        }
    }
}
