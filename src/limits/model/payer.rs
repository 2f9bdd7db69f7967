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

/// The same, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limits) enum PayerRef<'a> {
    Labelled(&'a str),
    Key(&'a [u8; 32]),
}

impl Payer {
    pub(in crate::limits) fn borrowed(&self) -> PayerRef<'_> {
        match self {
            Self::Labelled(label) => PayerRef::Labelled(label),
            Self::Key(digest) => PayerRef::Key(digest),
        }
    }

    /// A name that no other payer has, unlike the one that is displayed.
    pub(in crate::limits) fn whole_name(&self) -> String {
        match self {
            Self::Labelled(label) => format!("label:{label}"),
            Self::Key(digest) => digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// The label.
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::Labelled(label) => Some(label),
            Self::Key(_) => None,
        }
    }
}

impl Hash for Payer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

impl Hash for PayerRef<'_> {
    /// Hashes half of the SHA-256. Finding many keys with the same half is infeasible.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Labelled(label) => label.hash(state),
            Self::Key(digest) => state.write(&digest[..16]),
        }
    }
}

impl From<PayerRef<'_>> for Payer {
    fn from(payer: PayerRef<'_>) -> Self {
        match payer {
            PayerRef::Labelled(label) => Self::Labelled(label.into()),
            PayerRef::Key(digest) => Self::Key(*digest),
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
