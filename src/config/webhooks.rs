//! The settings of webhooks: `JOB_WEBHOOK_SECRET` and `JOB_WEBHOOK_ALLOW`.

use super::{InvalidSetting, JOB_WEBHOOK_ALLOW, JOB_WEBHOOK_SECRET, Lookup, invalid};
use crate::connect::AllowedDestinations;
use crate::jobs::webhook::{WebhookSecrets, WebhookSettings};

/// Reads the settings of webhooks.
pub(super) fn read(settings: &Lookup<'_>) -> Result<WebhookSettings, InvalidSetting> {
    let secrets = match settings.optional(JOB_WEBHOOK_SECRET) {
        Some(secrets) => WebhookSecrets::parse(&secrets)
            .map_err(|expected| invalid(JOB_WEBHOOK_SECRET, expected.to_string()))?,
        None => WebhookSecrets::default(),
    };
    let entries = settings.list(JOB_WEBHOOK_ALLOW);
    let allowed = AllowedDestinations::parse(entries.iter().map(String::as_str))
        .map_err(|expected| invalid(JOB_WEBHOOK_ALLOW, expected.to_string()))?;
    Ok(WebhookSettings { secrets, allowed })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn webhooks_are_off_unless_there_is_a_secret() {
        let read = |secrets: &str| {
            Config::read(|name| (name == "JOB_WEBHOOK_SECRET").then(|| secrets.to_owned()))
        };
        assert!(read("").unwrap().webhooks.secrets.is_empty());
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let config = read(&format!("{secret}, {secret}")).unwrap();
        assert!(!config.webhooks.secrets.is_empty());
        let shown = format!("{config:?}");
        assert!(!shown.contains("MfKQ"), "{shown}");
        let error = read("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap_err();
        assert_eq!(error.variable, "JOB_WEBHOOK_SECRET");
        assert!(!error.to_string().contains("MfKQ"), "{error}");
    }

    #[test]
    fn allowed_destinations_are_names_addresses_and_networks() {
        let read = |entries: &str| {
            Config::read(|name| (name == "JOB_WEBHOOK_ALLOW").then(|| entries.to_owned()))
        };
        let allowed = read("hooks.internal, 10.0.0.0/8,").unwrap().webhooks.allowed;
        assert!(allowed.has_name("hooks.internal"));
        assert!(allowed.has_address("10.1.2.3".parse().unwrap()));
        let error = read("hooks.internal:80").unwrap_err();
        assert_eq!(error.variable, "JOB_WEBHOOK_ALLOW");
    }
}
