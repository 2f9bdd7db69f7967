//! The files of the pages: style, script and icon. They are part of the program.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use sha2::{Digest, Sha256};

/// A file.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    content: &'static str,
    etag: LazyLock<String>,
}

macro_rules! asset {
    ($name:literal, $content_type:literal) => {{
        const CONTENT: &str = include_str!(concat!("assets/", $name));
        Asset {
            name: $name,
            content_type: $content_type,
            content: CONTENT,
            etag: LazyLock::new(|| etag(CONTENT)),
        }
    }};
}

static ASSETS: [Asset; 3] = [
    asset!("dashboard.css", "text/css; charset=utf-8"),
    asset!("dashboard.js", "text/javascript; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
];

/// The beginning of the SHA-256, in quotes.
fn etag(content: &str) -> String {
    let mut etag = String::from("\"");
    for byte in &Sha256::digest(content)[..16] {
        write!(etag, "{byte:02x}").expect("a text is written to memory");
    }
    etag + "\""
}

/// Serves a file, or 304 if the browser has it.
pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let known = headers.get_all(IF_NONE_MATCH).iter();
    let mut known = known.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
    let is_known = known.any(|tag| tag.trim().trim_start_matches("W/") == *asset.etag);
    let etag = HeaderValue::from_str(&asset.etag).expect("it is hexadecimal");
    let headers = [
        (ETAG, etag),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (CONTENT_TYPE, HeaderValue::from_static(asset.content_type)),
    ];
    match is_known {
        true => (StatusCode::NOT_MODIFIED, headers).into_response(),
        false => (headers, asset.content).into_response(),
    }
}
