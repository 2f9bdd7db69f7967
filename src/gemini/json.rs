//! Reads JSON in pieces, and repairs invalid surrogate pairs in it.

use bytes::Bytes;
use memchr::{memchr, memchr2};

/// The byte order mark that some proxies and editors put before a text.
pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// Replaces invalid characters.
const REPLACEMENT: &str = "\u{FFFD}";

/// Tracks the nesting depth in an object or a list that arrives in pieces.
#[derive(Clone, Debug, Default)]
pub struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Reads the next bytes. Returns the length up to and including the bracket that closes the
    /// outermost object or list, or `None` if it is not closed in these bytes.
    pub fn close(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                at += memchr2(b'"', b'\\', &bytes[at..])?;
                self.escaped = bytes[at] == b'\\';
                self.in_string = self.escaped;
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' if self.depth <= 1 => {
                        self.depth = 0;
                        return Some(at + 1);
                    }
                    b'}' | b']' => self.depth -= 1,
                    _ => {}
                }
            }
            at += 1;
        }
        None
    }
}

/// Tracks the braces of an object that arrives byte by byte, and is open from the start.
#[derive(Debug)]
pub(super) struct Braces {
    pub depth: usize,
    pub in_string: bool,
    pub escaped: bool,
}

impl Braces {
    /// Right after the first brace.
    pub fn open() -> Self {
        Self { depth: 1, in_string: false, escaped: false }
    }

    /// Reads the next byte. Returns whether it closes the object.
    pub fn closes(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            b'{' if !self.in_string => self.depth += 1,
            b'}' if !self.in_string => self.depth -= 1,
            _ => {}
        }
        self.depth == 0
    }
}

/// An object with a field put before its others. `object` is JSON and has a field.
pub(super) fn with_text_field(object: &[u8], name: &str, text: &str) -> Bytes {
    let fields = object.strip_prefix(b"{").expect("it is an object");
    let text = serde_json::to_string(text).expect("a text can be written as JSON");
    [b"{\"", name.as_bytes(), b"\":", text.as_bytes(), b",", fields].concat().into()
}

/// The same JSON with U+FFFD for each escape that is half of a surrogate pair, such as a single
/// `\ud83d`, which Unicode parsers reject. `None` if there is no such escape.
pub fn without_lone_surrogates(json: &[u8]) -> Option<Vec<u8>> {
    let mut repaired = None;
    let mut at = 0;
    while let Some(backslash) = json.get(at..).and_then(|rest| memchr(b'\\', rest)) {
        at += backslash;
        at += match (escaped_unit(json, at), escaped_unit(json, at + 6)) {
            (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => 12,
            (Some(0xD800..0xE000), _) => {
                let json = repaired.get_or_insert_with(|| json.to_vec());
                json[at..at + 6].copy_from_slice(br"\ufffd");
                6
            }
            _ => 2,
        };
    }
    repaired
}

/// The UTF-16 code unit of the escape `\uXXXX` at a position.
fn escaped_unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(br"\u")?;
    let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
    u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Converts a JSON string that was read as bytes, in which serde_json writes each half of a
/// surrogate pair like a character (WTF-8). Adjacent halves are joined; a single half becomes U+FFFD.
/// `None` if the bytes are not text.
pub(super) fn text(bytes: Vec<u8>) -> Option<String> {
    let bytes = match String::from_utf8(bytes) {
        Ok(text) => return Some(text),
        Err(error) => error.into_bytes(),
    };
    let mut text = Vec::with_capacity(bytes.len());
    let mut rest = &*bytes;
    while let Some(at) = memchr(0xED, rest) {
        text.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        rest = match *rest {
            [0xED, a @ 0xA0..0xB0, b, 0xED, c @ 0xB0..0xC0, d, ..] => {
                let half = |a: u8, b: u8| (u32::from(a & 0x0F) << 6) | u32::from(b & 0x3F);
                let character = 0x10000 + (half(a, b) << 10) + half(c, d);
                let character = char::from_u32(character).expect("both halves have ten bits");
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                &rest[6..]
            }
            [0xED, 0xA0..0xC0, _, ..] => {
                text.extend_from_slice(REPLACEMENT.as_bytes());
                &rest[3..]
            }
            _ => {
                text.push(0xED);
                &rest[1..]
            }
        };
    }
    text.extend_from_slice(rest);
    String::from_utf8(text).ok()
}

/// Takes the first half of a surrogate pair off the end of a text that was read as bytes. The second
/// half may follow.
pub(super) fn take_half(bytes: &mut Vec<u8>) -> Vec<u8> {
    match **bytes {
        [.., 0xED, 0xA0..0xB0, _] => bytes.split_off(bytes.len() - 3),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_object_is_found_wherever_the_bytes_are_cut() {
        for json in [r#"{"a":"}\"]\\","b":[{"c":1}]}"#, r#"["]",{}]"#, "{}"] {
            for cut in 0..json.len() {
                let (one, other) = json.as_bytes().split_at(cut);
                let mut nesting = Nesting::default();
                assert_eq!(nesting.close(one), None, "{json} at {cut}");
                let more = [other, b"}, {}"].concat();
                assert_eq!(nesting.close(&more), Some(other.len()), "{json} at {cut}");
            }
        }
    }

    #[test]
    fn only_single_halves_of_a_pair_are_replaced() {
        for (json, repaired) in [
            (r#""a\ud83d b""#, Some(r#""a\ufffd b""#)),
            (r#""\ud83d\ud83d\ude00\uDE00""#, Some(r#""\ufffd\ud83d\ude00\ufffd""#)),
            (r#""\ude00\ud83d""#, Some(r#""\ufffd\ufffd""#)),
            (r#""\\ud83d \u00e9 \ud83d\ude00 \" \uZZZZ \u12"#, None),
            (r#""\\\ud83d""#, Some(r#""\\\ufffd""#)),
            (r"\", None),
            (r"\ud83d\", Some(r"\ufffd\")),
        ] {
            let found = without_lone_surrogates(json.as_bytes());
            assert_eq!(found.as_deref(), repaired.map(str::as_bytes), "{json}");
        }
    }

    #[test]
    fn adjacent_halves_are_joined() {
        let (high, low) = (b"\xED\xA0\xBD".as_slice(), b"\xED\xB8\x80".as_slice());
        for (bytes, expected) in [
            ([high, low].concat(), Some("😀")),
            ([high, b" ", low].concat(), Some("\u{FFFD} \u{FFFD}")),
            ([low, high].concat(), Some("\u{FFFD}\u{FFFD}")),
            ([high, high, low, "é퟿".as_bytes()].concat(), Some("\u{FFFD}😀é퟿")),
            (b"\xff".to_vec(), None),
            (b"\xED\xA0".to_vec(), None),
        ] {
            assert_eq!(text(bytes.clone()).as_deref(), expected, "{bytes:x?}");
        }
        let mut bytes = [b"a", high].concat();
        assert_eq!(take_half(&mut bytes), high);
        assert_eq!(take_half(&mut bytes), b"");
        assert_eq!(bytes, b"a");
    }
}
