//! What became of an attempt, told to the limits and to the metrics.

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Call, Route};
use crate::gemini::{
    Error, ErrorKind, Model, Period, Quantity, Refusal, RefusalScope, Usage, Violation,
};
use crate::limits::{InFlightCall, Limiter, NamedBy, QuotaKind, Quotas, Resource, Window};
use crate::metrics::{FinishedCall, Metrics};

/// Tells the limits what became of a call that failed.
pub(super) fn settle(limiter: &Limiter, call: InFlightCall, error: &Error) {
    match &error.kind {
        ErrorKind::RateLimited(refusal) => refuse(limiter, call, refusal),
        ErrorKind::Unfunded => call.unfunded(),
        ErrorKind::Overloaded(_) => call.overloaded(),
        ErrorKind::Connection => call.unsent(),
        // Gemini took the call up, though nothing came of it that could be used.
        _ if error.accepted_model => call.answered(reported(error.usage)),
        ErrorKind::InvalidKey
        | ErrorKind::PermissionDenied
        | ErrorKind::ModelNotFound
        | ErrorKind::InvalidRequest => call.declined(),
        // It may have run, and counts as spent: the estimate stands.
        _ => drop(call),
    }
}

fn refuse(limiter: &Limiter, call: InFlightCall, refusal: &Refusal) {
    // Google names one model a refusal; a few are looked at, however many there are.
    let named = refusal.violations.iter().take(4).filter_map(|quota| quota.model.as_deref());
    for model in named.filter_map(|name| Model::parse(name).ok()) {
        counts_as(limiter, &call, Some(&model), NamedBy::Refusal);
    }
    let named = named_quotas(refusal);
    let wait = refusal.retry_at(Timestamp::now()).unwrap_or_default();
    match refusal.scope {
        RefusalScope::Load => call.overloaded(),
        RefusalScope::PerMinute => call.refused(Instant::now() + wait, named),
        RefusalScope::PerDay => call.refused_for_the_day(named),
        RefusalScope::NoQuota => call.without_quota(),
        RefusalScope::Spend => {
            limiter.accounts().pause_payer(call.account(), Instant::now() + wait);
            call.refused_alone();
        }
        RefusalScope::Other => call.refused_alone(),
    }
}

/// Gemini counts a call for the model that it names, which may be another than was asked.
pub(super) fn counts_as(
    limiter: &Limiter,
    call: &InFlightCall,
    real: Option<&Model>,
    named_by: NamedBy,
) {
    let asked = call.account().model();
    // Tuned models and what is counted apart have quotas of their own.
    let is_plain = !asked.contains(['/', ':']);
    if let Some(real) = real.filter(|real| is_plain && real.as_str() != asked) {
        limiter.accounts().alias(call.account(), real.as_str(), named_by);
    }
}

/// How an attempt ended.
pub(super) enum Ended<'a> {
    /// Gemini answered.
    Answered,
    /// The request's time was up before the attempt's was.
    Overdue,
    /// The client hung up while the answer was on its way.
    Cancelled,
    /// It failed.
    Failed(&'a Error),
    /// It failed in the midst of its answer.
    BrokenOff(&'a Error),
}

impl Ended<'_> {
    pub(super) fn record(&self, metrics: &Metrics, call: &Call, sent: Instant, usage: Usage) {
        let Route { model, estimator, .. } = &*call.route;
        let (outcome, accepted) = match self {
            Self::Answered => ("success", true),
            Self::Overdue => ("request_timeout", false),
            Self::Cancelled => ("cancelled", true),
            Self::Failed(error) => (error.kind.code(), error.accepted_model),
            Self::BrokenOff(error) => (error.kind.code(), true),
        };
        if usage.prompt_tokens > 0 {
            estimator.learn(call.input, usage.prompt_tokens, usage.cached_tokens);
        }
        let kind = call.kind;
        metrics.finished(FinishedCall {
            kind,
            model,
            accepted,
            outcome,
            took: sent.elapsed(),
            usage,
        });
    }
}

/// What a call cost, where Gemini says so.
pub(super) fn reported(usage: Usage) -> Option<u64> {
    (usage.prompt_tokens > 0).then_some(usage.prompt_tokens)
}

/// The quotas that a refusal names. One of 0 is not taken over: it would keep every later call from
/// finding out that there is one again.
fn named_quotas(refusal: &Refusal) -> Quotas {
    let mut named = Quotas::default();
    for violation in &refusal.violations {
        if let Some(kind) = quota_kind(violation) {
            named[kind] = violation.limit.filter(|limit| *limit > 0).or(named[kind]);
        }
    }
    named
}

/// The kind of quota that a refusal names, if calls are held to it here.
fn quota_kind(violation: &Violation) -> Option<QuotaKind> {
    let resource = match violation.quantity {
        Quantity::Requests => Resource::Requests,
        Quantity::InputTokens => Resource::InputTokens,
        Quantity::Images => Resource::Images,
        Quantity::Separate | Quantity::Other => return None,
    };
    let window = match violation.period {
        Period::Minute => Window::Minute,
        Period::Day => Window::Day,
        Period::Unknown => return None,
    };
    QuotaKind::of(resource, window)
}
