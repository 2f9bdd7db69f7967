use base64::Engine;
use base64::prelude::{
    BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD,
};

use proptest::prelude::*;

use super::*;

const KEY: &str = "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY";

fn key(secret: &str) -> ApiKey {
    ApiKey::new(secret).unwrap()
}

fn secrets(keys: &[&str]) -> Secrets {
    let keys: Vec<_> = keys.iter().map(|secret| key(secret)).collect();
    Secrets::new(&keys)
}

/// The output of a masker for each piece, and at the end.
fn passed(secrets: &Secrets, pieces: &[&[u8]]) -> Vec<Bytes> {
    let mut masker = secrets.masker();
    let mut out: Vec<_> =
        pieces.iter().map(|piece| masker.push(Bytes::copy_from_slice(piece))).collect();
    out.push(masker.finish());
    assert_eq!(masker.held(), 0);
    out
}

#[test]
fn a_key_is_overwritten_with_as_many_asterisks() {
    let secrets = secrets(&[KEY]);
    let input = format!("Consumer 'api_key:{KEY}' or {KEY}{KEY} has been suspended.");
    let masked = secrets.mask(input.clone().into());
    assert_eq!(masked, input.replace(KEY, &"*".repeat(KEY.len())));
    let other = Bytes::from_static(b"\xff AIza and nothing more");
    assert_eq!(secrets.mask(other.clone()).as_ptr(), other.as_ptr(), "it is not copied");
}

#[test]
fn a_short_key_is_not_a_secret() {
    assert_eq!(secrets(&["key"]).mask("bad key".into()), "bad key");
}

#[test]
fn a_key_is_found_with_json_and_url_escapes() {
    let secrets = secrets(&["a/b\"c\\d=e"]);
    for escaped in [
        "a/b\"c\\d=e",
        r#"a/b\"c\\d=e"#,
        r#"a\/b\"c\\d=e"#,
        "a%2Fb%22c%5Cd%3De",
        "a%2fb%22c%5cd%3de",
    ] {
        let masked = secrets.mask(format!("x{escaped}y").into());
        assert_eq!(masked, format!("x{}y", "*".repeat(escaped.len())));
    }
}

#[test]
fn a_key_that_is_split_anywhere_does_not_pass() {
    let secrets = secrets(&[KEY, "AIzaSyD-9tSrke72", "AAAIAAAIAAAZ"]);
    let input = format!("AAIza{KEY} AAAIAAAIAAAIAAAZ AIzaSyD-9tSrke72 {}", &KEY[..20]);
    let whole = secrets.mask(input.clone().into());
    assert!(!String::from_utf8_lossy(&whole).contains("tSrke72Pou"));
    assert_eq!(whole.len(), input.len());
    let input = input.as_bytes();
    for first in 0..input.len() {
        for second in first..input.len() {
            let pieces = [&input[..first], &input[first..second], &input[second..]];
            assert_eq!(passed(&secrets, &pieces).concat(), whole, "cut at {first} and {second}");
        }
    }
    let bytes: Vec<_> = input.chunks(1).collect();
    assert_eq!(passed(&secrets, &bytes).concat(), whole);
}

