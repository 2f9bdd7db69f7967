//! The kinds of value that Gemini's schemas distinguish.

use crate::schema::shape::{Shape, Types};

/// One kind of value that a shape allows. Null is handled separately, as `nullable` or as a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Any,
    Reference,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Any | Self::Reference => None,
            Self::Boolean => Some("boolean"),
            Self::Integer => Some("integer"),
            Self::Number => Some("number"),
            Self::String => Some("string"),
            Self::Array => Some("array"),
            Self::Object => Some("object"),
        }
    }

    /// The kinds that a shape allows, in the order in which JSON Schema lists the types.
    pub(super) fn of(shape: &Shape) -> Vec<Self> {
        if shape.reference.is_some() {
            return vec![Self::Reference];
        }
        if shape.types == Types::ALL && shape.values.is_none() {
            return vec![Self::Any];
        }
        let numbers = shape.types & Types::NUMBER;
        let number = if numbers == Types::INTEGER { Self::Integer } else { Self::Number };
        let of_types = [
            (Types::BOOLEAN, Self::Boolean),
            (Types::NUMBER, number),
            (Types::STRING, Self::String),
            (Types::ARRAY, Self::Array),
            (Types::OBJECT, Self::Object),
        ];
        of_types
            .into_iter()
            .filter(|(types, _)| shape.types.intersects(*types))
            .map(|(_, kind)| kind)
            .collect()
    }

    pub(super) fn types(self) -> Types {
        match self {
            Self::Any | Self::Reference => Types::ALL,
            Self::Boolean => Types::BOOLEAN,
            Self::Integer => Types::INTEGER,
            Self::Number => Types::NUMBER,
            Self::String => Types::STRING,
            Self::Array => Types::ARRAY,
            Self::Object => Types::OBJECT,
        }
    }
}
