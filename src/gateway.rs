//! What every handler shares.

use std::ops::Deref;
use std::sync::Arc;

use crate::config::Config;
use crate::dispatch::{Dispatcher, RetryPolicy};
use crate::gemini::{Client, InvalidBaseUrl};
use crate::generation::Defaults;
use crate::limits::Door;
use crate::metrics::Metrics;

/// The service without its network: settings, door, upstream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Shared>);

/// What the clones of a [`Gateway`] have in common.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The models of requests that name none.
    pub defaults: Defaults,
    /// The limits.
    pub door: Arc<Door>,
    /// The way to Gemini.
    pub dispatcher: Arc<Dispatcher>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether a simulator stands in for Gemini.
    pub simulated: bool,
}

impl Gateway {
    /// A gateway with these settings, to Gemini or to the simulator at the base URL.
    ///
    /// # Errors
    /// [`InvalidBaseUrl`] where calls cannot be sent to the base URL.
    pub fn new(config: Config, simulated: bool) -> Result<Self, InvalidBaseUrl> {
        let door = Door::new(config.concurrency_limit, config.max_queued_requests);
        let metrics = Arc::new(Metrics::new(Arc::clone(&door)));
        Self::over(config, simulated, door, metrics)
    }

    /// The same gateway, limits and counters included, with connections to Gemini of its own: for
    /// one more thread to use without meeting the others.
    ///
    /// # Errors
    /// [`InvalidBaseUrl`], as for [`Gateway::new`].
    pub fn with_own_connections(&self) -> Result<Self, InvalidBaseUrl> {
        let (door, metrics) = (Arc::clone(&self.door), Arc::clone(&self.metrics));
        Self::over(self.config.clone(), self.simulated, door, metrics)
    }

    fn over(
        config: Config,
        simulated: bool,
        door: Arc<Door>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, InvalidBaseUrl> {
        let client = Client::new(&config.base_url)?;
        let policy = RetryPolicy::new(config.max_attempts, config.upstream_timeout);
        let dispatcher = Dispatcher::new(client, Arc::clone(&door), Arc::clone(&metrics), policy);
        let defaults = Defaults {
            chat_model: config.chat_model.clone(),
            structured_model: config.structured_model.clone(),
        };
        let dispatcher = Arc::new(dispatcher);
        Ok(Self(Arc::new(Shared { config, defaults, door, dispatcher, metrics, simulated })))
    }
}

impl Deref for Gateway {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
