//! Tells the limits how a call ended.

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Call, ChargedTo};
use crate::gemini::{Error, ErrorKind, Model, Period, Quantity, Refusal, RefusalScope, Violation};
use crate::limits::{InFlightCall, Limiter, NamedBy, QuotaKind, Quotas, Resource, Window};

/// Settles a call that failed.
pub(super) fn settle(limiter: &Limiter, mut in_flight: InFlightCall, call: &Call, error: &Error) {
    match &error.kind {
        ErrorKind::RateLimited(refusal) => refuse(limiter, in_flight, call, refusal),
        ErrorKind::Unfunded => in_flight.unfunded(),
        ErrorKind::Overloaded(_) => in_flight.overloaded(),
        ErrorKind::Connection => in_flight.unsent(),
        // Gemini ran the call, though its answer cannot be used.
        _ if error.accepted_model => in_flight.answered(call.input_tokens(*error.usage)),
        ErrorKind::InvalidKey
        | ErrorKind::PermissionDenied
        | ErrorKind::ModelNotFound
        | ErrorKind::InvalidRequest => in_flight.declined(),
        // Gemini may count the call, and charges nothing (Gemini API docs, billing).
        ErrorKind::Unavailable => in_flight.charge(0),
        // Gemini may have run the call, so it counts as spent and the estimate stands.
        _ => drop(in_flight),
    }
}

fn refuse(limiter: &Limiter, in_flight: InFlightCall, call: &Call, refusal: &Refusal) {
    // Google names one model in a refusal. A few are read, so that a hostile list costs little.
    let named = refusal.violations.iter().take(4).filter_map(|quota| quota.model.as_deref());
    for model in named.filter_map(|name| Model::parse(name).ok()) {
        follow_model(limiter, &in_flight, call, Some(&model), NamedBy::Refusal);
    }
    let named = named_quotas(refusal);
    let wait = refusal.retry_at(Timestamp::now()).unwrap_or_default();
    match refusal.scope {
        RefusalScope::Load => in_flight.overloaded(),
        RefusalScope::PerMinute => in_flight.refused(Instant::now() + wait, named),
        RefusalScope::PerDay => in_flight.refused_for_the_day(named),
        RefusalScope::NoQuota => in_flight.without_quota(),
        RefusalScope::Spend => {
            limiter.accounts().pause_payer(in_flight.account(), Instant::now() + wait);
            in_flight.refused_alone();
        }
        RefusalScope::Other => in_flight.refused_alone(),
    }
}

/// Charges the call's model to the one that Gemini `named`, which may be another than was asked for.
pub(super) fn follow_model(
    limiter: &Limiter,
    in_flight: &InFlightCall,
    call: &Call,
    named: Option<&Model>,
    named_by: NamedBy,
) {
    let asked = call.model();
    // Tuned models and methods with quotas of their own are not charged to another model.
    if call.kind().charged_to() != ChargedTo::Model || asked.is_tuned() {
        return;
    }
    if let Some(named) = named.filter(|named| *named != asked) {
        limiter.accounts().alias(in_flight.account(), named.as_str(), named_by);
    }
}

/// The quotas that a refusal names. A quota of 0 is left out: with it, no later call could find out
/// that it has been raised.
fn named_quotas(refusal: &Refusal) -> Quotas {
    let mut named = Quotas::default();
    for violation in &refusal.violations {
        if let Some(kind) = quota_kind(violation) {
            named[kind] = violation.limit.filter(|limit| *limit > 0).or(named[kind]);
        }
    }
    named
}

/// The kind of quota that a violation is about, if the limits keep it.
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