#[test]
fn an_escaped_key_does_not_pass_wherever_it_is_split() {
    let secrets = secrets(&[KEY, "a/b+c=d\"e\\f"]);
    let in_json: String = KEY.bytes().map(|byte| format!("\\u{byte:04X}")).collect();
    let in_url: String = KEY.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mixed = format!("AI\\u007aa{}%42WY", &KEY[4..KEY.len() - 3]);
    for hidden in [&in_json, &in_url, &mixed, "a\\/b\\u002bc%3dd\\\"e\\\\f"] {
        let input = format!("AIz 5% \\n\\\\{hidden}\\u00e4{hidden}%4");
        let mask = "*".repeat(hidden.len());
        let masked = format!("AIz 5% \\n\\\\{mask}\\u00e4{mask}%4");
        assert_eq!(secrets.mask(input.clone().into()), masked);
        let input = input.as_bytes();
        for cut in 0..input.len() {
            let pieces = [&input[..cut], &input[cut..]];
            assert_eq!(passed(&secrets, &pieces).concat(), masked.as_bytes(), "cut at {cut}");
        }
        let bytes: Vec<_> = input.chunks(1).collect();
        assert_eq!(passed(&secrets, &bytes).concat(), masked.as_bytes());
    }
    for innocent in ["50%", "\\", "\\u00", "%4", "AIza\\u", "\\\\u0041Iza", "%%41\\ud83d\\ude00"] {
        assert_eq!(secrets.mask(innocent.into()), innocent);
        assert_eq!(passed(&secrets, &[innocent.as_bytes()]).concat(), innocent.as_bytes());
    }
}

/// The base64 of a key with other bytes around it, and the characters of it that encode only the key.
fn in_base64(engine: &impl Engine, before: &str, after: &str) -> (String, String) {
    let encoded = engine.encode(format!("{before}{KEY}{after}"));
    let bits = 8 * before.len()..8 * (before.len() + KEY.len());
    let own = bits.start.div_ceil(6)..bits.end / 6;
    let mut masked = encoded.clone();
    masked.replace_range(own.clone(), &"*".repeat(own.len()));
    (encoded, masked)
}

#[test]
fn a_key_in_base64_is_found_at_each_alignment() {
    let secrets = secrets(&[KEY]);
    for before in ["", "a", "ab", "abc", "{\"key\":\"?>"] {
        for after in ["", "x", "xy", "\"}~~"] {
            for (encoded, masked) in [
                in_base64(&BASE64_STANDARD, before, after),
                in_base64(&BASE64_STANDARD_NO_PAD, before, after),
                in_base64(&BASE64_URL_SAFE, before, after),
                in_base64(&BASE64_URL_SAFE_NO_PAD, before, after),
            ] {
                assert_eq!(secrets.mask(encoded.clone().into()), masked);
                for cut in 0..encoded.len() {
                    let (first, second) = encoded.as_bytes().split_at(cut);
                    let passed = passed(&secrets, &[first, second]).concat();
                    assert_eq!(passed, masked.as_bytes(), "cut at {cut}");
                }
            }
        }
    }
    // The encoding of this key differs between the two alphabets and has characters that JSON and URLs
    // escape.
    let odd = Secrets::new([&key("~~~?>?>?>~~~")]);
    for encoded in
        ["fn5+Pz4/Pj8+fn5+", "fn5-Pz4_Pj8-fn5-", "fn5+Pz4\\/Pj8+fn5+", "fn5%2BPz4%2FPj8%2Bfn5%2B"]
    {
        assert_eq!(odd.mask(encoded.into()), "*".repeat(encoded.len()), "{encoded}");
    }
}

#[test]
fn a_key_in_utf_16_is_found_in_both_byte_orders() {
    let secrets = secrets(&[KEY]);
    let input = format!("for {KEY}: \u{e9}");
    let characters: Vec<u16> = input.encode_utf16().collect();
    let little: Vec<u8> = characters.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let big: Vec<u8> = characters.iter().flat_map(|unit| unit.to_be_bytes()).collect();
    let places = (8..8 + 2 * KEY.len() - 1, 9..9 + 2 * KEY.len() - 1);
    for (encoded, place) in [(little, places.0), (big, places.1)] {
        let mut masked = encoded.clone();
        masked[place].fill(b'*');
        assert_eq!(secrets.mask(encoded.clone().into()), masked);
        for cut in 0..encoded.len() {
            let (first, second) = encoded.split_at(cut);
            assert_eq!(passed(&secrets, &[first, second]).concat(), masked, "cut at {cut}");
        }
    }
}

