//! Reads the `Retry-After` header.

use std::time::Duration;

use http::{HeaderMap, header::RETRY_AFTER};
use jiff::{Timestamp, fmt::rfc2822};

/// The wait that the header asks for, in whole seconds or as a date; at most `longest`. Source: RFC
/// 9110, section 10.2.3.
pub fn read(headers: &HeaderMap, now: Timestamp, longest: Duration) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = rfc2822::parse(value).ok()?.timestamp();
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_bounded() {
        let now: Timestamp = "2026-11-29T08:00:00Z".parse().unwrap();
        let read = |headers: &_| read(headers, now, Duration::from_secs(3600));
        for (value, expected) in [
            ("3", Some(3)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("18446744073709551615", Some(3600)),
            ("99999999999999999999", None),
            ("Sun, 29 Nov 2026 08:00:07 GMT", Some(7)),
            ("Sun, 29 Nov 2026 07:00:00 GMT", Some(0)),
            ("Fri, 01 Jan 2100 00:00:00 GMT", Some(3600)),
            ("-3", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(read(&headers), expected.map(Duration::from_secs), "{value:?}");
        }
        assert_eq!(read(&HeaderMap::new()), None);
    }
}
