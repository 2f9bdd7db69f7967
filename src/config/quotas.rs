//! The settings of quotas and prices: `GEMINI_TIER`, `GEMINI_LIMITS`, `GEMINI_KEY_LABELS` and
//! `GEMINI_PRICES_FILE`.
//!
//! Errors give the number of the entry and quote only limits, and only short ones: somebody may have put
//! the key itself in place of anything.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::gemini::Model;
use crate::limits::{KeyDigest, Limit, LimitScope, Limits, QuotaKind, QuotaPlan, Resource, Tier};
use crate::prices::Prices;

use super::{
    GEMINI_KEY_LABELS, GEMINI_LIMITS, GEMINI_PRICES_FILE, GEMINI_TIER, InvalidSetting, Lookup,
    SERVER_LABEL, Setting, invalid,
};

const EVERY_MODEL: &str = "*";
const MAX_LABEL: usize = 64;

/// The most entries of a list. Each is compared with all before it.
const MAX_ENTRIES: usize = 10_000;

/// A dollar in billionths, and how many digits those have.
const ONE_DOLLAR: u64 = 1_000_000_000;
const DOLLAR_DIGITS: usize = 9;

/// The longest text that is quoted, in bytes. It is shorter than a key.
const MAX_QUOTED: usize = 24;

/// The highest limit on spend, in dollars: Redis keeps amounts of up to 14 digits.
const MOST_DOLLARS: u64 = 10_000;

/// Reads the settings of quotas.
pub(super) fn read(settings: &Lookup<'_>) -> Result<QuotaPlan, InvalidSetting> {
    let mut plan = QuotaPlan::default();
    plan.tier = tier(settings)?;
    // Labels first: limits refer to them.
    for (entry, number) in entries(settings, GEMINI_KEY_LABELS, ',')?.iter().zip(1..) {
        add_label(&mut plan, entry)
            .map_err(|expected| invalid(GEMINI_KEY_LABELS, in_entry(number, &expected)))?;
    }
    for (entry, number) in entries(settings, GEMINI_LIMITS, ';')?.iter().zip(1..) {
        add_limits(&mut plan, entry)
            .map_err(|expected| invalid(GEMINI_LIMITS, in_entry(number, &expected)))?;
    }
    Ok(plan)
}

/// Reads the prices, with those of `GEMINI_PRICES_FILE`.
pub(super) fn prices(settings: &Lookup<'_>) -> Result<Arc<Prices>, InvalidSetting> {
    let Some(path) = settings.optional(GEMINI_PRICES_FILE) else { return Ok(Arc::default()) };
    let prices = Prices::with_file(path.as_ref());
    let invalid = |reason| invalid(GEMINI_PRICES_FILE, format!("a file of prices, but {reason}"));
    prices.map(Arc::new).map_err(invalid)
}

fn tier(settings: &Lookup<'_>) -> Result<Option<Tier>, InvalidSetting> {
    match settings.value(GEMINI_TIER).as_str() {
        "none" => Ok(None),
        "free" => Ok(Some(Tier::Free)),
        "tier1" => Ok(Some(Tier::Tier1)),
        "tier2" => Ok(Some(Tier::Tier2)),
        "tier3" => Ok(Some(Tier::Tier3)),
        _ => Err(invalid(GEMINI_TIER, "none, free, tier1, tier2 or tier3")),
    }
}

fn in_entry(number: usize, expected: &str) -> String {
    format!("in entry {number} {expected}")
}

/// The trimmed entries of a list, which may end with a separator.
fn entries(
    settings: &Lookup<'_>,
    setting: Setting,
    separator: char,
) -> Result<Vec<String>, InvalidSetting> {
    let Some(list) = settings.optional(setting) else { return Ok(Vec::new()) };
    let list = list.strip_suffix(separator).unwrap_or(&list);
    let entries: Vec<_> = list.split(separator).map(|entry| entry.trim().to_owned()).collect();
    match entries.len() {
        ..=MAX_ENTRIES => Ok(entries),
        _ => Err(invalid(setting, format!("at most {MAX_ENTRIES} entries"))),
    }
}

/// Splits a text in two and trims both parts.
fn split(text: &str, separator: char) -> Option<(&str, &str)> {
    text.split_once(separator).map(|(before, after)| (before.trim(), after.trim()))
}

