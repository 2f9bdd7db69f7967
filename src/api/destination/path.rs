//! Normalizing and decoding of paths.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::api::error::ApiError;

/// The path with repeated slashes collapsed. Some clients join a base URL that ends with a slash and
/// a path that begins with one.
pub(in crate::api) fn single_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return path.into();
    }
    let mut single = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !single.ends_with('/') {
            single.push(character);
        }
    }
    single.into()
}

/// A path as Gemini reads it: decoded once, without a trailing slash.
///
/// # Errors
/// 400 for a path that another reader could understand in another way: by decoding it twice, by
/// resolving dots, by dropping empty segments, or by stopping at a control character.
pub(super) fn plain(path: &str) -> Result<String, ApiError> {
    let plain = percent_decode_str(path).decode_utf8_lossy();
    if plain.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(ApiError::unusable_path("A path must not have the segments `.` or `..`."));
    }
    if is_escaped(&plain) {
        return Err(ApiError::unusable_path("A path must not be percent-encoded twice."));
    }
    if plain.contains("//") || plain.contains(|character: char| character.is_ascii_control()) {
        return Err(ApiError::unusable_path(
            "A path must not have empty segments or control characters.",
        ));
    }
    Ok(plain.trim_end_matches('/').to_owned())
}

/// Refuses a path with percent-encoded slashes, where its segments say which interaction is meant.
///
/// # Errors
/// 400 for a path that has one: it could be part of a segment, or separate two.
pub(super) fn check_slashes(path: &str) -> Result<(), ApiError> {
    let is_slash = |three: &[u8]| three.eq_ignore_ascii_case(b"%2f");
    match path.as_bytes().windows(3).any(is_slash) {
        true => Err(ApiError::unusable_path("The path has a percent-encoded slash.")),
        false => Ok(()),
    }
}

/// Whether a path has a percent-encoded byte.
fn is_escaped(path: &str) -> bool {
    path.as_bytes().windows(3).any(|three| {
        three[0] == b'%' && three[1].is_ascii_hexdigit() && three[2].is_ascii_hexdigit()
    })
}
