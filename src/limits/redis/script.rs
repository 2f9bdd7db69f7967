//! The script that makes all changes of the shared limits.

#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod semaphore_tests;

use std::sync::LazyLock;

use crate::limits::model::{QuotaKind, Resource, Window};

/// The whole script. Redis runs it as one atomic step, so two calls of it never interleave.
pub(super) static SCRIPT: LazyLock<String> = LazyLock::new(|| {
    let resources = Resource::ALL.map(|resource| format!("'{}'", resource.key()));
    // Budgets do not keep enqueued tokens.
    let kinds = QuotaKind::ALL.into_iter().filter(|kind| kind.window() != Window::Outstanding);
    let kinds = kinds.map(|kind| {
        let (name, unit, window) = (kind.setting(), kind.resource().key(), kind.window());
        let burst = kind.burst();
        format!("{{name = '{name}', unit = '{unit}', window = '{window}', burst = {burst}}}")
    });
    let kinds: Vec<_> = kinds.collect();
    let tables = format!(
        "local UNITS = {{{}}}\nlocal KINDS = {{{}}}\n",
        resources.join(", "),
        kinds.join(", ")
    );
    let parts = [
        &tables,
        include_str!("script/members.lua"),
        include_str!("script/semaphore.lua"),
        include_str!("script/lease.lua"),
        include_str!("script/report.lua"),
        include_str!("script/login.lua"),
        include_str!("script/allowance.lua"),
        include_str!("script/budget.lua"),
        include_str!("script/budget_quotas.lua"),
        include_str!("script/budget_commands.lua"),
        include_str!("script/budget_upkeep.lua"),
        include_str!("script/main.lua"),
    ];
    parts.concat()
});