#[test]
fn keys_that_overlap_are_all_overwritten() {
    let secrets = secrets(&["abcdabcdab", "cdabXXXX", "XXabcdefgh"]);
    for (input, masked) in [
        ("-abcdabcdabcdab-", "-**************-"),
        ("-abcdabcdabXXXXabcdefgh-", "-**********************-"),
        ("-abcdabcda-", "-abcdabcda-"),
    ] {
        assert_eq!(secrets.mask(input.into()), masked);
        for first in 0..input.len() {
            for second in first..input.len() {
                let input = input.as_bytes();
                let pieces = [&input[..first], &input[first..second], &input[second..]];
                assert_eq!(passed(&secrets, &pieces).concat(), masked.as_bytes());
            }
        }
        let bytes: Vec<_> = input.as_bytes().chunks(1).collect();
        assert_eq!(passed(&secrets, &bytes).concat(), masked.as_bytes());
    }
}

/// The output for the pieces of a body of a content type, and at the end.
fn masked_body(secrets: &Secrets, content_type: &str, pieces: &[&[u8]]) -> Vec<Bytes> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, content_type.parse().unwrap())]);
    let mut masker = secrets.masker_of(&headers);
    let mut out: Vec<_> =
        pieces.iter().map(|piece| masker.push(Bytes::copy_from_slice(piece))).collect();
    out.push(masker.finish());
    assert_eq!(masker.held(), 0);
    out
}

const EVENTS: &str = "text/event-stream; charset=utf-8";
const JSON: &str = "application/json; charset=UTF-8";

/// Checks that the output is the same wherever a body is cut.
fn expect(secrets: &Secrets, content_type: &str, body: &str, expected: &str) {
    let text = |out: Vec<Bytes>| String::from_utf8(out.concat()).unwrap();
    let bytes = body.as_bytes();
    assert_eq!(text(masked_body(secrets, content_type, &[bytes])), expected);
    for cut in (0..bytes.len()).step_by(1 + bytes.len() / 400) {
        let (first, second) = bytes.split_at(cut);
        let passed = masked_body(secrets, content_type, &[first, second]);
        assert_eq!(text(passed), expected, "cut at {cut}");
    }
    let letters: Vec<_> = bytes.chunks(1).collect();
    assert_eq!(text(masked_body(secrets, content_type, &letters)), expected);
}

fn event(text: &str) -> String {
    let start = r#"{"candidates":[{"content":{"role":"model","parts":[{"text":""#;
    format!("data: {start}{text}\"}}]}}}}],\"modelVersion\":\"m-A\"}}\r\n\r\n")
}

#[test]
fn a_key_split_over_the_strings_of_a_stream_does_not_pass() {
    let secrets = secrets(&[KEY]);
    let mask = |length: usize| "*".repeat(length);
    let escaped = KEY[10..].replace('Q', "\\u0051");
    for (texts, masked) in [
        (vec![&KEY[..10], &KEY[10..]], vec![mask(10), mask(29)]),
        (vec![&KEY[..10], &escaped], vec![mask(10), mask(escaped.len())]),
        (vec!["a \\\"AIzaS", "", &KEY[5..]], vec![format!("a \\\"{}", mask(5)), mask(0), mask(34)]),
        (
            vec!["so: AIz", &KEY[3..9], &KEY[9..30], &format!("{}. A", &KEY[30..])],
            vec!["so: AIz".into(), mask(6), mask(21), format!("{}. A", mask(9))],
        ),
    ] {
        let body: String = texts.iter().map(|text| event(text)).collect();
        let expected: String = masked.iter().map(|text| event(text)).collect();
        expect(&secrets, EVENTS, &body, &expected);
        let list = |texts: String| {
            format!("[{}]", texts.replace("data: ", "").replace("\r\n\r\n", "\n,\r\n"))
        };
        expect(&secrets, JSON, &list(body), &list(expected));
    }
    // One letter per string.
    let body: String = KEY.chars().map(|letter| event(&letter.to_string())).collect();
    let letters = KEY.chars().enumerate().map(|(at, letter)| if at < 3 { letter } else { '*' });
    let expected: String = letters.map(|letter| event(&letter.to_string())).collect();
    expect(&secrets, EVENTS, &body, &expected);
    // Two candidates in turns, two parts of one event, base64, and lines that are not JSON.
    let (first, second) = KEY.split_at(15);
    let turns = [first, "AIza or not", second].map(event).concat();
    let expected = [&*mask(15), "AIza or not", &mask(24)].map(event).concat();
    expect(&secrets, EVENTS, &turns, &expected);
    let parts = |first: &str, second: &str| event(&format!("{first}\"}},{{\"text\":\"{second}"));
    expect(&secrets, EVENTS, &parts(first, second), &parts(&mask(15), &mask(24)));
    let (encoded, masked) = in_base64(&BASE64_STANDARD, "ab", "");
    let halves = |text: &str| [event(&text[..20]), event(&text[20..])].concat();
    expect(&secrets, EVENTS, &halves(&encoded), &halves(&masked));
    let lines = |first: &str, second: &str| format!("data: {first}\n\ndata: {second}\n\n");
    expect(&secrets, EVENTS, &lines(first, second), &lines(&mask(15), &mask(24)));
}

