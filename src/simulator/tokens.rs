//! Counting tokens.

/// Estimates the tokens of a text: one for every four bytes, rounded up, and one for every character
/// of an East Asian script (from U+2E80 on).
pub(super) fn tokens(text: &str) -> u64 {
    let mut count = Count::default();
    count.add(text);
    count.tokens()
}

/// Counts a text that arrives in pieces.
#[derive(Default)]
pub(super) struct Count {
    /// Of the characters that are not East Asian.
    bytes: u64,
    east_asian: u64,
}

impl Count {
    /// Counts one more piece.
    pub fn add(&mut self, piece: &str) {
        if piece.is_ascii() {
            self.bytes += piece.len() as u64;
            return;
        }
        for character in piece.chars() {
            if character >= '\u{2E80}' {
                self.east_asian += 1;
            } else {
                self.bytes += character.len_utf8() as u64;
            }
        }
    }

    /// The tokens so far.
    pub fn tokens(&self) -> u64 {
        self.bytes.div_ceil(4) + self.east_asian
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_counted_by_bytes_and_east_asian_text_by_characters() {
        assert_eq!(tokens(""), 0);
        assert_eq!(tokens("12345"), 2);
        assert_eq!(tokens("été"), 2);
        assert_eq!(tokens("今日は ok"), 3 + 1);
    }

    #[test]
    fn pieces_count_as_much_as_the_whole() {
        let mut count = Count::default();
        ["12", "3é", "今", "4"].iter().for_each(|piece| count.add(piece));
        assert_eq!(count.tokens(), tokens("123é今4"));
    }
}
