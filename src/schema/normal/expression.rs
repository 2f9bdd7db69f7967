//! Rewrites regular expressions that ECMAScript accepts only without the `u` flag to ones that it
//! accepts with the flag.
//!
//! JSON Schema requires expressions that are valid with the flag, but authors test them without it
//! (ECMA-262, annex B.1.2: a backslash before any character, unpaired braces and brackets,
//! `[\w-.]`, octal escapes). Some of these have another meaning in the engine that runs them.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::CharIndices;

/// Characters with a meaning outside a class, before which a backslash is kept.
const SYNTAX: &str = "^$\\.*+?()[]{}|/";

/// Characters with a meaning in a class, before which a backslash is kept.
const CLASS_SYNTAX: &str = "^\\[]-/";

/// The expression in the stricter form. What is invalid in both forms is kept.
pub(super) fn rewritten(source: &str) -> Cow<'_, str> {
    if !source.contains(['\\', '{', '}', ']']) {
        return Cow::Borrowed(source);
    }
    let mut rewriting = Rewriting {
        source,
        rest: source.char_indices().peekable(),
        groups: groups(source),
        backtracks: ["(?=", "(?!", "(?<=", "(?<!", "\\k"].iter().any(|part| source.contains(part)),
        written: String::with_capacity(source.len()),
    };
    rewriting.run();
    Cow::Owned(rewriting.written)
}

struct Rewriting<'s> {
    source: &'s str,
    rest: Peekable<CharIndices<'s>>,
    groups: Groups,
    /// Whether the expression needs the backtracking engine, in which `\d` and `\w` are sets of
    /// Unicode.
    backtracks: bool,
    written: String,
}

/// The groups that a back-reference may refer to.
struct Groups {
    count: u32,
    are_named: bool,
}

fn groups(source: &str) -> Groups {
    let mut groups = Groups { count: 0, are_named: false };
    let mut in_class = false;
    let mut bytes = source.as_bytes();
    while let Some((first, after)) = bytes.split_first() {
        bytes = after;
        match first {
            b'\\' => bytes = after.get(1..).unwrap_or_default(),
            b'[' => in_class = true,
            b']' => in_class = false,
            b'(' if !in_class => {
                let is_named = after.starts_with(b"?<")
                    && after.get(2).is_some_and(|next| !matches!(next, b'=' | b'!'));
                groups.are_named |= is_named;
                groups.count += u32::from(is_named || !after.starts_with(b"?"));
            }
            _ => {}
        }
    }
    groups
}

