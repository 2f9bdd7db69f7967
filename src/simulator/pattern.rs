//! Generating a text that matches a regular expression of a schema.

use std::iter::Peekable;
use std::str::Chars;

/// The shortest text that matches a pattern, taking the first alternative each time. Literals,
/// escapes, classes, groups, alternatives and repetitions are supported; look-around and
/// back-references are read as literals.
pub(super) fn matching_text(pattern: &str) -> String {
    let mut text = String::new();
    let mut rest = pattern.chars().peekable();
    alternatives(&mut rest, &mut text);
    text
}

/// Appends the first alternative and skips the others, up to the end of the group.
fn alternatives(rest: &mut Peekable<Chars<'_>>, text: &mut String) {
    sequence(rest, text);
    while rest.next_if_eq(&'|').is_some() {
        sequence(rest, &mut String::new());
    }
}

fn sequence(rest: &mut Peekable<Chars<'_>>, text: &mut String) {
    while let Some(next) = rest.next_if(|next| !matches!(next, '|' | ')')) {
        let mut atom = String::new();
        match next {
            '^' | '$' => continue,
            '(' => {
                if rest.next_if_eq(&'?').is_some() {
                    rest.next_if_eq(&':');
                }
                alternatives(rest, &mut atom);
                rest.next_if_eq(&')');
            }
            '[' => atom.push(class(rest)),
            '\\' => atom.extend(rest.next().and_then(escape)),
            '.' => atom.push('a'),
            literal => atom.push(literal),
        }
        text.push_str(&atom.repeat(repetitions(rest)));
    }
}

/// One character of a class. For a negated class, one that is rarely excluded.
fn class(rest: &mut Peekable<Chars<'_>>) -> char {
    let negated = rest.next_if_eq(&'^').is_some();
    let mut members = String::new();
    while let Some(member) = rest.next() {
        match member {
            ']' if !members.is_empty() => break,
            '\\' => members.extend(rest.next().and_then(escape)),
            member => members.push(member),
        }
    }
    if negated {
        ['a', '0', ' ', '_'].into_iter().find(|&c| !members.contains(c)).unwrap_or('~')
    } else {
        members.chars().next().unwrap_or('a')
    }
}

/// The character that an escape matches; `None` for a boundary.
fn escape(escaped: char) -> Option<char> {
    match escaped {
        'd' => Some('0'),
        'w' | 'D' | 'S' => Some('a'),
        's' | 'W' => Some(' '),
        'n' => Some('\n'),
        't' => Some('\t'),
        'b' | 'B' | 'A' | 'z' | 'Z' => None,
        literal => Some(literal),
    }
}

/// The least number of repetitions.
fn repetitions(rest: &mut Peekable<Chars<'_>>) -> usize {
    let least = match rest.peek() {
        Some('*' | '?') => 0,
        Some('+') => 1,
        Some('{') => {
            rest.next();
            let bounds: String = std::iter::from_fn(|| rest.next_if(|next| *next != '}')).collect();
            bounds.split(',').next().and_then(|least| least.parse().ok()).unwrap_or(0)
        }
        _ => return 1,
    };
    rest.next();
    rest.next_if(|next| matches!(next, '?' | '+'));
    least
}

#[cfg(test)]
mod tests {
    use super::matching_text;

    #[test]
    fn the_shortest_match_is_given() {
        for (pattern, text) in [
            ("^[A-Z]{2}-\\d{3,5}$", "AA-000"),
            ("^(foo|bar)+\\.(?:com|org)$", "foo.com"),
            ("a?b*c+?", "c"),
            ("^[^a]\\w\\s$", "0a "),
            ("^[\\d.]+$", "0"),
            ("", ""),
        ] {
            assert_eq!(matching_text(pattern), text, "{pattern}");
        }
    }
}