#[test]
fn text_that_only_starts_like_a_key_passes_unchanged_and_soon() {
    let secrets = secrets(&[KEY]);
    let (first, second) = KEY.split_at(15);
    let innocent = [first, " and so on", &KEY[15..38], "A", "I", "z", "a", "AIza", &second[..23]];
    let body = innocent.map(event).concat();
    expect(&secrets, EVENTS, &body, &body);

    // Only what arrives in the meantime is held back.
    let events: Vec<_> = ["AIzaSy", "x", "y", "z"].map(event).into();
    let pieces: Vec<_> = events.iter().map(|event| event.as_bytes()).collect();
    let out = masked_body(&secrets, EVENTS, &pieces);
    let held = events[0].find("AIzaSy").unwrap();
    assert_eq!(out[0], events[0][..held]);
    let events: Vec<_> = (0..20).map(|at| event(if at == 0 { "AIzaSy" } else { "x" })).collect();
    let pieces: Vec<_> = events.iter().map(|event| event.as_bytes()).collect();
    let out = masked_body(&secrets, EVENTS, &pieces);
    assert!(
        out[..pieces.len()].iter().any(|piece| piece.len() > events[1].len()),
        "it is released"
    );
    assert_eq!(out[pieces.len()], "");
}

#[test]
fn a_long_text_after_the_first_part_of_a_key_is_not_held_back() {
    let secrets = secrets(&[KEY]);
    let image = "i".repeat(300_000);
    let (first, second) = KEY.split_at(15);
    let body = [first, &image, second].map(event).concat();
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, EVENTS.parse().unwrap())]);
    let mut masker = secrets.masker_of(&headers);
    let mut passed = Vec::new();
    for piece in body.as_bytes().chunks(1000) {
        passed.extend_from_slice(&masker.push(Bytes::copy_from_slice(piece)));
        assert!(masker.held() < 70_000, "{}", masker.held());
    }
    passed.extend_from_slice(&masker.finish());
    // The part that was passed on stays; the rest is overwritten.
    let expected = [first, &image, &"*".repeat(24)].map(event).concat();
    assert!(passed == expected.as_bytes());
}

