//! The URLs at which uploads continue.
//!
//! Gemini gives each upload its own URL. Its `upload_id` is enough to continue the upload, without a
//! key. So the gateway signs such a URL before it returns it, and accepts a request without a key
//! only at a URL that it has signed. The signing key is the SHA-256 of the server's Gemini key, or of
//! the admin key where there is none, so that replicas with the same settings accept each other's
//! URLs, also after a restart. With neither, it is random for each process.

use std::sync::OnceLock;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use rustls::crypto::ring::default_provider;
use sha2::Sha256;

use crate::api::auth::{decoded, name_of, parameters};
use crate::api::destination::{UPLOAD_ID, continues_upload};
use crate::config::{AdminKey, Config};

/// How long a URL is valid.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24);

/// When a URL expires, in seconds of Unix time.
const EXPIRES: &str = "gateway_expires";
const SIGNATURE: &str = "gateway_signature";

/// The query with a signature, if it continues an upload; else unchanged.
pub(super) fn signed(config: &Config, path: &str, query: String, now: Timestamp) -> String {
    let Some(id) = only(&query, UPLOAD_ID).filter(|_| continues_upload(path, &query)) else {
        return query;
    };
    let expires = (now + LIFETIME).as_second();
    let signature = mac(config, path, &id, expires).finalize().into_bytes();
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
    format!("{query}&{EXPIRES}={expires}&{SIGNATURE}={signature}")
}

/// Whether a query has a valid signature of this gateway for its upload.
pub(super) fn is_signed(config: &Config, path: &str, query: &str, now: Timestamp) -> bool {
    let parts = only(query, UPLOAD_ID).zip(only(query, EXPIRES)).zip(only(query, SIGNATURE));
    let Some(((id, expires), signature)) = parts else { return false };
    let Ok(expires) = expires.parse() else { return false };
    let Ok(signature) = BASE64_URL_SAFE_NO_PAD.decode(signature) else { return false };
    now.as_second() < expires && mac(config, path, &id, expires).verify_slice(&signature).is_ok()
}

/// Whether a parameter is meant for the gateway.
pub(super) fn is_ours(parameter: &str) -> bool {
    matches!(&*name_of(parameter), EXPIRES | SIGNATURE)
}

fn mac(config: &Config, path: &str, id: &str, expires: i64) -> Hmac<Sha256> {
    let mut mac =
        Hmac::new_from_slice(&signing_key(config)).expect("HMAC takes a key of any length");
    mac.update(format!("upload\n{path}\n{id}\n{expires}").as_bytes());
    mac
}

fn signing_key(config: &Config) -> [u8; 32] {
    static OWN: OnceLock<[u8; 32]> = OnceLock::new();
    // The Gemini key is preferred: whoever has a signature can test guesses at its key offline, and
    // the admin key may be a short word.
    let gemini = config.gemini_api_key.as_ref().map(|key| *key.sha256());
    gemini.or_else(|| config.admin_api_key.as_ref().map(AdminKey::sha256)).unwrap_or_else(|| {
        *OWN.get_or_init(|| {
            let mut key = [0; 32];
            default_provider().secure_random.fill(&mut key).expect("the system has random bytes");
            key
        })
    })
}

/// The value of a parameter that occurs once. Where it occurs several times, readers disagree on
/// which value counts.
fn only(query: &str, name: &str) -> Option<String> {
    let mut values = values(query, name);
    values.next().filter(|_| values.next().is_none())
}

fn values(query: &str, name: &str) -> impl Iterator<Item = String> {
    let named = parameters(query).filter(move |parameter| name_of(parameter) == name);
    named.map(|parameter| decoded(parameter.split_once('=').map_or("", |(_, value)| value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/upload/v1beta/files";

    fn config(admin_key: &str) -> Config {
        Config { admin_api_key: Some(AdminKey::new(admin_key)), ..Config::default() }
    }

    #[test]
    fn a_signature_is_valid_for_one_upload_and_one_day() {
        let (config, now) = (config("one"), Timestamp::UNIX_EPOCH);
        let query = signed(&config, PATH, "a=b&upload_id=7%2B".to_owned(), now);
        assert!(is_signed(&config, PATH, &query, now));
        let day = SignedDuration::from_hours(24);
        assert!(is_signed(&config, PATH, &query, now + day - SignedDuration::from_secs(1)));
        assert!(!is_signed(&config, PATH, &query, now + day));
        assert!(!is_signed(&config, "/upload/v1/files", &query, now));
        for forged in [
            query.replace("upload_id=7", "upload_id=8"),
            query.replace("gateway_expires=", "gateway_expires=9"),
            format!("{query}&upload_id=8"),
            format!("{query}&%75pload_id=8"),
            query.replace("gateway_signature=", "gateway_signature=A"),
            "upload_id=7%2B".to_owned(),
            String::new(),
        ] {
            assert!(!is_signed(&config, PATH, &forged, now), "{forged}");
        }
    }

    #[test]
    fn replicas_with_the_same_key_accept_each_others_urls() {
        let now = Timestamp::UNIX_EPOCH;
        let query = signed(&config("one"), PATH, "upload_id=7".to_owned(), now);
        assert!(is_signed(&config("one"), PATH, &query, now));
        assert!(!is_signed(&config("two"), PATH, &query, now));
        // The admin key can be guessed, so it signs only where there is no Gemini key.
        let with_gemini_key = |admin_key: &str| {
            let mut config = config(admin_key);
            config.set_gemini_api_key(crate::gemini::ApiKey::new("the-server-key").unwrap());
            config
        };
        let query = signed(&with_gemini_key("one"), PATH, "upload_id=7".to_owned(), now);
        assert!(is_signed(&with_gemini_key("two"), PATH, &query, now));
        let keyless = Config::default();
        let query = signed(&keyless, PATH, "upload_id=7".to_owned(), now);
        assert!(is_signed(&keyless, PATH, &query, now));
        assert!(!is_signed(&config("one"), PATH, &query, now));
    }
}
