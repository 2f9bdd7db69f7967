//! The projects that access tokens charge.
//!
//! An access token is valid for an hour, so an account per token would start anew each hour. If a
//! request names the project that its token charges, the project is the account. But a client can
//! name any project, so a token counts in a project's account only after Gemini has accepted both
//! together. Until then, and without a project, it has an account of its own.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::gemini::ApiKey;

/// How long a token that Gemini accepted for a project is remembered: as long as tokens are valid.
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// The most pairs of a token and a project that are remembered.
const MAX_PROVEN: usize = 4096;

/// Tokens that Gemini has accepted for projects.
#[derive(Debug, Default)]
pub(super) struct Projects(Mutex<HashMap<[u8; 32], Instant>>);

impl Projects {
    /// The SHA-256 that identifies the account of a key.
    pub(super) fn payer(&self, key: &ApiKey) -> [u8; 32] {
        let Some(claim) = key.claim() else { return *key.sha256() };
        let proven = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_proven = proven.get(&claim.sha256).is_some_and(|at| at.elapsed() < LIFETIME);
        if is_proven { claim.project } else { *key.sha256() }
    }

    /// Remembers that Gemini has accepted a call with a key.
    pub(super) fn prove(&self, key: &ApiKey) {
        let Some(claim) = key.claim() else { return };
        let mut proven = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.len() >= MAX_PROVEN && !proven.contains_key(&claim.sha256) {
            proven.retain(|_, at| at.elapsed() < LIFETIME);
            let oldest = proven.iter().min_by_key(|(_, at)| **at).map(|(pair, _)| *pair);
            if let Some(oldest) = oldest.filter(|_| proven.len() >= MAX_PROVEN) {
                proven.remove(&oldest);
            }
        }
        proven.insert(claim.sha256, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn key(token: &str, project: &str) -> ApiKey {
        let project = HeaderValue::try_from(project).unwrap();
        ApiKey::new(token).unwrap().charging(Some(project))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_counts_for_a_project_for_an_hour_after_gemini_accepted_both() {
        let projects = Projects::default();
        let (owner, stranger) = (key("ya29.owner", "p"), key("ya29.stranger", "p"));
        assert_eq!(projects.payer(&owner), *owner.sha256());
        projects.prove(&owner);
        let account = projects.payer(&owner);
        assert_eq!(account, owner.claim().unwrap().project);
        assert_eq!(projects.payer(&stranger), *stranger.sha256());
        assert_eq!(projects.payer(&key("ya29.owner", "q")), *owner.sha256());
        let other = key("ya29.other", "p");
        projects.prove(&other);
        assert_eq!(projects.payer(&other), account, "the next hour's token");
        tokio::time::advance(LIFETIME).await;
        assert_eq!(projects.payer(&owner), *owner.sha256());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_pair_is_forgotten_when_there_are_too_many() {
        let projects = Projects::default();
        let keys: Vec<_> = (0..=MAX_PROVEN).map(|at| key(&format!("ya29.{at}"), "p")).collect();
        for key in &keys {
            projects.prove(key);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(projects.payer(&keys[0]), *keys[0].sha256());
        assert_eq!(projects.payer(&keys[1]), keys[1].claim().unwrap().project);
        assert_eq!(projects.0.lock().unwrap().len(), MAX_PROVEN);
    }
}
