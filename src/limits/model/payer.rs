//! Whom Gemini charges for a call.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Whom Gemini charges, without the key itself: a label that all keys of one project share, or the
/// digest of a single key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Payer {
    /// All keys with this label.
    Labelled(Arc<str>),
    /// The key with this SHA-256.
    Key([u8; 32]),
}

impl Hash for Payer {
    /// Hashes half of the SHA-256. Finding many keys with the same half is infeasible.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Labelled(label) => label.hash(state),
            Self::Key(digest) => state.write(&digest[..16]),
        }
    }
}

impl fmt::Display for Payer {
    /// Writes the label, or the first 8 hex digits of the key's SHA-256.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labelled(label) => f.write_str(label),
            Self::Key(digest) => digest[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}
