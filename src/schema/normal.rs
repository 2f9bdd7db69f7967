//! The caller's schema in one canonical form, which everything else reads.
//!
//! Callers write JSON Schema of several drafts, OpenAPI's and Gemini's relatives of it, and mixtures.
//! What they write is rewritten once into draft 2020-12, and both what Gemini is sent and the check
//! of its answers are made from that: they cannot differ in how they read it. In the canonical form
//! every reference is a `$ref` with a JSON Pointer into the document, no schema has a name, and the
//! only keywords are those of the draft and `propertyOrdering`.
//!
//! Unknown keywords are left out. So are the keywords that the declared draft does not have.

mod definitions;
mod expression;
mod foreign;
mod keyword;
mod names;
mod places;
mod pointer;
mod rewrite;
mod scope;
mod wrapper;

use serde_json::Value;

use self::keyword::Draft;
use self::names::Names;
use self::places::Places;
use self::rewrite::Rewriter;
use self::scope::Scopes;
use super::document::{Limits, escape};
use super::work::Work;
use super::{NotCompiled, SchemaError, shorten};

pub(super) use self::pointer::{lookup, percent_decode};

/// A schema in canonical form.
pub(super) struct Normal {
    pub(super) document: Value,
    places: Places,
    /// From the caller's value to the schema in it.
    wrapping: String,
}

impl Normal {
    /// Rewrites a schema.
    ///
    /// # Errors
    /// [`NotCompiled::Unusable`] where it is no schema, declares a draft that is not known, or has a
    /// reference that leads to no schema in it.
    pub(super) fn of(value: &Value, limits: &Limits, work: &Work) -> Result<Self, NotCompiled> {
        let (schema, wrapping) = wrapper::unwrapped(value);
        let rewritten = rewritten(schema, limits, work);
        let (document, places) = rewritten.map_err(|error| moved(error, &wrapping))?;
        Ok(Self { document, places, wrapping })
    }

    /// An error found in the canonical form, with its place in the caller's value.
    pub(super) fn locate(&self, error: NotCompiled) -> NotCompiled {
        match error {
            NotCompiled::Unusable(error) => moved(self.places.locate(error).into(), &self.wrapping),
            stopped @ NotCompiled::Stopped(_) => stopped,
        }
    }
}

fn moved(error: NotCompiled, wrapping: &str) -> NotCompiled {
    match error {
        NotCompiled::Unusable(error) => {
            SchemaError::new(format!("{wrapping}{}", error.pointer), error.message).into()
        }
        stopped @ NotCompiled::Stopped(_) => stopped,
    }
}

fn rewritten(schema: &Value, limits: &Limits, work: &Work) -> Result<(Value, Places), NotCompiled> {
    let map = match schema {
        Value::Bool(true) => return Ok((Value::Bool(true), Places::default())),
        Value::Object(map) => map,
        _ => {
            let message = "the schema must be a JSON object that allows some value";
            return Err(SchemaError::new("", message).into());
        }
    };
    wrapper::check(map)?;
    let draft = declared(map.get("$schema"))?;
    let mut scopes = Scopes::of(Names::of(schema, draft, work)?, work)?;
    Rewriter::new(&mut scopes, limits, work).run()
}

/// A meta-schema of the caller's own may change what keywords mean, and is not fetched.
fn declared(uri: Option<&Value>) -> Result<Draft, SchemaError> {
    let refuse = |message: &str| Err(SchemaError::new("/$schema", message));
    match uri {
        None => Ok(Draft::Undeclared),
        Some(Value::String(uri)) => match Draft::named(uri) {
            Some(draft) => Ok(draft),
            None => refuse(
                "names no known draft of JSON Schema (4, 6, 7, 2019-09 or 2020-12); \
                 leave $schema out to use the keywords of all drafts",
            ),
        },
        Some(_) => refuse("is not the name of a draft of JSON Schema"),
    }
}