/// Reads `label=digest`.
fn add_label(plan: &mut QuotaPlan, entry: &str) -> Result<(), String> {
    let (label, digest) = split(entry, '=').ok_or("label=digest")?;
    if !is_label(label) {
        return Err(format!("a label of 1 to {MAX_LABEL} of A-Z a-z 0-9 . _ - before the ="));
    }
    let digest: KeyDigest = digest
        .parse()
        .map_err(|_| "the first 8 to 64 hex digits of a key's SHA-256 after the =")?;
    plan.add_label(digest, label)
        .map_err(|_| "one label for each key: an earlier entry gives this key another")?;
    Ok(())
}

fn is_label(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_LABEL).contains(&text.len()) && text.bytes().all(is_part)
}

/// Reads `label@model:rpm=1,tpm=2,rpd=none`; `label@` is optional.
fn add_limits(plan: &mut QuotaPlan, entry: &str) -> Result<(), String> {
    let (scope, limits) = split(entry, ':').ok_or("a model or *, a colon, and limits")?;
    let (label, model) = match split(scope, '@') {
        Some((label, model)) => (Some(label), model),
        None => (None, scope),
    };
    if label.is_some_and(|label| label != SERVER_LABEL && !plan.has_label(label)) {
        return Err(format!(
            "{SERVER_LABEL} or a label of {} before the @",
            GEMINI_KEY_LABELS.name
        ));
    }
    let model = match model {
        EVERY_MODEL => None,
        name => {
            let model = Model::parse(name)
                .map_err(|_| "* or a model's name, such as gemini-3.5-flash-lite, before the :")?;
            Some(model.as_str().into())
        }
    };
    let limits = read_limits(limits)?;
    let of_payer = limits.iter().find(|(kind, limit)| kind.is_of_payer() && limit.is_some());
    if let (Some((kind, _)), Some(_)) = (of_payer, &model) {
        let name = kind.setting();
        return Err(format!("* before the colon, because {name} counts over all models"));
    }
    plan.add_limits(LimitScope { label: label.map(Into::into), model }, limits)
        .map_err(|_| "keys and a model that no earlier entry has")?;
    Ok(())
}

/// Reads `rpm=1,tpm=2,rpd=none`: at least one, in any order.
fn read_limits(text: &str) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for part in text.split(',').map(str::trim) {
        let (name, limit) = split(part, '=').unwrap_or((part, ""));
        let kind = QuotaKind::from_setting(name)
            .ok_or_else(|| format!("{} with a limit{}", names(), instead_of(part)))?;
        let read = match kind.resource() {
            Resource::Spend => read_dollars(limit).ok_or("dollars, at most 10000,"),
            _ => read_limit(limit).ok_or("a whole number"),
        };
        let limit =
            read.map_err(|what| format!("{name}= with {what} or none{}", instead_of(part)))?;
        if limits[kind].replace(limit).is_some() {
            return Err(format!("{name} only once{}", instead_of(part)));
        }
    }
    Ok(limits)
}

/// The end of an error: what was found, if it is too short for a key.
fn instead_of(part: &str) -> String {
    if part.len() <= MAX_QUOTED { format!(", not {part:?}") } else { String::new() }
}

/// The names of all quota kinds.
fn names() -> String {
    let names = QuotaKind::ALL.map(QuotaKind::setting);
    let (last, others) = names.split_last().expect("there are quota kinds");
    format!("{} or {last}", others.join(", "))
}

/// Reads dollars, such as `10` or `0.5`, as billionths.
fn read_dollars(text: &str) -> Option<Limit> {
    if text == "none" {
        return Some(Limit::Unlimited);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > DOLLAR_DIGITS {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<DOLLAR_DIGITS$}").parse().ok()?;
    let limit = whole.parse::<u64>().ok()?.checked_mul(ONE_DOLLAR)?.checked_add(fraction)?;
    (limit <= MOST_DOLLARS * ONE_DOLLAR).then_some(Limit::AtMost(limit))
}

fn read_limit(text: &str) -> Option<Limit> {
    if text == "none" {
        return Some(Limit::Unlimited);
    }
    // `parse` alone would accept `+1`.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number).map(Limit::AtMost)
}
