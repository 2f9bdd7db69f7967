//! References that lead back to themselves.

use serde_json::Value;

use super::keywords::list;
use super::{Parser, Stop};
use crate::schema::SchemaError;
use crate::schema::document::REFERENCES;

impl Parser<'_> {
    /// Refuses a definition that refers to itself at the same place, outside properties and items.
    pub(super) fn ground(&mut self, target: &str, pointer: &str) -> Result<(), Stop> {
        match self.grounded.get(target) {
            Some(true) => return Ok(()),
            Some(false) => {
                let message = "refers to itself without going into a property or an item";
                return Err(SchemaError::new(pointer, message).into());
            }
            None => {}
        }
        self.grounded.insert(target.to_owned(), false);
        self.ground_parts(self.document.at(target), target)?;
        self.grounded.insert(target.to_owned(), true);
        Ok(())
    }

    fn ground_parts(&mut self, schema: &Value, pointer: &str) -> Result<(), Stop> {
        self.take(1)?;
        let Value::Object(map) = schema else { return Ok(()) };
        for keyword in REFERENCES {
            if let Some(reference) = map.get(keyword).and_then(Value::as_str) {
                let place = format!("{pointer}/{keyword}");
                let target = self.document.resolve(reference, &place)?;
                self.ground(&target, &place)?;
            }
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            for (i, schema) in list(map, keyword).iter().enumerate() {
                self.ground_parts(schema, &format!("{pointer}/{keyword}/{i}"))?;
            }
        }
        Ok(())
    }
}
