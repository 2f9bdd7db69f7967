//! The lines of a block as they are stored. Prompts compress to a half or a third even at zstd's lowest
//! level, which takes less time than writing what it saves.

use bytes::Bytes;

use super::StoreError;

const LEVEL: i32 = 1;

/// The largest block that is read, in bytes: more than any that an upload makes.
const MAX_BLOCK: i64 = 1 << 30;

pub(super) fn compress(lines: &[u8]) -> Result<Vec<u8>, StoreError> {
    let compress = || {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        // A disk that changes it is noticed.
        compressor.include_checksum(true)?;
        compressor.compress(lines)
    };
    compress().map_err(|error| StoreError::Unavailable(format!("no memory: {error}")))
}

/// `bytes` is their size before they were compressed.
pub(super) fn decompress(compressed: &[u8], bytes: i64) -> Result<Bytes, StoreError> {
    let damaged = || StoreError::Damaged("a block of items is unreadable".to_owned());
    if !(0..=MAX_BLOCK).contains(&bytes) {
        return Err(damaged());
    }
    let lines = zstd::bulk::decompress(compressed, bytes as usize).map_err(|_| damaged())?;
    (lines.len() as i64 == bytes).then(|| lines.into()).ok_or_else(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read_as_it_was_written() {
        for lines in [&b""[..], b"{}\n", &[b'x'; 300_000]] {
            let compressed = compress(lines).unwrap();
            assert_eq!(decompress(&compressed, lines.len() as i64).unwrap(), lines);
        }
    }

    #[test]
    fn a_damaged_block_is_an_error() {
        let compressed = compress(b"{\"a\": 1}\n").unwrap();
        for (compressed, bytes) in
            [(&compressed[..], 8), (&compressed, 10), (&compressed, -1), (&compressed[..5], 9)]
        {
            assert!(matches!(decompress(compressed, bytes), Err(StoreError::Damaged(_))));
        }
    }
}
