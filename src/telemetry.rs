//! Logs.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Sends this process's logs to standard error. A second call changes nothing.
pub fn init(format: LogFormat, filter: &str) {
    let filter = EnvFilter::new(filter);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    if result.is_err() {
        tracing::debug!("logs are set up already");
    }
}
