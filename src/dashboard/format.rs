//! Numbers, times and texts for people.

use std::time::Duration;

use jiff::Timestamp;

/// The longest text that is shown of what came from outside, in characters.
const MAX_TEXT: usize = 200;

/// The longest answer that is shown, in characters.
const MAX_LONG_TEXT: usize = 200_000;

/// A whole number with a comma between thousands.
pub(super) fn whole(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with three digits: `999`, `1.23k`, `45.6M`, `0.123`.
pub(super) fn short(number: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let (mut number, mut unit) = (number.max(0.0), 0);
    while number >= 999.5 && unit + 1 < UNITS.len() {
        number /= 1000.0;
        unit += 1;
    }
    let decimals = match number {
        number if unit == 0 && number.fract() == 0.0 => 0,
        number if number >= 99.95 => 0,
        number if number >= 9.995 => 1,
        number if unit > 0 || number >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{number:.decimals$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// US dollars.
pub(super) fn dollars(dollars: f64) -> String {
    match dollars {
        0.0 => "$0".to_owned(),
        dollars if dollars < 0.0001 => "< $0.0001".to_owned(),
        dollars if dollars < 1.0 => format!("${dollars:.4}"),
        dollars if dollars < 10_000.0 => format!("${dollars:.2}"),
        dollars => format!("${}", whole(dollars as u64)),
    }
}

/// A duration in the two largest units: `340 ms`, `2.4 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {small_unit}"),
    };
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..=9 => format!("{:.1} s", duration.as_secs_f64()),
        10..=59 => format!("{seconds} s"),
        60..=3599 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..=86_399 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// Seconds as [`duration`] writes them.
pub(super) fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

/// How long ago a moment was, in one unit: `now`, `5 s ago`, `3 min ago`.
pub(super) fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(time).as_secs();
    match seconds {
        ..1 => "now".to_owned(),
        1..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// A moment: the day and the time of day, in UTC.
pub(super) fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The time of day of a moment, in UTC.
pub(super) fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M UTC").to_string()
}

/// A size in bytes.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        _ => format!(
            "{}B",
            short(bytes as f64).replace('k', " k").replace('M', " M").replace('G', " G")
        ),
    }
}

/// A share in percent, rounded down so that 100 % is all.
pub(super) fn percent(part: u64, whole: u64) -> u64 {
    match whole {
        0 => 0,
        whole => u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(u64::MAX),
    }
}

/// A text from outside: bounded, and without characters that are invisible or change the direction of
/// others.
pub(super) fn outside(text: &str) -> String {
    at_most(text, MAX_TEXT)
}

/// The same, with at most `most` characters.
pub(super) fn at_most(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).map(visible).collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// A long text from outside: with its line breaks and with what joins and divides words and emoji, and
/// bounded too.
pub(super) fn long(text: &str) -> String {
    let shown = text.chars().take(MAX_LONG_TEXT).map(|c| match c {
        '\n' | '\t' | '\u{ad}' | '\u{200c}' | '\u{200d}' => c,
        c => visible(c),
    });
    let mut shown: String = shown.collect();
    if text.chars().nth(MAX_LONG_TEXT).is_some() {
        shown.push('…');
    }
    shown
}

/// Source: Unicode 17.0, the formatting characters (Cf) that have no form of their own, and the line and
/// paragraph separators.
fn visible(c: char) -> char {
    match c {
        '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => '�',
        c if c.is_control() => ' ',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345_678, "12,345,678")]
        {
            assert_eq!(whole(number), text);
        }
        for (number, text) in [
            (0.0, "0"),
            (7.0, "7"),
            (0.1234, "0.123"),
            (1.5, "1.5"),
            (12.34, "12.3"),
            (999.0, "999"),
            (999.9, "1k"),
            (1234.0, "1.23k"),
            (45_600_000.0, "45.6M"),
            (1e9, "1G"),
            (1e20, "100000000T"),
        ] {
            assert_eq!(short(number), text);
        }
        for (number, text) in [
            (0.0, "$0"),
            (0.000_01, "< $0.0001"),
            (0.0363, "$0.0363"),
            (12.5, "$12.50"),
            (12_345.6, "$12,345"),
        ] {
            assert_eq!(dollars(number), text);
        }
        for (number, text) in [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (20_000_000, "20 MB")]
        {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(
            [percent(1, 3), percent(999, 1000), percent(5, 0), percent(u64::MAX, 1)],
            [33, 99, 0, u64::MAX]
        );
    }

    #[test]
    fn durations_have_two_units() {
        for (millis, text) in [
            (0, "0 ms"),
            (340, "340 ms"),
            (2400, "2.4 s"),
            (59_900, "59 s"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
            (7_200_000, "2 h"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(seconds(f64::INFINITY), duration(Duration::MAX));
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (second, text) in
            [(1_000_001, "now"), (999_999, "1 s ago"), (999_800, "3 min ago"), (1, "11 d ago")]
        {
            assert_eq!(ago(Timestamp::from_second(second).unwrap(), now), text);
        }
        assert_eq!(moment(now), "1970-01-12 13:46:40 UTC");
    }

    #[test]
    fn texts_from_outside_are_bounded_and_visible() {
        assert_eq!(outside("a\u{202e}b\nc\u{200b}"), "a�b c�");
        assert_eq!(outside("\u{61c}\u{2028}\u{ad}\u{e0041}"), "����");
        assert_eq!(long("a\r\nb\u{202e}"), "a \nb�");
        assert_eq!(long("\u{1f469}\u{200d}\u{1f52c}"), "\u{1f469}\u{200d}\u{1f52c}");
        assert_eq!(at_most("abc", 3), "abc");
        assert_eq!(at_most("abcd", 3), "abc…");
        assert_eq!(outside(&"é".repeat(300)).chars().count(), MAX_TEXT + 1);
    }
}
