//! Regular expressions whose compiled size is known without compiling them.
//!
//! Most expressions are literals, classes of ASCII characters, groups and quantifiers. They are
//! valid, they need no backtracking, and their size adds up from their parts.

use std::iter::Peekable;
use std::str::Chars;

/// In bytes: what the parts of a compiled expression take at most, about twice what is measured.
const BASE: usize = 1 << 10;
const CHARACTER: usize = 64;
const ALTERNATIVE: usize = 128;
const GROUP: usize = 256;
const QUANTIFIER: usize = 256;
const RANGE: usize = 32;
const ASCII_CLASS: usize = 256;
/// A set that has characters outside ASCII, such as `\S`, takes several states of the automaton.
const UNICODE_CLASS: usize = 4 << 10;

/// Groups one inside the other; the regex crate takes 250.
const MAX_DEPTH: usize = 50;

/// The largest number in a quantifier.
const MAX_REPEATS: usize = 1_000;

/// Characters that stand for themselves after a backslash.
const ESCAPABLE: &str = "^$\\.*+?()[]{}|/-";

/// Characters that stand for themselves nowhere outside a class.
const SYNTAX: &str = "^$\\.*+?()[]{}|";

/// The largest size, in bytes, that a plain expression has once compiled; none for an expression
/// that must be compiled to know whether it is valid.
pub(super) fn largest_size(source: &str) -> Option<usize> {
    let mut reader = Reader { rest: source.chars().peekable(), depth: 0 };
    let size = reader.alternatives()?;
    reader.rest.next().is_none().then(|| size.saturating_add(BASE))
}

struct Reader<'s> {
    rest: Peekable<Chars<'s>>,
    depth: usize,
}

impl Reader<'_> {
    /// Reads up to the end, or to the parenthesis that closes the group.
    fn alternatives(&mut self) -> Option<usize> {
        let mut size: usize = 0;
        while let Some(&next) = self.rest.peek() {
            if next == ')' {
                break;
            }
            self.rest.next();
            let part = match next {
                '|' => ALTERNATIVE,
                '^' | '$' => CHARACTER,
                _ => {
                    let atom = self.atom(next)?;
                    self.quantified(atom)?
                }
            };
            size = size.saturating_add(part);
        }
        Some(size)
    }

    fn atom(&mut self, first: char) -> Option<usize> {
        match first {
            '(' => self.group(),
            '[' => self.class(),
            '.' => Some(UNICODE_CLASS),
            '\\' => self.escape(),
            other => (other.is_ascii() && !SYNTAX.contains(other)).then_some(CHARACTER),
        }
    }

    fn group(&mut self) -> Option<usize> {
        if self.rest.next_if_eq(&'?').is_some() {
            self.rest.next_if_eq(&':')?;
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let size = self.alternatives()?;
        self.rest.next_if_eq(&')')?;
        self.depth -= 1;
        Some(size.saturating_add(GROUP))
    }

    fn escape(&mut self) -> Option<usize> {
        match self.rest.next()? {
            'd' | 'w' => Some(ASCII_CLASS),
            'D' | 'W' | 's' | 'S' => Some(UNICODE_CLASS),
            'n' | 'r' | 't' => Some(CHARACTER),
            other => ESCAPABLE.contains(other).then_some(CHARACTER),
        }
    }

    /// A class of characters and ranges, without the operations on sets that the regex crate has.
    fn class(&mut self) -> Option<usize> {
        let is_negated = self.rest.next_if_eq(&'^').is_some();
        let mut size = if is_negated { UNICODE_CLASS } else { ASCII_CLASS };
        let mut is_empty = true;
        loop {
            let member = match self.rest.next()? {
                ']' => return (!is_empty).then_some(size),
                '\\' => match self.rest.next()? {
                    'd' | 'w' => Member::Set(ASCII_CLASS),
                    'D' | 'W' | 's' | 'S' => Member::Set(UNICODE_CLASS),
                    'n' | 'r' | 't' => Member::Set(RANGE),
                    other if ESCAPABLE.contains(other) => Member::Character(other),
                    _ => return None,
                },
                '-' if !is_empty && self.rest.peek() != Some(&']') => return None,
                '[' | '&' | '~' => return None,
                other if other.is_ascii() => Member::Character(other),
                _ => return None,
            };
            is_empty = false;
            size = size.saturating_add(match member {
                Member::Set(size) => size,
                Member::Character(first) => {
                    self.range(first)?;
                    RANGE
                }
            });
        }
    }

    /// Reads the rest of a range that may start with a character.
    fn range(&mut self, first: char) -> Option<()> {
        let mut ahead = self.rest.clone();
        if ahead.next() != Some('-') || ahead.peek() == Some(&']') {
            return Some(());
        }
        self.rest.next();
        let last = self.rest.next()?;
        (last.is_ascii_alphanumeric() && first <= last).then_some(())
    }

    fn quantified(&mut self, atom: usize) -> Option<usize> {
        let repeats = match self.rest.peek() {
            Some('*' | '+' | '?') => {
                self.rest.next();
                2
            }
            Some('{') => {
                self.rest.next();
                self.braces()?
            }
            _ => return Some(atom),
        };
        self.rest.next_if_eq(&'?');
        if matches!(self.rest.peek(), Some('*' | '+' | '?' | '{')) {
            return None;
        }
        Some(atom.saturating_add(QUANTIFIER).saturating_mul(repeats))
    }

    /// How many copies of an atom a quantifier such as `{2,5}` makes.
    fn braces(&mut self) -> Option<usize> {
        let least = self.number()?;
        let copies = if self.rest.next_if_eq(&',').is_none() {
            least
        } else if self.rest.peek() == Some(&'}') {
            least + 1
        } else {
            self.number().filter(|most| *most >= least)?
        };
        self.rest.next_if_eq(&'}')?;
        Some(copies.max(1))
    }

    fn number(&mut self) -> Option<usize> {
        let mut number = None;
        while let Some(digit) = self.rest.peek().and_then(|c| c.to_digit(10)) {
            self.rest.next();
            let next = number.unwrap_or(0) * 10 + digit as usize;
            number = Some(next).filter(|next| *next <= MAX_REPEATS);
            number?;
        }
        number
    }
}

