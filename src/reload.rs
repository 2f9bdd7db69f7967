//! Takes over new settings while the gateway runs, each time that the process gets SIGHUP.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::block_in_place;

use crate::config::{NotReloaded, RunningSettings, SettingError};
use crate::gateway::Gateway;
use crate::telemetry::LogFilter;

/// What new settings change.
#[derive(Debug)]
pub struct Reloader {
    /// The settings that the process has.
    pub settings: RunningSettings,
    /// Its limits, quotas and prices.
    pub gateway: Gateway,
    /// What it logs.
    pub log_filter: LogFilter,
}

impl Reloader {
    /// Listens for SIGHUP, which otherwise ends the process. One that comes before the reloader is started
    /// has its effect then.
    ///
    /// # Errors
    /// If the system refuses to deliver the signal.
    pub fn listen() -> io::Result<Signal> {
        signal(SignalKind::hangup())
    }

    /// Starts to take over new settings on each signal, for the life of the process, which needs a runtime
    /// with several threads.
    pub fn start(mut self, mut hangup: Signal) {
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                self.reload().await;
            }
        });
    }

    /// Takes over all settings that can change, or none of them.
    async fn reload(&mut self) {
        // Files are read, and settings may be long.
        let new = match block_in_place(|| self.settings.read()) {
            Ok(new) => new,
            Err(reason) => return log_refusal(&reason),
        };
        if let Err(error) = self.gateway.reconfigure(new.config.clone()).await {
            tracing::error!(%error, "the settings are not reloaded; all stay as they were");
            return;
        }
        self.log_filter.set(&new.config.log_filter);
        let changed = new.changed.join(", ");
        // The file of prices is read again even if it has the same name.
        let prices = self.gateway.config.prices.updated();
        tracing::info!(changed, prices, "the settings are reloaded");
        if !new.at_next_start.is_empty() {
            let settings = new.at_next_start.join(", ");
            tracing::warn!(settings, "other settings have changed too, which takes a restart");
        }
        self.settings.taken_over(&new);
    }
}

fn log_refusal(reason: &NotReloaded) {
    match reason {
        NotReloaded::File(error) => {
            tracing::error!(%error, "the settings are not reloaded; all stay as they were");
        }
        NotReloaded::Invalid(errors) => {
            for SettingError { invalid, origin } in errors {
                tracing::error!(
                    setting = invalid.variable,
                    expected = &*invalid.expected,
                    %origin,
                    "the settings are not reloaded; all stay as they were"
                );
            }
        }
    }
}
