//! Records why schemas allow no value, and where.

use super::{Parser, Stop};
use crate::schema::SchemaError;
use crate::schema::empty::Why;
use crate::schema::shape::Node;

/// The state of a node and a part before the node is narrowed by the part.
pub(super) struct Emptied {
    had_value: bool,
    part_has_value: bool,
    /// The definition that the part refers to.
    target: Option<String>,
}

impl Emptied {
    pub(super) fn before(node: &Node, part: &Node) -> Self {
        let target = match &part.shapes[..] {
            [only] => only.reference.clone(),
            _ => None,
        };
        Self { had_value: !node.is_never(), part_has_value: !part.is_never(), target }
    }
}

impl Parser<'_> {
    /// Why the schema at `pointer` allows no value.
    pub(super) fn cause(&self, pointer: &str) -> SchemaError {
        let known = self.causes.get(pointer).cloned();
        known.unwrap_or_else(|| SchemaError::new(pointer, "allows no value"))
    }

    /// Removes the alternatives that allow nothing, once all keywords of a schema are read.
    pub(super) fn prune(&mut self, node: &mut Node, pointer: &str) -> Result<(), Stop> {
        let why = match &node.shapes[..] {
            [only] => only.why_empty(),
            _ => None,
        };
        let had_value = !node.is_never();
        node.prune(self)?;
        if had_value && node.is_never() {
            self.note_cause(
                pointer,
                why.unwrap_or(Why::Contradiction("its parts contradict each other")),
            );
        }
        Ok(())
    }

    /// Notes why a node allows nothing after it was narrowed by a part. `places` are the pointers
    /// of the node and the part.
    pub(super) fn note_emptied(&mut self, emptied: &Emptied, places: (&str, &str)) {
        let (pointer, place) = places;
        if !emptied.had_value {
            return;
        }
        let target = emptied.target.as_deref();
        let never = target.filter(|name| self.definitions.get(*name).is_some_and(Node::is_never));
        let cause = match never {
            Some(target) => self.cause(target),
            None if emptied.part_has_value => {
                SchemaError::new(place, "allows no value that the keywords beside it allow")
            }
            None => self.cause(place),
        };
        self.causes.insert(pointer.to_owned(), cause);
    }

    pub(super) fn note_cause(&mut self, pointer: &str, why: Why) {
        let cause = match why {
            Why::Contradiction(reason) => {
                SchemaError::new(pointer, format!("allows no value: {reason}"))
            }
            Why::Inside(path) => {
                let place = format!("{pointer}{path}");
                if self.document.root.pointer(&place).is_some() {
                    self.cause(&place).of_required()
                } else {
                    let message = format!("allows no value: its parts leave none for {path}");
                    SchemaError::new(pointer, message).of_required()
                }
            }
        };
        self.causes.insert(pointer.to_owned(), cause);
    }
}
