//! A table of results: the columns of the input, then those of the answers.

use std::fmt;

use super::OutputError;
use crate::jobs::JobKind;
use crate::run::input::{Content, InputError, InputFormat, Record};
use crate::run::result::ItemResult;
use crate::run::upload::Upload;

/// The columns before those of the input.
const BEFORE: [&str; 2] = ["index", "custom_id"];

/// The columns after those of the input, of which a table has one of the first two.
const AFTER: [&str; 4] = ["response", "data", "error_code", "error"];

/// The rows of results, in the order of the items.
pub(super) struct ResultTable<'a> {
    /// The records of the input, of which the first has no result yet. `None` if their columns are not
    /// repeated: lines of JSON have none.
    records: Option<Box<dyn Iterator<Item = Result<Record, InputError>> + Send + 'a>>,
    /// How many columns of the input are repeated.
    columns: usize,
    /// The index of the next result.
    index: u64,
}

impl fmt::Debug for ResultTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResultTable").field("index", &self.index).finish_non_exhaustive()
    }
}

impl<'a> ResultTable<'a> {
    /// Begins a table and writes its header.
    pub(super) fn new(upload: &'a Upload, written: &mut Vec<u8>) -> Result<Self, OutputError> {
        let input = upload.input();
        let own = match (input.header()?, input.format()) {
            (Some(header), _) => header.to_vec(),
            (None, InputFormat::Lines) => vec!["line".to_owned()],
            (None, _) => Vec::new(),
        };
        let answer = match upload.kind() {
            JobKind::StructuredOutput | JobKind::CinematicStoryDesign => "data",
            JobKind::Chat | JobKind::Gemini | JobKind::OpenAi => "response",
        };
        let repeated = own.iter().map(|name| {
            let is_taken = BEFORE.iter().chain(&AFTER).any(|column| column == name);
            if is_taken { format!("input.{name}") } else { name.clone() }
        });
        let before = BEFORE.into_iter().map(str::to_owned);
        let after = [answer, "error_code", "error"].into_iter().map(str::to_owned);
        write_row(before.chain(repeated).chain(after), written);
        let records = (!own.is_empty()).then(|| upload.records()).transpose()?;
        let records = records.map(|records| Box::new(records) as Box<_>);
        Ok(Self { records, columns: own.len(), index: 0 })
    }

    /// Adds the row of the next result.
    pub(super) fn add(
        &mut self,
        result: &ItemResult<'_>,
        written: &mut Vec<u8>,
    ) -> Result<(), OutputError> {
        // A cancelled job has items without results.
        let skipped = result.index.map_or(0, |index| index.saturating_sub(self.index));
        self.index += skipped;
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let records = self.records.as_mut();
        let record = records.and_then(|records| records.nth(skipped)).transpose()?;
        let mut own = match record.map(|record| record.content) {
            Some(Content::Row { fields, .. }) => fields,
            Some(Content::Line(line)) => vec![line],
            None => Vec::new(),
        };
        own.resize(self.columns, String::new());
        let index = self.index.to_string();
        let custom_id = result.custom_id.as_deref().unwrap_or_default();
        let (answer, code, message) = match &result.answer {
            Ok(answer) => (&**answer, "", ""),
            Err(failure) => ("", &*failure.code, &*failure.message),
        };
        let before = [&*index, custom_id].into_iter();
        let own = own.iter().map(String::as_str);
        write_row(before.chain(own).chain([answer, code, message]), written);
        self.index += 1;
        Ok(())
    }
}

fn write_row(fields: impl IntoIterator<Item: AsRef<[u8]>>, written: &mut Vec<u8>) {
    let mut writer = csv::WriterBuilder::new().buffer_capacity(1 << 10).from_writer(written);
    let row = writer.write_record(fields).and_then(|()| Ok(writer.flush()?));
    row.expect("writing to memory cannot fail");
}
