//! Opens the store of the limits.

use std::sync::Arc;

use crate::config::Config;
use crate::limits::{LocalStore, SharedStore, Store};

/// Opens the store of the limits: in Redis if the settings name one, else in memory.
///
/// # Errors
/// The setting and why Redis cannot be used, if it is required.
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, String> {
    let limit = config.concurrency_limit;
    let Some(redis) = &config.redis else { return Ok(LocalStore::new(limit)) };
    match SharedStore::connect(redis, limit).await {
        Ok(store) => {
            tracing::info!(prefix = redis.prefix, "limits are shared through Redis");
            Ok(store)
        }
        Err(reason) if config.redis_required => Err(format!(
            "REDIS_URL: {reason}. With REDIS_REQUIRED=false the replica starts with its own limits."
        )),
        Err(reason) => {
            tracing::warn!(%reason, "REDIS_REQUIRED=false: this replica has its own limits");
            Ok(LocalStore::new(limit))
        }
    }
}
