//! What calls will cost, learned for each model.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::gemini::{Model, TokenEstimator};

/// More models than this are forgotten and learned anew: callers make up names.
const MAX_MODELS: usize = 1024;

/// An estimator for each model.
#[derive(Debug, Default)]
pub(super) struct Estimators(RwLock<HashMap<Model, Arc<TokenEstimator>>>);

impl Estimators {
    /// The estimator of a model; a fresh one where there is none.
    pub fn of(&self, model: &Model) -> Arc<TokenEstimator> {
        if let Some(known) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(model) {
            return Arc::clone(known);
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_MODELS {
            all.retain(|_, estimator| Arc::strong_count(estimator) > 1);
        }
        Arc::clone(all.entry(model.clone()).or_default())
    }
}
