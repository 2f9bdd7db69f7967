//! A gateway in this process, for a run without a service.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::failure::RunFailure;
use crate::api::{self, item_format};
use crate::client::{ClientKey, GatewayClient};
use crate::config::{AdminKey, Config};
use crate::gateway::{Gateway, open_store};
use crate::jobs::{Engine, StoreSettings};
use crate::limits::Store;

/// A gateway without a port. Its only client is this process.
#[derive(Debug)]
pub struct LocalGateway {
    gateway: Gateway,
    limits: Arc<dyn Store>,
    engine: Engine,
    client: GatewayClient,
}

impl LocalGateway {
    /// Starts a gateway with these settings that keeps its jobs in a directory.
    ///
    /// # Errors
    /// [`RunFailure`] if the limits cannot be opened, or a setting cannot be used.
    pub async fn start(mut config: Config, data: PathBuf) -> Result<Self, RunFailure> {
        let limits = open_store(&config).await.map_err(RunFailure::settings)?;
        config.job_store = StoreSettings { folder: data, database: None };
        // What was paid for is kept until the output is complete.
        config.job_retention = None;
        // Nobody else can use it.
        let admin_key = config
            .admin_api_key
            .get_or_insert_with(|| AdminKey::new(format!("{:032x}", fastrand::u128(..))));
        let key = ClientKey::Admin(admin_key.header().expect("it was checked"));
        let gateway = Gateway::with_store(config, false, Arc::clone(&limits));
        let gateway = gateway.map_err(|error| RunFailure::settings(error.to_string()))?;
        let engine = gateway.start_jobs(item_format(gateway.clone()));
        let client = GatewayClient::in_process(api::router(gateway.clone()), key);
        Ok(Self { gateway, limits, engine, client })
    }

    /// Its client.
    pub fn client(&self) -> GatewayClient {
        self.client.clone()
    }

    /// Waits for the calls in flight, until `ends_now` or for the grace period, and records them.
    pub async fn stop(self, ends_now: impl Future<Output = ()>) {
        let Self { gateway, limits, engine, client } = self;
        drop(client);
        let grace: Duration = gateway.config.shutdown_grace;
        let ends_now = async {
            tokio::select! {
                () = ends_now => {}
                () = sleep(grace) => {}
            }
        };
        engine.stop(ends_now).await;
        gateway.jobs.store().close().await;
        limits.close().await;
        gateway.traces.stop().await;
    }
}
