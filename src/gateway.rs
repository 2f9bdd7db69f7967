//! The state that all handlers share.

mod readiness;
mod store;

use std::ops::Deref;
use std::sync::Arc;

use http::Uri;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, SERVER_LABEL};
use crate::dispatch::{BackgroundPolicy, Dispatcher, RetryPolicy};
use crate::gemini::{Client, InvalidBaseUrl};
use crate::generation::Defaults;
use crate::generation::offload::Offload;
use crate::jobs::item::ItemFormat;
use crate::jobs::{self, Engine, EngineSettings, Jobs};
use crate::limits::{Leases, Limiter, LocalStore, Store, StoreUnavailable};
use crate::memory::BodyBudget;
use crate::metrics::{History, Metrics};
use crate::traces::Traces;

pub use readiness::{NotReady, Readiness};
pub use store::open_store;

/// The gateway without its HTTP server: settings, limits, upstream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Shared>);

/// The state that the clones of a [`Gateway`] share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The models for requests that name none.
    pub defaults: Defaults,
    /// Queue, limits and quotas.
    pub limiter: Arc<Limiter>,
    /// Leases of permits that programs outside the gateway hold.
    pub leases: Arc<Leases>,
    /// Sends calls to Gemini.
    pub dispatcher: Arc<Dispatcher>,
    /// Runs long schema compilations and checks on separate threads.
    pub offload: Arc<Offload>,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// The memory for the bodies of all requests.
    pub bodies: Arc<BodyBudget>,
    /// The memory for answers that are read from Gemini before their clients read them.
    pub answers: Arc<BodyBudget>,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// The last hour and the last day, and the replicas.
    pub history: Arc<History>,
    /// Traces of requests, calls and jobs.
    pub traces: Traces,
    /// Whether this replica can take requests.
    pub readiness: Arc<Readiness>,
    /// Whether a simulator replaces Gemini.
    pub simulated: bool,
}

impl Gateway {
    /// A gateway with these settings and limits in memory. `simulated` says that the base URL is a
    /// simulator's.
    ///
    /// # Errors
    /// [`InvalidBaseUrl`] if the base URL cannot be used.
    pub fn new(config: Config, simulated: bool) -> Result<Self, InvalidBaseUrl> {
        let store = LocalStore::new(config.concurrency_limit);
        Self::with_store(config, simulated, store)
    }

    /// A gateway with these settings and the limits of a store.
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
        let policy = RetryPolicy {
            flex_timeout: config.flex_timeout,
            max_continuations: config.max_continuations,
            ..RetryPolicy::new(config.max_attempts, config.upstream_timeout)
        };
        let client = client(&config)?;
        let dispatcher = Dispatcher::new(
            client,
            Arc::clone(&limiter),
            Arc::clone(&metrics),
            policy,
            Arc::clone(&config.prices),
        );
        let Config { background_poll: poll, background_timeout: time_limit, .. } = config;
        let background = BackgroundPolicy { poll, time_limit };
        let dispatcher = Arc::new(dispatcher.following(background));
        let bodies = BodyBudget::new(config.body_memory_bytes);
        // Without memory for an answer, it is read from Gemini only as fast as its client reads.
        let answers = BodyBudget::new(Some(bodies.largest() / 4));
        let defaults = Defaults {
            chat_model: config.chat_model.clone(),
            structured_model: config.structured_model.clone(),
        };
        let jobs = Jobs::new(jobs::store::open(&config.job_store));
        let offload = Arc::new(Offload::new(config.schema_timeout));
        let traces = traces(&config, &metrics);
        let readiness =
            Readiness::new(Arc::clone(&limiter), Arc::clone(&jobs), CancellationToken::new());
        Ok(Self(Arc::new(Shared {
            config,
            defaults,
            limiter,
            leases,
            dispatcher,
            offload,
            jobs,
            bodies,
            answers,
            history: Arc::clone(metrics.history()),
            metrics,
            traces,
            readiness,
            simulated,
        })))
    }

    /// The same gateway, which is not ready for requests once the shutdown is announced.
    pub fn until(&self, shutdown: CancellationToken) -> Self {
        let readiness = Readiness::new(Arc::clone(&self.limiter), Arc::clone(&self.jobs), shutdown);
        Self(Arc::new(Shared { readiness, ..Shared::clone(self) }))
    }

    /// Starts to send the items of jobs, whose kinds have these formats.
    pub fn start_jobs(&self, format: Arc<dyn ItemFormat>) -> Engine {
        let settings = EngineSettings {
            lease: self.config.job_lease,
            retention: self.config.job_retention,
            large_items: self.bodies.for_large_items(),
            metrics: Arc::clone(&self.metrics),
            observer: self.traces.job_observer(),
        };
        let key = self.config.gemini_api_key.clone();
        Engine::start(Arc::clone(&self.jobs), Arc::clone(&self.dispatcher), format, key, settings)
    }

    /// Takes over the limits, quotas and prices of new settings, for waiting requests too.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if the shared limits are unavailable. Nothing is changed then.
    pub async fn reconfigure(&self, new: Config) -> Result<(), StoreUnavailable> {
        let Config { concurrency_limit, max_queued_requests, mut quota_plan, prices, .. } = new;
        quota_plan.minute = self.config.quota_plan.minute;
        if let Some(key) = &self.config.gemini_api_key {
            quota_plan.add_default_label(key.sha256(), SERVER_LABEL);
        }
        self.limiter.reconfigure(concurrency_limit, max_queued_requests, quota_plan).await?;
        self.config.prices.replace(&prices);
        Ok(())
    }

    /// The same gateway, sharing limits and counters, with its own connections to Gemini, so that
    /// each worker thread uses its own.
    pub fn with_own_connections(&self) -> Self {
        let dispatcher = Arc::new(self.dispatcher.with_own_connections());
        Self(Arc::new(Shared { dispatcher, ..Shared::clone(self) }))
    }
}

/// The traces that the settings ask for.
fn traces(config: &Config, metrics: &Arc<Metrics>) -> Traces {
    let Some(settings) = &config.traces else { return Traces::default() };
    let base: Uri = config.base_url.parse().unwrap_or_default();
    let port = if base.scheme_str() == Some("http") { 80 } else { 443 };
    let host = base.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let upstream = (host.to_owned(), base.port_u16().unwrap_or(port));
    Traces::start(settings, upstream, config.secrets(), Arc::clone(metrics))
}

/// The client for Gemini, which overwrites the server's key in all answers.
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
