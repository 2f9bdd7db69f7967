//! Logs.

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Sends this process's logs to standard error, in the form and with the filter of the settings.
/// A second call changes nothing.
pub fn init(config: &Config) {
    let filter = EnvFilter::new(&config.log_filter);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match config.log_format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    if result.is_err() {
        tracing::debug!("logs are set up already");
    }
}
