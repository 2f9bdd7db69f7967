//! JSON Pointers, and their form in URIs.

use std::borrow::Cow;

use serde_json::Value;

/// A property's name as a token of a JSON Pointer (RFC 6901, section 3).
pub(super) fn escape(name: &str) -> Cow<'_, str> {
    if name.contains(['~', '/']) {
        Cow::Owned(name.replace('~', "~0").replace('/', "~1"))
    } else {
        Cow::Borrowed(name)
    }
}

/// The name that a token of a JSON Pointer stands for (RFC 6901, section 4).
pub(super) fn unescape(token: &str) -> Cow<'_, str> {
    if token.contains('~') {
        Cow::Owned(token.replace("~1", "/").replace("~0", "~"))
    } else {
        Cow::Borrowed(token)
    }
}

/// The inner value with this name or index.
pub(super) fn step<'v>(value: &'v Value, token: &str) -> Option<&'v Value> {
    match value {
        Value::Object(map) => map.get(token),
        Value::Array(list) => {
            let is_plain = token == "0" || !token.starts_with(['0', '+']);
            list.get(token.parse::<usize>().ok().filter(|_| is_plain)?)
        }
        _ => None,
    }
}

/// The value at a JSON Pointer.
pub(super) fn lookup<'v>(value: &'v Value, pointer: &str) -> Option<&'v Value> {
    if pointer.is_empty() {
        return Some(value);
    }
    let mut tokens = pointer.strip_prefix('/')?.split('/');
    tokens.try_fold(value, |found, token| step(found, &unescape(token)))
}

/// The pointer with every token properly escaped, if it leads to a schema.
pub(super) fn normalized(value: &Value, pointer: &str) -> Option<String> {
    if !pointer.is_empty() && !pointer.starts_with('/') {
        return None;
    }
    let mut found = value;
    let mut normalized = String::with_capacity(pointer.len());
    for token in pointer.split('/').skip(1) {
        let name = unescape(token);
        found = step(found, &name)?;
        normalized.push('/');
        normalized.push_str(&escape(&name));
    }
    matches!(found, Value::Object(_) | Value::Bool(_)).then_some(normalized)
}

/// Decodes a fragment: a reference is a URI reference, so its fragment is percent-encoded (RFC
/// 6901, section 6). A `%` that does not start an escape is kept.
pub(super) fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = (first == b'%').then(|| after.first().zip(after.get(1))).flatten();
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let byte = digits
            .and_then(|(high, low)| Some(digit(high)? << 4 | digit(low)?))
            .and_then(|byte| u8::try_from(byte).ok());
        decoded.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

/// Encodes the characters that a URI reference may not contain (RFC 3986, appendix A), and no
/// others, so that a valid one does not change.
pub(super) fn encode(text: &str) -> String {
    encode_but(text, |byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}[]".contains(&byte))
}

/// A JSON Pointer as the fragment of a URI.
pub(super) fn fragment(pointer: &str) -> String {
    encode_but(pointer, |byte| {
        byte.is_ascii_alphanumeric() || b"/$-._~!&'()*+,;=:@?".contains(&byte)
    })
}

fn encode_but(text: &str, stays: impl Fn(u8) -> bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if stays(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
