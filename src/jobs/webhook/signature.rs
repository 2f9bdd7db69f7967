//! Signs messages. Source: the specification of Standard Webhooks, "Signature scheme".

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;

/// What a secret begins with.
const PREFIX: &str = "whsec_";

/// The lengths of a secret, in bytes. Source: the specification.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;

/// How many secrets there may be.
const MAX_SECRETS: usize = 8;

/// Secrets are often written without the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The secrets of webhooks. Messages are signed with each, so that receivers can change theirs one after
/// the other. Cheap to clone.
#[derive(Clone, Default)]
pub struct WebhookSecrets(Arc<[SecretSlice<u8>]>);

/// Secrets that cannot be used. The error quotes nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "at most {MAX_SECRETS} secrets, separated by commas or spaces: {PREFIX} and the base64 of {} to {} bytes",
    LENGTHS.start(),
    LENGTHS.end()
)]
pub struct InvalidWebhookSecrets;

impl WebhookSecrets {
    /// Reads secrets, which are separated by commas or white space.
    ///
    /// # Errors
    /// [`InvalidWebhookSecrets`], also if there is none.
    pub fn parse(text: &str) -> Result<Self, InvalidWebhookSecrets> {
        let entries = text.split(|c: char| c == ',' || c.is_whitespace());
        let secrets = entries.filter(|entry| !entry.is_empty()).map(read);
        let secrets: Arc<[_]> = secrets.collect::<Option<_>>().ok_or(InvalidWebhookSecrets)?;
        let is_usable = (1..=MAX_SECRETS).contains(&secrets.len());
        is_usable.then_some(Self(secrets)).ok_or(InvalidWebhookSecrets)
    }

    /// Whether there is no secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `webhook-signature`: one signature for each secret. `timestamp` is in seconds of
    /// Unix time.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> HeaderValue {
        let signatures = self.0.iter().map(|secret| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret())
                .expect("HMAC takes a key of any length");
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
        });
        let signatures: Vec<_> = signatures.collect();
        HeaderValue::try_from(signatures.join(" ")).expect("it is base64")
    }
}

fn read(secret: &str) -> Option<SecretSlice<u8>> {
    let secret = BASE64.decode(secret.strip_prefix(PREFIX)?).ok()?;
    let secret = SecretSlice::from(secret);
    LENGTHS.contains(&secret.expose_secret().len()).then_some(secret)
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookSecrets({} of them)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the reference libraries, which have it as a test.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn sign(secrets: &str) -> String {
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let body = br#"{"test": 2432232314}"#;
        let signature = WebhookSecrets::parse(secrets).unwrap().sign(id, 1_614_265_330, body);
        signature.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_published_example_has_its_signature() {
        assert_eq!(sign(SECRET), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_signs() {
        let new = format!("whsec_{}", BASE64_STANDARD.encode([7; 32]));
        let both = format!("{} {}", sign(&new), sign(SECRET));
        for written in [format!("{new},{SECRET}"), format!(" {new} ,\t{SECRET},")] {
            assert_eq!(sign(&written), both);
        }
        let unpadded = new.trim_end_matches('=');
        assert_eq!(sign(unpadded), sign(&new));
    }

    #[test]
    fn a_secret_that_is_not_as_specified_is_invalid() {
        let of = |bytes: &[u8]| format!("whsec_{}", BASE64_STANDARD.encode(bytes));
        for secrets in [
            String::new(),
            ",".to_owned(),
            "whsec_".to_owned(),
            SECRET.replace("whsec_", ""),
            format!("{SECRET}!"),
            format!("{SECRET},secret"),
            of(&[7; 23]),
            of(&[7; 65]),
            [SECRET; MAX_SECRETS + 1].join(","),
        ] {
            assert_eq!(WebhookSecrets::parse(&secrets).err(), Some(InvalidWebhookSecrets));
        }
        assert!(WebhookSecrets::parse(&of(&[7; 24])).is_ok());
        assert!(WebhookSecrets::parse(&of(&[7; 64])).is_ok());
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", WebhookSecrets::parse(SECRET).unwrap());
        assert_eq!(shown, "WebhookSecrets(1 of them)");
    }
}