#[test]
fn secrets_are_overwritten_in_errors_in_the_middle_of_a_stream() {
    let secrets = secrets(&["the-server-key"]);
    let error = r#"{"error":{"code":403,"message":"for KEY","details":[{"a":"\u0041KEY"}]}}"#;
    let interaction = r#"{"event_id":"1","event_type":"error","error":{"message":"KEY"}}"#;
    let typed = r#"{"event_type":"error","message":"KEY"}"#;
    let pretty = "{\n  \"error\": {\n    \"message\": \"KEY\"\n  }\n}";
    let hidden = KEY.replacen("AI", "\\u0041\\u0049", 1);
    for key in [KEY, &hidden] {
        let mask = &*"*".repeat(key.len());
        let with = |text: &str, key: &str| text.replace("\\u0041KEY", key).replace("KEY", key);
        for (content_type, before, after) in [
            (EVENTS, format!("{}data: ", event(key)), format!("\r\n\r\n{}", event(key))),
            (JSON, format!("[{{\"text\":\"{key}\"}},"), format!(",{{\"text\":\"{key}\"}}]")),
        ] {
            for error in [error, interaction, typed] {
                let body = format!("{before}{}{after}", with(error, key));
                let expected = format!("{before}{}{after}", with(error, mask));
                expect(&secrets, content_type, &body, &expected);
            }
        }
        // Lines that are not part of an answer.
        for line in [pretty, "upstream error for KEY", "<p title=\"KEY\">", "event: error KEY"] {
            let stream = |key: &str, line: &str| format!("{}{line}\n{}", event(key), event(key));
            let (body, expected) = (stream(key, &with(line, key)), stream(key, &with(line, mask)));
            expect(&secrets, EVENTS, &body, &expected);
        }
    }
}

#[test]
fn a_body_without_strings_passes_unchanged() {
    let secrets = secrets(&[KEY]);
    for body in ["", "{", "\"", "\"\\", "}}}]]", "{\"a", "data", "\\u00", "[1,2", "data: \n\n\n: x"]
    {
        expect(&secrets, JSON, body, body);
        expect(&secrets, EVENTS, body, body);
        expect(&Secrets::default(), EVENTS, body, body);
    }
    let backslashes = "\"".to_owned() + &"\\".repeat(200_001);
    let out = masked_body(&Secrets::default(), JSON, &[backslashes.as_bytes(), b"u0041\""]);
    assert!(out.concat() == format!("{backslashes}u0041\"").as_bytes());
}

#[test]
fn a_header_named_like_a_key_is_removed() {
    let mut headers = HeaderMap::new();
    headers.insert(format!("x-{KEY}").parse::<HeaderName>().unwrap(), "1".parse().unwrap());
    headers.insert("x-escaped", KEY.replace("AI", "%41I").parse().unwrap());
    secrets(&[KEY]).redact_headers(&mut headers);
    let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
    assert_eq!(left, [("x-escaped", &"*".repeat(KEY.len() + 2).parse().unwrap())]);
}

#[test]
fn only_the_start_of_a_key_is_held_back() {
    let secrets = secrets(&[KEY]);
    let out = passed(&secrets, &[b"data: A\r\n\r\n", b"is AI", b"zaS", b"yx", b"AIzaSy"]);
    assert_eq!(out, ["data: A\r\n\r\n", "is ", "", "AIzaSyx", "", "AIzaSy"]);
}

#[test]
fn a_long_repetitive_key_is_searched_for_in_linear_time() {
    let repeating = format!("{}b", "a".repeat(8000));
    let secrets = secrets(&[&repeating]);
    let input = Bytes::from("a".repeat(4_000_000));
    // A naive search would make 32 thousand million comparisons.
    assert_eq!(secrets.mask(input.clone()), input);
}

#[test]
fn the_forms_of_secrets_are_overwritten_in_errors() {
    for secret in [
        KEY,
        "AQ.Ab8RN6IhVd3mQx0aZk7P_q-s",
        "ya29.a0AfH6SMBx-1234567890.abc_d",
        "auth_tokens/0123456789abcdef",
        "auth_tokens%2f0123456789abcdef",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
    ] {
        let input = format!("the credential '{secret}' is not valid");
        let masked = input.replace(secret, &"*".repeat(secret.len()));
        assert_eq!(redact_text(&input), masked);
        assert_eq!(redact(input.as_bytes()), masked.as_bytes());
    }
    for word in
        ["AIza", "AIza-short", "AQ.", "FAQ. Answers", "ya29.", "auth_tokens/", "whsec_", "eyJ.a.b"]
    {
        assert_eq!(redact_text(word), word);
    }
}

