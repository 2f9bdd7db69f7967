//! New settings while calls run.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use super::Accounts;
use crate::limits::model::{PlannedQuotas, QuotaPlan};

impl Accounts {
    /// Takes over new settings, for waiting calls too. What was spent stays counted. A key whose label
    /// is new counts in the accounts of that label from now on.
    pub(in crate::limits) fn replan(&self, plan: QuotaPlan, ceiling: usize) {
        let _joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let plan = Arc::new(plan);
        (open.plan, open.ceiling) = (Arc::clone(&plan), ceiling);
        let mut accounts: Vec<_> = open.accounts.values().cloned().collect();
        let mut spend = HashMap::new();
        for account in &accounts {
            let payer = account.payer();
            if !spend.contains_key(payer) {
                spend.insert(payer.clone(), open.spend_of(payer, &*self.store));
            }
        }
        drop(open);
        for (payer, budget) in self.spend_budgets(usize::MAX) {
            let planned = plan.of_payer(payer.label());
            budget.plan(planned, planned);
        }
        // Aliases first: their limits hold for the accounts that are charged, too.
        accounts.sort_by_cached_key(|account| Reverse(account.charged_through()));
        let mut of_aliases: HashMap<_, PlannedQuotas> = HashMap::new();
        for account in &accounts {
            let own = account.quotas_in(&plan);
            let with_aliases = of_aliases.get(&Arc::as_ptr(account)).copied().unwrap_or(own);
            if account.is_alias() {
                let charged = account.charged();
                let known = of_aliases.entry(Arc::as_ptr(&charged));
                let known = known.or_insert_with(|| charged.quotas_in(&plan));
                *known = known.with_alias(own);
            }
            let spend = spend.get(account.payer()).cloned().flatten();
            account.replan(own, with_aliases, ceiling, spend);
        }
    }
}
