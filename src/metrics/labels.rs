//! The labels of the metrics. The number of their values is bounded.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::gemini::Model;

/// The most models with their own label. Further models are counted as `other`.
const MAX_MODELS: usize = 256;

/// The most payers with their own label. Further payers are counted as `other`.
const MAX_PAYERS: usize = 64;

/// A name that has not been accepted, or one too many.
pub(super) const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallLabels {
    pub kind: &'static str,
    pub model: ModelLabel,
    pub outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusalLabels {
    pub payer: Arc<str>,
    pub model: ModelLabel,
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    pub kind: &'static str,
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TokenLabels {
    pub model: ModelLabel,
    pub r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CostLabels {
    pub model: ModelLabel,
    pub tier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabel {
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabel {
    pub state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    pub outcome: &'static str,
}

/// A model that Gemini has accepted. `None` stands for all other names, which callers can invent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ModelLabel(Option<Model>);

impl EncodeLabelValue for ModelLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.as_ref().map_or(OTHER, Model::as_str).encode(encoder)
    }
}

/// The names that have a label of their own.
#[derive(Debug, Default)]
pub(super) struct KnownNames {
    models: RwLock<HashSet<Model>>,
    payers: RwLock<HashSet<Arc<str>>>,
}

impl KnownNames {
    /// The label of a model. Only a model that Gemini has `accepted` gets one of its own.
    pub fn model(&self, model: &Model, accepted: bool) -> ModelLabel {
        let known = self.models.read().unwrap_or_else(PoisonError::into_inner);
        if known.contains(model) {
            return ModelLabel(Some(model.clone()));
        }
        drop(known);
        if !accepted {
            return ModelLabel(None);
        }
        let mut known = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_MODELS {
            return ModelLabel(None);
        }
        known.insert(model.clone());
        ModelLabel(Some(model.clone()))
    }

    /// The label of a payer whose key Gemini knows.
    pub fn payer(&self, payer: &str) -> Arc<str> {
        let known = self.payers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(payer) {
            return Arc::clone(known);
        }
        drop(known);
        let mut known = self.payers.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_PAYERS {
            return OTHER.into();
        }
        let payer: Arc<str> = payer.into();
        known.insert(Arc::clone(&payer));
        payer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_bound_share_a_label() {
        let names = KnownNames::default();
        let labels: HashSet<_> = (0..1000).map(|n| names.payer(&format!("payer-{n}"))).collect();
        assert_eq!(labels.len(), MAX_PAYERS + 1);
        assert_eq!(&*names.payer("payer-3"), "payer-3");
        assert_eq!(&*names.payer("payer-999"), OTHER);
        let model = |n: usize| Model::parse(&format!("model-{n}")).unwrap();
        let labels: HashSet<_> = (0..1000).map(|n| names.model(&model(n), true)).collect();
        assert_eq!(labels.len(), MAX_MODELS + 1);
        assert_eq!(names.model(&Model::parse("invented").unwrap(), false), ModelLabel(None));
    }
}
