//! What every handler shares.

use std::ops::Deref;
use std::sync::Arc;

use crate::config::Config;
use crate::dispatch::{Dispatcher, RetryPolicy};
use crate::gemini::{Client, InvalidBaseUrl};
use crate::generation::Defaults;
use crate::generation::offload::Offload;
use crate::limits::{Leases, Limiter, LocalStore, Store};
use crate::memory::BodyBudget;
use crate::metrics::Metrics;

/// The service without its network: settings, limiter, upstream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Shared>);

/// What the clones of a [`Gateway`] have in common.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The models of requests that name none.
    pub defaults: Defaults,
    /// The limits.
    pub limiter: Arc<Limiter>,
    /// What work outside holds of them.
    pub leases: Arc<Leases>,
    /// The way to Gemini.
    pub dispatcher: Arc<Dispatcher>,
    /// Where schemas are compiled and answers checked that take long.
    pub offload: Arc<Offload>,
    /// The memory for the bodies of all requests.
    pub bodies: Arc<BodyBudget>,
    /// The memory for answers that are read before their clients read them.
    pub answers: Arc<BodyBudget>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether a simulator stands in for Gemini.
    pub simulated: bool,
}

impl Gateway {
    /// A gateway with these settings and limits of its own, to Gemini or to the simulator at the
    /// base URL.
    ///
    /// # Errors
    /// [`InvalidBaseUrl`] where calls cannot be sent to the base URL.
    pub fn new(config: Config, simulated: bool) -> Result<Self, InvalidBaseUrl> {
        let store = LocalStore::new(config.concurrency_limit);
        Self::with_store(config, simulated, store)
    }

    /// A gateway with these settings, and the limits of a store.
    ///
    /// # Errors
    /// [`InvalidBaseUrl`], as for [`Gateway::new`].
    pub fn with_store(
        config: Config,
        simulated: bool,
        store: Arc<dyn Store>,
    ) -> Result<Self, InvalidBaseUrl> {
        let Config { concurrency_limit, max_queued_requests, ref quota_plan, .. } = config;
        let limiter =
            Limiter::with_store(store, concurrency_limit, max_queued_requests, quota_plan.clone());
        let leases = Leases::new(Arc::clone(&limiter));
        let metrics = Arc::new(Metrics::new(Arc::clone(&limiter)));
        let policy = RetryPolicy::new(config.max_attempts, config.upstream_timeout);
        let client = client(&config)?;
        let dispatcher =
            Arc::new(Dispatcher::new(client, Arc::clone(&limiter), Arc::clone(&metrics), policy));
        let bodies = BodyBudget::new(config.body_memory_bytes);
        // Bodies need not be refused for them: without it, answers wait at Gemini.
        let answers = BodyBudget::new(Some(bodies.largest() / 4));
        let defaults = Defaults {
            chat_model: config.chat_model.clone(),
            structured_model: config.structured_model.clone(),
        };
        let offload = Arc::new(Offload::new(config.schema_timeout));
        Ok(Self(Arc::new(Shared {
            config,
            defaults,
            limiter,
            leases,
            dispatcher,
            offload,
            bodies,
            answers,
            metrics,
            simulated,
        })))
    }

    /// The same gateway, limits and counters included, with connections to Gemini of its own: for
    /// one more thread to use without meeting the others.
    pub fn with_own_connections(&self) -> Self {
        let dispatcher = Arc::new(self.dispatcher.with_own_connections());
        Self(Arc::new(Shared { dispatcher, ..Shared::clone(self) }))
    }
}

/// Connections to Gemini, out of which the server's own key never comes.
fn client(config: &Config) -> Result<Client, InvalidBaseUrl> {
    let Config { base_url, proxy, authorities, gemini_api_key, .. } = config;
    let client = Client::with_proxy(base_url, proxy.as_ref(), authorities)?;
    Ok(client.masking(gemini_api_key.as_ref()))
}

impl Deref for Gateway {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