proptest! {
    #[test]
    fn the_fast_check_misses_no_form(
        input in r"((AIza|AQ\.|ya29\.|auth_tokens(/|%2F)|whsec_|eyJ)|[A-Za-z0-9_-]{8,40}|[ .IJQ9_]){0,8}"
    ) {
        let all: Vec<_> = FORMS.find_iter(input.as_bytes()).map(|form| form.range()).collect();
        prop_assert_eq!(forms_in(input.as_bytes()), all);
    }
}

#[test]
fn a_key_is_found_in_long_and_short_texts() {
    let secrets = secrets(&[KEY]);
    for length in [0, 500, 1023, 1024, 1025, 5000] {
        let input = format!("{}{KEY}", "AIzaSy ".repeat(length)[..length].to_owned());
        let masked = secrets.mask(input.clone().into());
        assert_eq!(masked, input.replace(KEY, &"*".repeat(KEY.len())), "{length}");
    }
}

#[test]
fn a_header_is_redacted_in_every_encoding_of_the_key() {
    let secrets = secrets(&["the-server-key"]);
    for (value, redacted) in [
        ("the-server-key", "**************"),
        ("a the%2Dserver-key", "a ****************"),
        ("dGhlLXNlcnZlci1rZXk=", "******************k="),
        ("application/json; charset=UTF-8", "application/json; charset=UTF-8"),
        ("50% of the-server", "50% of the-server"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("x", HeaderValue::from_static(value));
        secrets.redact_headers(&mut headers);
        assert_eq!(headers["x"], redacted);
    }
    let mut headers = HeaderMap::new();
    headers.insert("x", HeaderValue::from_static(KEY));
    secrets.redact_headers(&mut headers);
    assert_eq!(headers["x"], "*".repeat(KEY.len()), "it has the form of a key");
}

#[test]
fn a_key_split_over_two_strings_of_an_error_is_overwritten() {
    let secrets = secrets(&["the-server-key"]);
    let body = r#"{"error":{"parts":[{"text":"the-ser"},{"text":"ver-key"}]}}"#;
    let redacted = r#"{"error":{"parts":[{"text":"*******"},{"text":"*******"}]}}"#;
    assert_eq!(secrets.redact_body(body.into()), redacted);
    let events = format!("data: {body}\n\n");
    assert_eq!(secrets.redact_body(events.into()), format!("data: {redacted}\n\n"));
}

#[test]
fn an_escaped_key_in_an_error_is_overwritten() {
    let secrets = secrets(&["the-server-key"]);
    let hidden: String = "the-server-key".bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let google = format!("\\u0041{}", &KEY[1..]);
    let body =
        format!(r#"{{"error":{{"code":403,"message":"{hidden} or {google}","details":[1]}}}}"#);
    let redacted = secrets.redact_body(body.clone().into());
    let body = body.replace(&hidden, &"*".repeat(hidden.len()));
    assert_eq!(redacted, body.replace(&google, &"*".repeat(google.len())));
    let named = format!(r#"{{"a":{{"{google}":1}}}}"#);
    let masked = named.replace(&google, &"*".repeat(google.len()));
    assert_eq!(secrets.redact_body(named.into()), masked);
    let innocent = r#"{ "error" : "a\nb" }"#;
    assert_eq!(secrets.redact_body(innocent.into()), innocent, "to the letter");
}

#[test]
fn nothing_prints_a_key() {
    let secrets = secrets(&[KEY]);
    let printed = format!("{secrets:?} {:?}", secrets.masker());
    assert_eq!(printed, "Secrets(…) Masker(…)");
}
