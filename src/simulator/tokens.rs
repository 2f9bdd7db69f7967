//! What text costs.

/// An estimate of what a text costs, in tokens: one for every four bytes, begun ones included,
/// and one for every character of an East Asian script (everything from U+2E80).
pub(super) fn tokens(text: &str) -> u64 {
    if text.is_ascii() {
        return text.len().div_ceil(4) as u64;
    }
    let (mut bytes, mut characters) = (0, 0);
    for character in text.chars() {
        if character >= '\u{2E80}' {
            characters += 1;
        } else {
            bytes += character.len_utf8() as u64;
        }
    }
    bytes.div_ceil(4) + characters
}

#[cfg(test)]
mod tests {
    use super::tokens;

    #[test]
    fn text_is_counted_by_bytes_and_east_asian_text_by_characters() {
        assert_eq!(tokens(""), 0);
        assert_eq!(tokens("12345"), 2);
        assert_eq!(tokens("été"), 2);
        assert_eq!(tokens("今日は ok"), 3 + 1);
    }
}
