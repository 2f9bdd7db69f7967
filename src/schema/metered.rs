//! JSON for the validator, with each access counted as work.
//!
//! The validator itself cannot be stopped. It reads an instance only through these accessors, so
//! counting here bounds the whole check, whatever the schema, and stops it within a few steps of a
//! cancellation.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::ControlFlow;

use jsonschema::json::{Array, Json, Node, NodeIdentity, Object, cmp};
use jsonschema::{JsonType, Keyword};
use serde_json::map::Iter;
use serde_json::{Map, Number, Value};
use tokio_util::sync::CancellationToken;

use super::number;
use super::work::{Interrupt, Work, interrupt};

/// Bytes of text that count as one step.
pub(super) const BYTES_PER_STEP: usize = 32;

/// `serde_json` values with metered access.
#[derive(Debug)]
pub(super) struct Metered;

/// A keyword that checks metered values.
pub(super) type Check = Box<dyn for<'i> Keyword<'i, Metered>>;

/// The state that the accessors of one check share.
#[derive(Debug)]
pub(super) struct Meter<'w> {
    pub(super) work: &'w Work,
    /// The patterns for names of properties.
    pub(super) names: NamePatterns,
    /// Steps for each value that is entered.
    pub(super) place: usize,
    /// Whether formats are checked.
    pub(super) formats: bool,
}

/// The bounds of all patterns for names of properties together.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamePatterns {
    /// The longest name that can be matched against all patterns, in bytes.
    pub(super) longest: usize,
    /// Steps to match one name.
    pub(super) steps: usize,
}

/// One value, or the name of a property.
#[derive(Debug, Clone, Copy)]
pub(super) struct MeteredNode<'a> {
    content: Content<'a>,
    meter: &'a Meter<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Value(&'a Value),
    Name(&'a str),
}

#[derive(Clone, Copy)]
pub(super) struct MeteredObject<'a> {
    members: &'a Map<String, Value>,
    meter: &'a Meter<'a>,
}

#[derive(Clone, Copy)]
pub(super) struct MeteredArray<'a> {
    elements: &'a [Value],
    meter: &'a Meter<'a>,
}

pub(super) struct Members<'a> {
    members: Iter<'a>,
    meter: &'a Meter<'a>,
}

pub(super) struct Elements<'a> {
    elements: std::slice::Iter<'a, Value>,
    meter: &'a Meter<'a>,
}

impl Default for NamePatterns {
    fn default() -> Self {
        Self { longest: usize::MAX, steps: 0 }
    }
}

impl<'w> Meter<'w> {
    /// A meter that only counts reads.
    pub(super) fn reading(work: &'w Work) -> Self {
        Self { work, names: NamePatterns::default(), place: 0, formats: false }
    }
}

impl<'a> MeteredNode<'a> {
    pub(super) fn new(value: &'a Value, meter: &'a Meter<'a>) -> Self {
        Self { content: Content::Value(value), meter }
    }

    pub(super) fn spend(&self, steps: usize) {
        self.meter.work.spend_or_interrupt(steps);
    }

    pub(super) fn work(&self) -> &'a Work {
        self.meter.work
    }

    pub(super) fn has_formats(&self) -> bool {
        self.meter.formats
    }

    fn value(&self) -> Option<&'a Value> {
        self.spend(1);
        match self.content {
            Content::Value(value) => Some(value),
            Content::Name(_) => None,
        }
    }

    /// Counts the copy of the value that an error makes.
    pub(super) fn spend_copy(&self) {
        if let Content::Value(value) = self.content {
            self.spend_all(value);
        }
    }

    fn spend_all(&self, value: &Value) {
        match value {
            Value::Array(elements) => elements.iter().for_each(|element| self.spend_all(element)),
            Value::Object(members) => members.values().for_each(|member| self.spend_all(member)),
            Value::String(text) => self.spend(text.len() / BYTES_PER_STEP),
            _ => {}
        }
        self.spend(1);
    }

    fn equals(&self, value: &Value, expected: &Value) -> bool {
        self.spend(1);
        match (value, expected) {
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.equals(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                let same = |(name, a)| b.get(name).is_some_and(|b| self.equals(a, b));
                a.len() == b.len() && a.iter().all(same)
            }
            (Value::String(a), Value::String(b)) if a.len() == b.len() => {
                self.spend(a.len() / BYTES_PER_STEP);
                a == b
            }
            _ => cmp::equal(value, expected),
        }
    }
}