enum Member {
    /// Takes so many bytes.
    Set(usize),
    Character(char),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::largest_size;
    use crate::schema::patterns::is_compiled_within;

    #[test]
    fn the_size_of_plain_expressions_is_known() {
        for plain in [
            "",
            "^[A-Za-z_][A-Za-z0-9_.-]*$",
            r"^(?:\S+\s+){0,199}\S+$",
            r"^([Aa][Bb]|[Cc]\.[Dd])?$",
            r"^\d{4}-\d{2}-\d{2}(T.*)?$",
            r"[^\s/]+?",
            r"a{2,}|[-+*/]|[\]\\-]",
            "((((((a+)+)+)+)+)+)+",
        ] {
            let size = largest_size(plain).expect(plain);
            assert!(is_compiled_within(plain, size), "{plain}: more than {size} bytes");
        }
    }

    #[test]
    fn the_size_of_other_expressions_is_not_known() {
        for other in [
            "(?=a)", r"(a)\1", r"\p{L}", "é", "[é]", "[z-a]", "[a&&b]", "[]", "(", ")", "a**",
            "a{2,1}", "a{1001}", "*a", "[a", r"\b", "(?<n>a)", "^*", "[a-c-e]", r"[a-\d]", "a{",
        ] {
            assert_eq!(largest_size(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_plain_expression_is_valid_and_within_its_largest_size(
            source in r"([a-c^$.*+?()\[\]{}|/&~<>, 0-3-]|\\[dDwWsSnrt.^$/()-]|\[\^?[a-c\\d0-9-]{1,4}\]|\{[0-9]{1,2},?[0-9]{0,2}\}){0,12}"
        ) {
            if let Some(size) = largest_size(&source) {
                prop_assert!(is_compiled_within(&source, size), "{source}: more than {size} bytes");
            }
        }
    }
}
