//! Maps places in the canonical schema to places in the caller's.

use std::collections::HashMap;

use crate::schema::SchemaError;

/// The places that differ between the two schemas.
#[derive(Debug, Default)]
pub(in crate::schema) struct Places {
    /// The caller's JSON Pointers, by the canonical ones.
    sources: HashMap<String, String>,
}

impl Places {
    pub(super) fn add(&mut self, place: &str, source: &str) {
        self.sources.insert(place.to_owned(), source.to_owned());
    }

    /// The error with the place in the caller's schema.
    pub(in crate::schema) fn locate(&self, error: SchemaError) -> SchemaError {
        SchemaError { pointer: self.source(&error.pointer), message: error.message }
    }

    fn source(&self, place: &str) -> String {
        let mut end = place.len();
        loop {
            let (around, rest) = place.split_at(end);
            match (self.sources.get(around), around.rfind('/')) {
                (Some(source), _) => return format!("{source}{rest}"),
                (None, Some(next)) => end = next,
                (None, None) => return place.to_owned(),
            }
        }
    }
}