impl Rewriting<'_> {
    fn run(&mut self) {
        while let Some((at, c)) = self.rest.next() {
            match c {
                '\\' => self.escape(false),
                '[' => self.class(),
                '{' => match quantifier(&self.source[at..]) {
                    Some(quantifier) => {
                        self.written.push_str(quantifier);
                        self.skip(quantifier.len() - 1);
                    }
                    None => self.written.push_str("\\{"),
                },
                '}' | ']' => self.literal(c, SYNTAX),
                other => self.written.push(other),
            }
        }
    }

    /// Writes a literal character.
    fn literal(&mut self, c: char, syntax: &str) {
        if syntax.contains(c) {
            self.written.push('\\');
        }
        self.written.push(c);
    }

    fn push_code(&mut self, code: u32) {
        self.written.push_str(&format!("\\u{{{code:X}}}"));
    }

    /// Rewrites an escape. Letters with a meaning in other languages, and none in ECMAScript, are
    /// kept, and become errors.
    fn escape(&mut self, in_class: bool) {
        let syntax = if in_class { CLASS_SYNTAX } else { SYNTAX };
        let Some((at, c)) = self.rest.next() else { return self.written.push('\\') };
        match c {
            'u' => self.unicode(at),
            'x' => match hex(self.source, at + 1, 2) {
                Some(code) => {
                    self.skip(2);
                    self.push_code(code);
                }
                None => self.written.push('x'),
            },
            '0'..='9' => self.number(at, in_class),
            'd' | 'w' | 'D' | 'W' if self.backtracks => self.set(c, in_class),
            'b' if in_class => self.push_code(8),
            'k' if !self.groups.are_named => self.written.push('k'),
            'p' | 'P' if self.source[at + 1..].starts_with('{') => self.braced(c, at),
            'p' | 'P' => self.written.push(c),
            '-' if !in_class => self.written.push('-'),
            c if c.is_ascii_alphanumeric() => self.written.extend(['\\', c]),
            other => self.literal(other, syntax),
        }
    }

    fn skip(&mut self, characters: usize) {
        for _ in 0..characters {
            self.rest.next();
        }
    }

    /// Writes a set of ASCII characters, as ECMAScript defines it with the flag and without.
    fn set(&mut self, letter: char, in_class: bool) {
        let characters = if letter.eq_ignore_ascii_case(&'d') { "0-9" } else { "A-Za-z0-9_" };
        match (letter.is_ascii_uppercase(), in_class) {
            (false, true) => self.written.push_str(characters),
            (false, false) => self.written.push_str(&format!("[{characters}]")),
            (true, false) => self.written.push_str(&format!("[^{characters}]")),
            (true, true) => self.written.extend(['\\', letter]),
        }
    }

    /// Copies an escape with a value in braces, such as `\p{Lu}`.
    fn braced(&mut self, letter: char, at: usize) {
        self.written.extend(['\\', letter]);
        let braced = &self.source[at + 1..];
        let length = braced.find('}').map_or(1, |end| end + 1);
        self.written.push_str(&braced[..length]);
        self.skip(braced[..length].chars().count());
    }

    /// Rewrites a `\u` with its digits. With the flag, a surrogate pair is one character.
    fn unicode(&mut self, at: usize) {
        let digits = |at| hex(self.source, at, 4);
        match digits(at + 1) {
            Some(high @ 0xD800..=0xDBFF) if self.source[at + 5..].starts_with("\\u") => {
                match digits(at + 7) {
                    Some(low @ 0xDC00..=0xDFFF) => {
                        self.skip(10);
                        self.push_code(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00));
                    }
                    _ => self.written.push_str("\\u"),
                }
            }
            Some(code) if char::from_u32(code).is_some() => {
                self.skip(4);
                self.push_code(code);
            }
            Some(_) => self.written.push_str("\\u"),
            None if self.source[at + 1..].starts_with('{') => self.braced('u', at),
            None => self.written.push('u'),
        }
    }

    /// Rewrites a back-reference to a group, or else an octal code of a character, or else literal
    /// digits.
    fn number(&mut self, at: usize, in_class: bool) {
        let digits = &self.source[at..];
        let length = digits.bytes().take_while(u8::is_ascii_digit).take(6).count();
        let is_back_reference = !in_class
            && !digits.starts_with('0')
            && digits[..length].parse().is_ok_and(|number: u32| number <= self.groups.count);
        if is_back_reference {
            self.written.push('\\');
            self.written.push_str(&digits[..length]);
            self.skip(length - 1);
            return;
        }
        let longest = if digits.starts_with(['0', '1', '2', '3']) { 3 } else { 2 };
        let length = digits.bytes().take_while(|b| (b'0'..=b'7').contains(b)).take(longest).count();
        match u32::from_str_radix(&digits[..length], 8) {
            Ok(code) => {
                self.skip(length - 1);
                self.push_code(code);
            }
            Err(_) => self.written.push_str(&digits[..1]),
        }
    }

    /// Rewrites a class, whose `[` was read. Not all engines accept `[]` and `[^]`.
    fn class(&mut self) {
        let negated = self.rest.next_if(|(_, c)| *c == '^').is_some();
        if self.rest.next_if(|(_, c)| *c == ']').is_some() {
            return self.written.push_str(if negated { "[\\s\\S]" } else { "[^\\s\\S]" });
        }
        self.written.push_str(if negated { "[^" } else { "[" });
        let (mut is_first, mut after_set) = (true, false);
        while let Some((at, c)) = self.rest.next() {
            let rest = &self.source[at + c.len_utf8()..];
            let mut is_a_set = false;
            match c {
                ']' => return self.written.push(']'),
                // A set cannot be an end of a range.
                '-' if (after_set || is_set(rest)) && !is_first && !rest.starts_with(']') => {
                    self.written.push_str("\\-");
                }
                '\\' => {
                    is_a_set = is_set(&self.source[at..]);
                    self.escape(true);
                }
                other => self.written.push(other),
            }
            (is_first, after_set) = (false, is_a_set);
        }
    }
}

