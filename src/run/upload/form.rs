//! How a record becomes an item.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::jobs::JobKind;
use crate::run::input::{Content, Input, InputError, InputFormat, Record};
use crate::run::template::Template;

/// The column or field that names an item, where `--id` names no other.
const CUSTOM_ID: &str = "custom_id";

/// The column that names an item where neither does.
const ID: &str = "id";

/// The name of a line of text in a prompt's placeholder.
const LINE: &str = "line";

/// How a record becomes an item.
#[derive(Debug)]
pub(super) enum ItemForm {
    /// The record is the item.
    AsItIs,
    /// The record is filled into a prompt.
    Prompt {
        /// The field of the item that takes the prompt.
        field: &'static str,
        /// The prompt.
        template: Template,
        /// The column or field that names the item.
        id: Option<String>,
        /// Whether the records are JSON objects.
        is_json: bool,
    },
}

impl ItemForm {
    /// Decides how records of this input become items.
    pub(super) fn new(
        input: &Input,
        kind: JobKind,
        template: Option<Template>,
        id: Option<String>,
    ) -> Result<Self, InputError> {
        let header = input.header()?;
        let field = match kind {
            JobKind::Chat => "prompt",
            JobKind::StructuredOutput | JobKind::CinematicStoryDesign => "user_content",
            JobKind::Gemini | JobKind::OpenAi => {
                if input.format() != InputFormat::Jsonl {
                    return Err(input.invalid(None, "lines of batch files are JSON"));
                }
                return Self::as_it_is(input, id);
            }
        };
        let is_json = input.format() == InputFormat::Jsonl;
        let template = match (template, &header) {
            (Some(template), _) => template,
            (None, Some(header)) => column_with_prompt(header, field)
                .ok_or_else(|| input.invalid(Some(1), no_prompt_column(header, field)))?,
            (None, None) if is_json => return Self::as_it_is(input, id),
            (None, None) => "{line}".parse().expect("it is a template"),
        };
        let mut id = id;
        if let Some(header) = &header {
            if id.is_none() {
                let count = |name| header.iter().filter(|column| *column == name).count();
                let name = if count(CUSTOM_ID) > 0 { Some(CUSTOM_ID) } else { None };
                let name = name.or_else(|| (count(ID) == 1).then_some(ID));
                id = name.map(str::to_owned);
            }
            for name in template.fields().chain(id.as_deref()) {
                check_column(header, name).map_err(|reason| input.invalid(Some(1), reason))?;
            }
        } else if !is_json && id.is_some() {
            return Err(input.invalid(None, "--id: lines of text have no columns"));
        }
        Ok(Self::Prompt { field, template, id, is_json })
    }

    fn as_it_is(input: &Input, id: Option<String>) -> Result<Self, InputError> {
        match id {
            None => Ok(Self::AsItIs),
            Some(_) => Err(input.invalid(None, "--id is for items that --prompt makes")),
        }
    }

    /// Whether the items are made here.
    pub(super) fn makes_prompts(&self) -> bool {
        matches!(self, Self::Prompt { .. })
    }

    /// The item of a record, on one line; or what is wrong with the record.
    pub(super) fn line(&self, record: &Record) -> Result<Vec<u8>, String> {
        match (self, &record.content) {
            (Self::AsItIs, Content::Line(line)) => {
                let line = line.trim();
                let is_object = line.starts_with('{');
                is_object.then(|| line.into()).ok_or_else(|| "expected a JSON object".to_owned())
            }
            (Self::AsItIs, Content::Row { .. }) => unreachable!("a row is filled into a prompt"),
            (Self::Prompt { field, template, id, is_json }, content) => {
                let fields = Fields::of(content, *is_json)?;
                let missing = |name: &str| fields.missing(name);
                let prompt = template.fill(|name| fields.get(name)).map_err(missing)?;
                let id = match id {
                    Some(name) => Some(fields.get(name).ok_or_else(|| missing(name))?),
                    None => fields.own_id(),
                };
                let item = match id {
                    Some(id) => json!({"custom_id": id, *field: prompt}),
                    None => json!({*field: prompt}),
                };
                Ok(item.to_string().into())
            }
        }
    }
}

/// The fields of one record.
enum Fields<'a> {
    Line(&'a str),
    Object(Map<String, Value>),
    Row { header: &'a Arc<Vec<String>>, fields: &'a [String] },
}

impl<'a> Fields<'a> {
    fn of(content: &'a Content, is_json: bool) -> Result<Self, String> {
        match content {
            Content::Row { header, fields } => Ok(Self::Row { header, fields }),
            Content::Line(line) if is_json => match serde_json::from_str(line) {
                Ok(fields) => Ok(Self::Object(fields)),
                Err(error) => Err(format!("expected a JSON object: {error}")),
            },
            Content::Line(line) => Ok(Self::Line(line)),
        }
    }

    /// The text of a field. Numbers, lists and objects are written as JSON, and null is empty.
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        match self {
            Self::Line(line) => (name == LINE).then_some((*line).into()),
            Self::Object(fields) => Some(match fields.get(name)? {
                Value::String(text) => text.into(),
                Value::Null => "".into(),
                other => other.to_string().into(),
            }),
            Self::Row { header, fields } => {
                let column = header.iter().position(|column| column == name)?;
                Some((&*fields[column]).into())
            }
        }
    }

    /// The `custom_id` of an object.
    fn own_id(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Object(fields) if fields.contains_key(CUSTOM_ID) => self.get(CUSTOM_ID),
            _ => None,
        }
    }

    fn missing(&self, name: &str) -> String {
        match self {
            Self::Line(_) => no_field(name, [LINE]),
            Self::Object(fields) => no_field(name, fields.keys().map(|name| &**name)),
            Self::Row { header, .. } => no_field(name, header.iter().map(|name| &**name)),
        }
    }
}

fn no_field<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().take(20).collect();
    format!("there is no \"{name}\" among {}", names.join(", "))
}

/// A prompt that is one column: that of the item's field, or `prompt`.
fn column_with_prompt(header: &[String], field: &str) -> Option<Template> {
    let name = [field, "prompt"].into_iter().find(|name| header.iter().any(|it| it == name))?;
    Some(format!("{{{name}}}").parse().expect("it is a template"))
}

fn no_prompt_column(header: &[String], field: &str) -> String {
    let names = no_field(field, header.iter().map(|name| &**name));
    format!("{names}; --prompt says how the columns make a prompt: --prompt 'Summarise: {{text}}'")
}

fn check_column(header: &[String], name: &str) -> Result<(), String> {
    match header.iter().filter(|column| *column == name).count() {
        0 => Err(no_field(name, header.iter().map(|name| &**name))),
        1 => Ok(()),
        _ => Err(format!("several columns are called \"{name}\"")),
    }
}
