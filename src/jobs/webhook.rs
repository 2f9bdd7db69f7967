//! Webhooks: the end of a job is announced to a URL that its owner names.
//!
//! Messages follow [Standard Webhooks](https://www.standardwebhooks.com): they are signed, and the id of
//! a message stays the same when it is sent again. Each end of a job is announced at least once; what is
//! still to be announced is in the [store](super::JobStore), so that a restart continues it.

mod announcer;
mod delivery;
mod message;
mod schedule;
mod signature;
#[cfg(test)]
mod tests;
mod url;

pub use announcer::{Announcer, Render};
pub use delivery::WebhookSender;
pub use signature::{InvalidWebhookSecrets, WebhookSecrets};
pub use url::{InvalidWebhookUrl, WebhookUrl};

use crate::connect::AllowedDestinations;

/// The settings of webhooks.
#[derive(Debug, Clone, Default)]
pub struct WebhookSettings {
    /// What messages are signed with. Without a secret there are no webhooks.
    pub secrets: WebhookSecrets,
    /// Destinations that may be private, and may be reached without TLS.
    pub allowed: AllowedDestinations,
}

/// Checks the URL of a webhook; does not connect or resolve its host. Addresses are checked again for
/// each delivery.
///
/// # Errors
/// [`InvalidWebhookUrl`], with a message for the caller that does not quote the URL.
pub fn check_webhook_url(
    url: &str,
    settings: &WebhookSettings,
) -> Result<WebhookUrl, InvalidWebhookUrl> {
    if settings.secrets.is_empty() {
        return Err(InvalidWebhookUrl::NoSecret);
    }
    WebhookUrl::parse(url, &settings.allowed)
}
