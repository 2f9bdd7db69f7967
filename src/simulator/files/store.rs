//! The files and uploads that are remembered.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::simulator::stats::hash;

/// How many files, and how many uploads, are kept. The oldest is dropped first.
const KEPT: usize = 1_000;

/// How long Gemini keeps a file. Source: Gemini API docs, files.
const LIFETIME: SignedDuration = SignedDuration::from_hours(48);

/// The uploaded files and the uploads that are under way.
#[derive(Default)]
pub(in crate::simulator) struct Files(Mutex<FileTable>);

#[derive(Default)]
struct FileTable {
    files: VecDeque<File>,
    uploads: VecDeque<Upload>,
    /// How many uploads there have been.
    begun: u64,
}

struct File {
    /// Hash of the key that it belongs to.
    owner: u64,
    name: String,
    description: Value,
}

/// An upload that has begun.
struct Upload {
    id: String,
    key: String,
    metadata: Metadata,
    received: u64,
}

/// What the client says about its file.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::simulator) struct Metadata {
    pub name: Option<String>,
    #[serde(alias = "display_name")]
    pub display_name: Option<String>,
    #[serde(alias = "mime_type")]
    pub mime_type: Option<String>,
}

impl Files {
    fn table(&self) -> MutexGuard<'_, FileTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an upload and returns its identifier.
    pub fn begin(&self, key: &str, metadata: Metadata) -> String {
        let mut table = self.table();
        let id = format!("simulated-{}", table.begun);
        table.begun += 1;
        keep(
            &mut table.uploads,
            Upload { id: id.clone(), key: key.to_owned(), metadata, received: 0 },
        );
        id
    }

    /// How many bytes of an upload have been received.
    pub fn received(&self, id: &str) -> Option<u64> {
        self.table().uploads.iter().find(|upload| upload.id == id).map(|upload| upload.received)
    }

    pub fn set_received(&self, id: &str, bytes: u64) {
        if let Some(upload) = self.table().uploads.iter_mut().find(|upload| upload.id == id) {
            upload.received = bytes;
        }
    }

    /// The key of an upload, and how many bytes it has.
    pub fn upload(&self, id: &str) -> Option<(String, u64)> {
        let table = self.table();
        let upload = table.uploads.iter().find(|upload| upload.id == id)?;
        Some((upload.key.clone(), upload.received))
    }

    /// Turns a finished upload into a file and describes it.
    pub fn finish(&self, id: &str, address: &str) -> Option<Value> {
        let mut table = self.table();
        let index = table.uploads.iter().position(|upload| upload.id == id)?;
        let upload = table.uploads.remove(index)?;
        let Metadata { name, display_name, mime_type } = upload.metadata;
        let name = name.unwrap_or_else(|| format!("files/{id}"));
        let now = Timestamp::now();
        let mut description = json!({
            "name": name,
            "mimeType": mime_type.as_deref().unwrap_or("application/octet-stream"),
            "sizeBytes": upload.received.to_string(),
            "createTime": now.to_string(),
            "updateTime": now.to_string(),
            "expirationTime": (now + LIFETIME).to_string(),
            "uri": format!("{address}/{name}"),
            "state": "ACTIVE",
            "source": "UPLOADED",
        });
        if let Some(display_name) = display_name {
            description["displayName"] = display_name.into();
        }
        let file = File { owner: hash(&*upload.key), name, description: description.clone() };
        keep(&mut table.files, file);
        Some(description)
    }

    pub fn list(&self, owner: u64) -> Vec<Value> {
        let table = self.table();
        let own = table.files.iter().filter(|file| file.owner == owner);
        own.map(|file| file.description.clone()).collect()
    }

    pub fn get(&self, owner: u64, name: &str) -> Option<Value> {
        let table = self.table();
        table.position(owner, name).map(|index| table.files[index].description.clone())
    }

    pub fn delete(&self, owner: u64, name: &str) -> Option<Value> {
        let mut table = self.table();
        let index = table.position(owner, name)?;
        table.files.remove(index).map(|_| json!({}))
    }
}

impl FileTable {
    fn position(&self, owner: u64, name: &str) -> Option<usize> {
        self.files.iter().position(|file| file.owner == owner && file.name == name)
    }
}

fn keep<T>(kept: &mut VecDeque<T>, item: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(item);
}
