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
pub(super) struct ModelLabel(Option<Arc<str>>);

impl EncodeLabelValue for ModelLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.as_deref().unwrap_or(OTHER).encode(encoder)
    }
}

/// The names that have a label of their own.
#[derive(Debug, Default)]
pub(super) struct KnownNames {
    models: Names<MAX_MODELS>,
    payers: Names<MAX_PAYERS>,
}

impl KnownNames {
    /// The label of a model. Only a model that Gemini has `accepted` gets one of its own.
    pub fn model(&self, model: &Model, accepted: bool) -> ModelLabel {
        let model = model.shared();
        ModelLabel(if accepted { self.models.add(model) } else { self.models.find(model) })
    }

    /// The label of a payer whose key Gemini knows.
    pub fn payer(&self, payer: &str) -> Arc<str> {
        self.payers
            .find(payer)
            .or_else(|| self.payers.add(&payer.into()))
            .unwrap_or_else(|| OTHER.into())
    }

    /// Whether a payer, and a model if there is one, that Gemini has accepted have labels of their own. They
    /// get them if they can.
    pub fn have_labels(&self, payer: &Arc<str>, model: Option<&Arc<str>>) -> bool {
        self.payers.add(payer).is_some()
            && model.is_none_or(|model| self.models.add(model).is_some())
    }
}

/// The first names, at most `MOST`.
#[derive(Debug, Default)]
struct Names<const MOST: usize>(RwLock<HashSet<Arc<str>>>);

impl<const MOST: usize> Names<MOST> {
    fn find(&self, name: &str) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// A name that is among them, or for which there is room.
    fn add(&self, name: &Arc<str>) -> Option<Arc<str>> {
        let known = self.find(name);
        if known.is_some() {
            return known;
        }
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MOST {
            return None;
        }
        names.insert(Arc::clone(name));
        Some(Arc::clone(name))
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
        assert!(names.have_labels(&"payer-3".into(), Some(&"model-3".into())));
        assert!(!names.have_labels(&"payer-999".into(), None));
        assert!(!names.have_labels(&"payer-3".into(), Some(&"model-999".into())));
    }
}
