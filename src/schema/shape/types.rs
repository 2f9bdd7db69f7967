//! The types of JSON values.

use std::ops::{BitAnd, BitOr};

use serde_json::Value;

use crate::schema::number;

/// A set of JSON types. Integers and other numbers are separate members, so that `integer` is a
/// subset of `number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::schema) struct Types(u8);

impl Types {
    pub(in crate::schema) const NONE: Self = Self(0);
    pub(in crate::schema) const NULL: Self = Self(1);
    pub(in crate::schema) const BOOLEAN: Self = Self(1 << 1);
    pub(in crate::schema) const INTEGER: Self = Self(1 << 2);
    pub(in crate::schema) const NUMBER: Self = Self(1 << 2 | 1 << 3);
    pub(in crate::schema) const STRING: Self = Self(1 << 4);
    pub(in crate::schema) const ARRAY: Self = Self(1 << 5);
    pub(in crate::schema) const OBJECT: Self = Self(1 << 6);
    pub(in crate::schema) const ALL: Self = Self((1 << 7) - 1);

    /// The type with this name in JSON Schema; the empty set for an unknown name.
    pub(in crate::schema) fn named(name: &str) -> Self {
        match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "string" => Self::STRING,
            "array" => Self::ARRAY,
            "object" => Self::OBJECT,
            _ => Self::NONE,
        }
    }

    /// The narrowest type of a value.
    pub(in crate::schema) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(number) if number::integer(number).is_some() => Self::INTEGER,
            Value::Number(_) => Self(1 << 3),
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    pub(in crate::schema) fn intersects(self, other: Self) -> bool {
        self & other != Self::NONE
    }

    pub(in crate::schema) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitAnd for Types {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Types {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
