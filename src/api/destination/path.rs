//! Paths, as they come and as they are read.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::api::error::ApiError;

/// A path in which no two slashes follow each other. Clients join a base URL that ends with a slash
/// and a path that begins with one.
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

/// A path as its receiver reads it: decoded once, without a slash at its end.
///
/// # Errors
/// 400 where it could be read in another way: a second time, with dots resolved, without its empty
/// segments, or up to a character that ends a line or a text.
pub(super) fn plain(path: &str) -> Result<String, ApiError> {
    let plain = percent_decode_str(path).decode_utf8_lossy();
    if plain.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(ApiError::unusable_path("A path has no `.` and no `..` in it."));
    }
    if is_escaped(&plain) {
        return Err(ApiError::unusable_path("A path is escaped at most once."));
    }
    if plain.contains("//") || plain.contains(|character: char| character.is_ascii_control()) {
        return Err(ApiError::unusable_path(
            "A path has no empty segment and no control character.",
        ));
    }
    Ok(plain.trim_end_matches('/').to_owned())
}

/// Whether anything in a path is escaped.
fn is_escaped(path: &str) -> bool {
    path.as_bytes().windows(3).any(|three| {
        three[0] == b'%' && three[1].is_ascii_hexdigit() && three[2].is_ascii_hexdigit()
    })
}
