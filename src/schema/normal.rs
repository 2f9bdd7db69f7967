//! Rewrites the caller's schema to a canonical form, which all other modules read.
//!
//! Callers write several drafts of JSON Schema, the variants of OpenAPI and Gemini, and mixtures of
//! them. All are rewritten to draft 2020-12. Both the schema sent to Gemini and the check of
//! answers come from the canonical form, so they cannot interpret it differently. In this form
//! every reference is a `$ref` with a JSON Pointer into the document, no schema has a name, and the
//! only keywords are those of the draft and `propertyOrdering`.
//!
//! Unknown keywords are dropped, and so are keywords that the declared draft does not have.

mod definitions;
mod expression;
mod foreign;
mod keyword;
mod names;
mod places;
mod rewrite;
mod scope;
mod wrapper;

use serde_json::Value;

use self::keyword::Draft;
use self::names::Names;
use self::places::Places;
use self::rewrite::Rewriter;
use self::scope::Scopes;
use super::document::SchemaLimits;
use super::work::Work;
use super::{NotCompiled, SchemaError, shorten};

/// A schema in canonical form.
pub(super) struct Normal {
    pub(super) document: Value,
    places: Places,
    /// The JSON Pointer from the caller's value to the schema in it.
    wrapping: String,
}

impl Normal {
    /// Rewrites a schema.
    ///
    /// # Errors
    /// [`NotCompiled::Unusable`] when it is not a schema, declares an unknown draft, or has a
    /// reference to something that is not a schema in it.
    pub(super) fn of(
        value: &Value,
        limits: &SchemaLimits,
        work: &Work,
    ) -> Result<Self, NotCompiled> {
        let (schema, wrapping) = wrapper::unwrapped(value);
        let rewritten = rewritten(schema, limits, work);
        let (document, places) = rewritten.map_err(|error| moved(error, &wrapping))?;
        Ok(Self { document, places, wrapping })
    }

    /// Converts the place of an error in the canonical form to the place in the caller's value.
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

fn rewritten(
    schema: &Value,
    limits: &SchemaLimits,
    work: &Work,
) -> Result<(Value, Places), NotCompiled> {
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

/// The declared draft. A custom meta-schema is refused: it may change the meaning of keywords, and
/// is not fetched.
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
