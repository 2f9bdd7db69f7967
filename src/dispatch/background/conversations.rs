//! How many tokens conversations have.
//!
//! An interaction that continues another one reports only its own input, though Gemini reads all of
//! the conversation. Source: recorded interactions of several turns.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// The most interactions that are remembered. Each takes about 100 bytes.
const MOST: usize = 16_384;

/// The tokens of each payer's conversations up to an interaction. Those that were used least recently
/// are forgotten.
#[derive(Debug, Default)]
pub(super) struct Conversations(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// By the SHA-256 of payer and ID: the tokens, and when they were last used.
    tokens: HashMap<[u8; 32], (u64, u64)>,
    by_use: BTreeMap<u64, [u8; 32]>,
    uses: u64,
}

impl Conversations {
    /// The tokens up to an interaction; 0 if they are not known.
    pub fn tokens(&self, payer: &[u8; 32], id: &str) -> u64 {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(payer, id);
        let tokens = table.tokens.get(&key).map_or(0, |(tokens, _)| *tokens);
        if tokens > 0 {
            table.put(key, tokens);
        }
        tokens
    }

    /// Notes the tokens up to an interaction.
    pub fn remember(&self, payer: &[u8; 32], id: &str, tokens: u64) {
        if tokens > 0 {
            let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            table.put(key(payer, id), tokens);
        }
    }
}

impl Table {
    fn put(&mut self, key: [u8; 32], tokens: u64) {
        self.uses += 1;
        if let Some((_, last_use)) = self.tokens.insert(key, (tokens, self.uses)) {
            self.by_use.remove(&last_use);
        }
        self.by_use.insert(self.uses, key);
        if self.tokens.len() > MOST
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.tokens.remove(&oldest);
        }
    }
}

fn key(payer: &[u8; 32], id: &str) -> [u8; 32] {
    Sha256::new().chain_update(payer).chain_update(id).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_its_payers_and_the_least_recently_used_is_forgotten() {
        let conversations = Conversations::default();
        let (one, other) = ([1; 32], [2; 32]);
        conversations.remember(&one, "first", 10);
        conversations.remember(&one, "first", 12);
        conversations.remember(&one, "second", 20);
        assert_eq!(conversations.tokens(&one, "first"), 12);
        assert_eq!(conversations.tokens(&other, "first"), 0);
        for at in 0..MOST - 1 {
            conversations.remember(&other, &at.to_string(), 1);
        }
        assert_eq!(conversations.tokens(&one, "first"), 12, "used after the second");
        assert_eq!(conversations.tokens(&one, "second"), 0);
        let table = conversations.0.lock().unwrap();
        assert_eq!((table.tokens.len(), table.by_use.len()), (MOST, MOST));
    }
}
