//! The triggers that are kept.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::simulator::refusal::ErrorResponse;

/// How many triggers are kept. The oldest is dropped first.
const KEPT: usize = 1_000;

/// The triggers that are kept.
#[derive(Default)]
pub(in crate::simulator) struct Triggers(Mutex<VecDeque<Trigger>>);

struct Trigger {
    owner: u64,
    description: Value,
}

impl Triggers {
    /// Keeps a trigger.
    pub fn insert(&self, owner: u64, description: Value) {
        let mut triggers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if triggers.len() == KEPT {
            triggers.pop_front();
        }
        triggers.push_back(Trigger { owner, description });
    }

    /// The description of a trigger.
    pub fn read(&self, owner: u64, id: &str) -> Result<Value, ErrorResponse> {
        let triggers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = triggers.iter().filter(|trigger| trigger.owner == owner);
        let found = own.find(|trigger| trigger.description["id"] == id);
        found
            .map(|trigger| trigger.description.clone())
            .ok_or_else(|| ErrorResponse::not_found(&format!("Trigger {id}")))
    }
}
