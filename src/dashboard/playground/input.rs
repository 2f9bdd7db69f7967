//! What is generated, and what was entered for it.

use serde_json::{Map, Value};

use crate::api::Asked;
use crate::dashboard::failure::PageError;
use crate::dashboard::form::Form;

/// The kinds, with their names in addresses and on the page.
pub(super) const KINDS: [(Asked, &str, &str); 3] = [
    (Asked::Chat, "chat", "Chat"),
    (Asked::Structured, "structured", "Structured output"),
    (Asked::Story, "story", "Story"),
];

/// The kind with a name; a chat if there is none.
pub(super) fn kind_named(name: &str) -> Asked {
    let known = KINDS.iter().find(|(_, known, _)| *known == name);
    known.map_or(Asked::Chat, |(asked, ..)| *asked)
}

/// The fields of the form.
#[derive(Default)]
pub(super) struct Input {
    pub prompt: String,
    pub system_prompt: String,
    pub schema: String,
    pub voices: String,
    pub model: String,
    pub tier: String,
    pub semaphore: String,
}

impl Input {
    /// An example of a kind.
    pub fn example(asked: Asked) -> Self {
        let (prompt, system_prompt, schema) = match asked {
            Asked::Chat => ("Why is the sky blue?", "Answer in one sentence.", ""),
            Asked::Structured => (
                "Anna is 31 and lives in Lisbon.",
                "Extract the person.",
                "{\n  \"type\": \"object\",\n  \"required\": [\"name\", \"age\"],\n  \"properties\": {\n    \
                 \"name\": {\"type\": \"string\"},\n    \"age\": {\"type\": \"integer\", \"minimum\": 0}\n  }\n}",
            ),
            Asked::Story => (
                "A lighthouse keeper's daughter befriends a storm.",
                "Design a story for children in five scenes.",
                "",
            ),
        };
        let [prompt, system_prompt, schema] = [prompt, system_prompt, schema].map(str::to_owned);
        Self { prompt, system_prompt, schema, ..Self::default() }
    }

    /// What a form has in its fields.
    pub fn of(form: &Form) -> Self {
        let field = |name| form.get(name).replace("\r\n", "\n");
        Self {
            prompt: field("prompt"),
            system_prompt: field("system_prompt"),
            schema: field("schema"),
            voices: field("voices"),
            model: field("model"),
            tier: field("tier"),
            semaphore: field("semaphore"),
        }
    }

    /// The body of the request, as the endpoint of the kind takes it.
    ///
    /// # Errors
    /// 422 if the schema is not JSON.
    pub fn body(&self, asked: Asked) -> Result<Vec<u8>, PageError> {
        let mut body = Map::new();
        let mut add = |name: &str, value: &str| {
            if !value.trim().is_empty() {
                body.insert(name.to_owned(), Value::from(value));
            }
        };
        add("model", self.model.trim());
        add("service_tier", &self.tier);
        add("external_semaphore_id", &self.semaphore);
        add("system_prompt", &self.system_prompt);
        // A blank prompt is sent too, so that the error says that it is blank.
        let prompt = if asked == Asked::Chat { "prompt" } else { "user_content" };
        body.insert(prompt.to_owned(), Value::from(&*self.prompt));
        match asked {
            Asked::Chat => {}
            Asked::Structured => {
                let schema: Value = serde_json::from_str(&self.schema)
                    .map_err(|error| PageError::not_json(&error))?;
                body.insert("json_schema".to_owned(), schema);
            }
            Asked::Story => {
                let voices =
                    self.voices.split(',').map(str::trim).filter(|voice| !voice.is_empty());
                body.insert("voice_id_list".to_owned(), voices.map(Value::from).collect());
            }
        }
        Ok(Value::Object(body).to_string().into_bytes())
    }
}
