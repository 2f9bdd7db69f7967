//! The URLs at which uploads go on.
//!
//! Gemini gives an upload a URL of its own, whose `upload_id` is all that it takes to go on. This
//! service signs such a URL before it hands it out, and without a key goes on only at a URL that it
//! has signed. The key of the signature is derived from the server's Gemini key, or else from the admin
//! key, so that replicas with the same settings take each other's URLs, also after a restart.
//! With neither, it is this process's own.

use std::sync::OnceLock;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use rustls::crypto::ring::default_provider;
use sha2::Sha256;

use crate::api::auth::{decoded, name_of, parameters};
use crate::config::{AdminKey, Config};

/// How long a URL is good for.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24);

const UPLOAD_ID: &str = "upload_id";
/// When a URL is no longer good, in seconds of Unix time.
const EXPIRES: &str = "gateway_expires";
const SIGNATURE: &str = "gateway_signature";

/// Whether a request goes on with an upload.
pub(super) fn goes_on(path: &str, query: &str) -> bool {
    path.starts_with("/upload/") && values(query, UPLOAD_ID).next().is_some()
}

/// A query with the signature of the upload that it goes on with, if it does.
pub(super) fn signed(config: &Config, path: &str, query: String, now: Timestamp) -> String {
    let Some(id) = only(&query, UPLOAD_ID).filter(|_| goes_on(path, &query)) else { return query };
    let expires = (now + LIFETIME).as_second();
    let signature = mac(config, path, &id, expires).finalize().into_bytes();
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
    format!("{query}&{EXPIRES}={expires}&{SIGNATURE}={signature}")
}

/// Whether a query has a signature of this service for its upload that is still good.
pub(super) fn is_signed(config: &Config, path: &str, query: &str, now: Timestamp) -> bool {
    let parts = only(query, UPLOAD_ID).zip(only(query, EXPIRES)).zip(only(query, SIGNATURE));
    let Some(((id, expires), signature)) = parts else { return false };
    let Ok(expires) = expires.parse() else { return false };
    let Ok(signature) = BASE64_URL_SAFE_NO_PAD.decode(signature) else { return false };
    now.as_second() < expires && mac(config, path, &id, expires).verify_slice(&signature).is_ok()
}

/// Whether a parameter is for this service.
pub(super) fn is_ours(parameter: &str) -> bool {
    matches!(&*name_of(parameter), EXPIRES | SIGNATURE)
}

fn mac(config: &Config, path: &str, id: &str, expires: i64) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(&signing_key(config)).expect("any length is a key's");
    mac.update(format!("upload\n{path}\n{id}\n{expires}").as_bytes());
    mac
}

fn signing_key(config: &Config) -> [u8; 32] {
    static OWN: OnceLock<[u8; 32]> = OnceLock::new();
    // A signature lets its reader try guesses at the key: the admin key may be a short word.
    let gemini = config.gemini_api_key.as_ref().map(|key| *key.sha256());
    gemini.or_else(|| config.admin_api_key.as_ref().map(AdminKey::sha256)).unwrap_or_else(|| {
        *OWN.get_or_init(|| {
            let mut key = [0; 32];
            default_provider().secure_random.fill(&mut key).expect("the system has random bytes");
            key
        })
    })
}

/// The value of a parameter that is there once: readers do not agree which of several counts.
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
    fn a_signature_is_good_for_one_upload_and_one_day() {
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
    fn replicas_with_the_same_key_take_each_others_urls() {
        let now = Timestamp::UNIX_EPOCH;
        let query = signed(&config("one"), PATH, "upload_id=7".to_owned(), now);
        assert!(is_signed(&config("one"), PATH, &query, now));
        assert!(!is_signed(&config("two"), PATH, &query, now));
        // The admin key, which can be guessed, signs nothing where there is another key.
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
