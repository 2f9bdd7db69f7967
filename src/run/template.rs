//! Prompts with placeholders, such as `Summarise: {text}`.

use std::borrow::Cow;
use std::str::FromStr;

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The name of a field.
    Field(String),
}

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// A brace is not closed.
    #[error("a \"{{\" is not closed; a literal brace is written twice: \"{{{{\"")]
    Unclosed,
    /// A brace is not opened.
    #[error("a \"}}\" is not opened; a literal brace is written twice: \"}}}}\"")]
    Unopened,
    /// A placeholder without a name.
    #[error("\"{{}}\" names no field; a literal brace is written twice: \"{{{{\"")]
    Unnamed,
    /// There is no placeholder, so that every prompt would be the same.
    #[error("it names no field, such as {{text}}")]
    NoField,
}

impl FromStr for Template {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            literal.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else if let Some(inside) = from.strip_prefix('{') {
                let end = inside.find(['{', '}']).ok_or(InvalidTemplate::Unclosed)?;
                let (name, after) = inside.split_at(end);
                rest = after.strip_prefix('}').ok_or(InvalidTemplate::Unclosed)?;
                if name.trim().is_empty() {
                    return Err(InvalidTemplate::Unnamed);
                }
                parts.push(Part::Text(std::mem::take(&mut literal)));
                parts.push(Part::Field(name.trim().to_owned()));
            } else {
                return Err(InvalidTemplate::Unopened);
            }
        }
        if parts.is_empty() {
            return Err(InvalidTemplate::NoField);
        }
        literal.push_str(rest);
        parts.push(Part::Text(literal));
        Ok(Self { parts })
    }
}

impl Template {
    /// The names in the placeholders.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(name) => Some(&**name),
            Part::Text(_) => None,
        })
    }

    /// The text with the fields filled in. What a field contains is not read as a template.
    ///
    /// # Errors
    /// The name of the first field that has no value.
    pub fn fill<'a>(&self, value: impl Fn(&str) -> Option<Cow<'a, str>>) -> Result<String, &str> {
        let mut filled = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Field(name) => filled.push_str(&value(name).ok_or(&**name)?),
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(template: &str) -> Result<String, String> {
        let template: Template = template.parse().map_err(|error| format!("{error:?}"))?;
        let value = |name: &str| match name {
            "text" => Some("{lines} of }} text".into()),
            "a b" => Some("".into()),
            _ => None,
        };
        template.fill(value).map_err(str::to_owned)
    }

    #[test]
    fn placeholders_are_replaced_once_and_double_braces_are_literal() {
        for (template, expected) in [
            ("Summarise: {text}", "Summarise: {lines} of }} text"),
            ("{{{text}}}", "{{lines} of }} text}"),
            ("{{\"a\": 1}} { text }{a b}!", "{\"a\": 1} {lines} of }} text!"),
        ] {
            assert_eq!(filled(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn a_template_that_cannot_be_meant_is_refused() {
        for (template, reason) in [
            ("Summarise", "NoField"),
            ("{{text}}", "NoField"),
            ("{text", "Unclosed"),
            ("{te{xt}", "Unclosed"),
            ("text} {text}", "Unopened"),
            ("{text}}", "Unopened"),
            ("{} {text}", "Unnamed"),
            ("{ }", "Unnamed"),
            ("{text} {other}", "other"),
        ] {
            assert_eq!(filled(template).err().as_deref(), Some(reason), "{template}");
        }
    }

    proptest! {
        #[test]
        fn an_escaped_text_comes_back_as_it_was(text: String, value: String) {
            let escaped = text.replace('{', "{{").replace('}', "}}");
            let template: Template = format!("{escaped}{{x}}{escaped}").parse().unwrap();
            let filled = template.fill(|_| Some(Cow::from(&*value))).unwrap();
            prop_assert_eq!(filled, format!("{text}{value}{text}"));
        }
    }
}