impl Json for Metered {
    type Node<'a> = MeteredNode<'a>;
    type PreparedKey = String;
    const KEYS_PER_LOOKUP: usize = 0;
    const ACYCLIC: bool = true;
    type StringBuffer = ();

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    /// Not metered: names are read through [`Object::try_for_each_name_node`], with the meter of
    /// their object.
    fn with_string_node<T>((): &mut (), string: &str, run: impl FnOnce(MeteredNode<'_>) -> T) -> T {
        let work = Work::until(CancellationToken::new());
        let meter = Meter::reading(&work);
        run(MeteredNode { content: Content::Name(string), meter: &meter })
    }
}

impl<'a> Node<'a, Metered> for MeteredNode<'a> {
    type Object = MeteredObject<'a>;
    type Array = MeteredArray<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<MeteredObject<'a>> {
        let members = self.value()?.as_object()?;
        Some(MeteredObject { members, meter: self.meter })
    }

    fn as_array(&self) -> Option<MeteredArray<'a>> {
        let elements = self.value()?.as_array()?;
        Some(MeteredArray { elements, meter: self.meter })
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        let text = match self.content {
            Content::Value(value) => value.as_str(),
            Content::Name(name) => Some(name),
        };
        self.spend(1 + text.map_or(0, |text| text.len() / BYTES_PER_STEP));
        text.map(Cow::Borrowed)
    }

    fn as_number(&self) -> Option<&'a Number> {
        self.value()?.as_number()
    }

    fn as_boolean(&self) -> Option<bool> {
        self.value()?.as_bool()
    }

    fn is_null(&self) -> bool {
        self.value().is_some_and(Value::is_null)
    }

    fn json_type(&self) -> JsonType {
        match self.value() {
            None | Some(Value::String(_)) => JsonType::String,
            Some(Value::Null) => JsonType::Null,
            Some(Value::Bool(_)) => JsonType::Boolean,
            Some(Value::Number(_)) => JsonType::Number,
            Some(Value::Array(_)) => JsonType::Array,
            Some(Value::Object(_)) => JsonType::Object,
        }
    }

    fn equals_value(&self, expected: &Value) -> bool {
        match self.content {
            Content::Value(value) => self.equals(value, expected),
            Content::Name(name) => {
                self.spend(1 + name.len() / BYTES_PER_STEP);
                expected.as_str() == Some(name)
            }
        }
    }

    fn to_value(&self) -> Cow<'a, Value> {
        match self.content {
            Content::Value(value) => Cow::Borrowed(value),
            Content::Name(name) => Cow::Owned(name.into()),
        }
    }

    fn identity(&self) -> Option<NodeIdentity> {
        Some(match self.content {
            Content::Value(value) => NodeIdentity::new(std::ptr::from_ref(value) as usize),
            Content::Name(name) => NodeIdentity::tagged(name.as_ptr() as usize, 1),
        })
    }
}

impl<'a> Object<'a, Metered> for MeteredObject<'a> {
    type Node = MeteredNode<'a>;
    type MemberName = &'a str;
    type MembersIter = Members<'a>;

    fn len(&self) -> usize {
        self.members.len()
    }

    fn get(&self, name: &String) -> Option<MeteredNode<'a>> {
        self.meter.work.spend_or_interrupt(1 + self.meter.place);
        let member = self.members.get(name)?;
        Some(MeteredNode::new(member, self.meter))
    }

    fn members(&self) -> Members<'a> {
        Members { members: self.members.iter(), meter: self.meter }
    }

    fn try_for_each_name_node<B>(
        &self,
        (): &mut (),
        mut run: impl FnMut(MeteredNode<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let names = self.members();
        let mut nodes =
            names.map(|(name, _)| MeteredNode { content: Content::Name(name), meter: self.meter });
        nodes.try_for_each(&mut run)
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a str, MeteredNode<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, member) = self.members.next()?;
        let patterns = self.meter.names;
        if name.len() > patterns.longest {
            interrupt(Interrupt::TooLongForPattern);
        }
        let steps = 1 + self.meter.place + name.len() / BYTES_PER_STEP + patterns.steps;
        self.meter.work.spend_or_interrupt(steps);
        Some((name, MeteredNode::new(member, self.meter)))
    }
}

impl<'a> Array<'a, Metered> for MeteredArray<'a> {
    type Node = MeteredNode<'a>;
    type ElementsIter = Elements<'a>;

    fn len(&self) -> usize {
        self.elements.len()
    }

    fn elements(&self) -> Elements<'a> {
        Elements { elements: self.elements.iter(), meter: self.meter }
    }

    fn is_unique(&self) -> bool {
        let mut seen = HashSet::with_capacity(self.elements.len());
        self.elements.iter().all(|element| {
            let form = number::canonical(element);
            self.meter.work.spend_or_interrupt(1 + form.len() / BYTES_PER_STEP);
            seen.insert(form)
        })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = MeteredNode<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.meter.work.spend_or_interrupt(1 + self.meter.place);
        self.elements.next().map(|element| MeteredNode::new(element, self.meter))
    }
}