/// Whether a text starts with an escape that stands for a set of characters.
fn is_set(text: &str) -> bool {
    let escaped = text.strip_prefix('\\');
    escaped.is_some_and(|text| {
        text.starts_with(['d', 'D', 's', 'S', 'w', 'W'])
            || text.starts_with("p{")
            || text.starts_with("P{")
    })
}

/// The quantifier in braces at the start of a text.
fn quantifier(text: &str) -> Option<&str> {
    let end = text.find('}')?;
    let (least, most) = match text[1..end].split_once(',') {
        Some((least, most)) => (least, most),
        None => (&text[1..end], ""),
    };
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    (!least.is_empty() && is_number(least) && is_number(most)).then(|| &text[..=end])
}

fn hex(text: &str, at: usize, digits: usize) -> Option<u32> {
    let digits = text.get(at..at + digits)?;
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::rewritten;

    #[test]
    fn expressions_that_are_valid_with_the_flag_are_kept() {
        for same in [
            "^[a-z]{2,3}$",
            "a{3}b{4,}",
            r"\d+\.\w\/\s\S\[\]\(\)\{\}\|\\",
            r"[\w\-]",
            r"[-\w_]",
            r"[^-\w]",
            r"(a)\1",
            r"(?<year>[0-9]{4})-\k<year>",
            r"\p{Lu}\P{L}\u{1F600}",
            r"[\p{Lu}]",
            r"\bword\B",
            r"[^\]\\a-z]",
            r"\cA\n\t\v\f\r",
            "[&&a--b~~]",
            r"(?!x)(?=y)(?<=z)(?<!w)",
        ] {
            assert_eq!(rewritten(same), same);
        }
    }

    #[test]
    fn expressions_that_are_valid_without_the_flag_are_made_strict() {
        for (loose, strict) in [
            (r"\-\_\@\:\ \'\=\<\>\~", "-_@: '=<>~"),
            (r"[\_\.\@\/\-\ ]", r"[_.@\/\- ]"),
            (r"[\w-.]+", r"[\w\-.]+"),
            (r"[a-\d]", r"[a\-\d]"),
            (r"[\w-]", r"[\w-]"),
            ("^{a}$", r"^\{a\}$"),
            ("a{,5}", r"a\{,5\}"),
            ("a]", r"a\]"),
            ("x{1", r"x\{1"),
            (r"[^]", r"[\s\S]"),
            (r"[]", r"[^\s\S]"),
            (r"[\b]", r"[\u{8}]"),
            (r"\0", r"\u{0}"),
            (r"(a)\2", r"(a)\u{2}"),
            (r"\101\8", r"\u{41}8"),
            (r"\x41\u0041\xZ\uZ", r"\u{41}\u{41}xZuZ"),
            (r"\uD83D\uDE00", r"\u{1F600}"),
            (r"\k\p", "kp"),
            (r"(?!x)\w[-\w]\D\d", "(?!x)[A-Za-z0-9_][-A-Za-z0-9_][^0-9][0-9]"),
        ] {
            assert_eq!(rewritten(loose), strict, "{loose}");
        }
    }
}
