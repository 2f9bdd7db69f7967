//! Why schemas allow no value, and where they say so.

use super::{Parser, Stop};
use crate::schema::SchemaError;
use crate::schema::empty::Why;
use crate::schema::shape::Node;

impl Parser<'_> {
    /// Why the schema at `pointer` allows no value.
    pub(super) fn cause(&self, pointer: &str) -> SchemaError {
        let known = self.causes.get(pointer).cloned();
        known.unwrap_or_else(|| SchemaError::new(pointer, "allows no value"))
    }

    /// Leaves out the alternatives that allow nothing, once all is known that a schema says.
    pub(super) fn prune(&mut self, node: &mut Node, pointer: &str) -> Result<(), Stop> {
        let why = match &node.shapes[..] {
            [only] => only.why_empty(),
            _ => None,
        };
        let had_value = !node.is_never();
        node.prune(&mut self.steps)?;
        if had_value && node.is_never() {
            self.note_cause(
                pointer,
                why.unwrap_or(Why::Contradiction("its parts contradict each other")),
            );
        }
        Ok(())
    }

    pub(super) fn note_cause(&mut self, pointer: &str, why: Why) {
        const REQUIRED: &str = "; yet one is required";
        let cause = match why {
            Why::Contradiction(reason) => {
                SchemaError::new(pointer, format!("allows no value: {reason}"))
            }
            Why::Inside(path) => {
                let place = format!("{pointer}{path}");
                if self.document.root.pointer(&place).is_some() {
                    let SchemaError { pointer, message } = self.cause(&place);
                    let message = message.trim_end_matches(REQUIRED);
                    SchemaError::new(pointer, format!("{message}{REQUIRED}"))
                } else {
                    let message =
                        format!("allows no value: its parts leave none for {path}{REQUIRED}");
                    SchemaError::new(pointer, message)
                }
            }
        };
        self.causes.insert(pointer.to_owned(), cause);
    }
}
