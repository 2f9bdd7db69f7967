use super::*;

const KEY: &str = "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY";

fn key(secret: &str) -> ApiKey {
    ApiKey::new(secret).unwrap()
}

fn secrets(keys: &[&str]) -> Secrets {
    let keys: Vec<_> = keys.iter().map(|secret| key(secret)).collect();
    Secrets::new(&keys)
}

/// What comes out of a masker, piece by piece, and at the end.
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
    let said = format!("Consumer 'api_key:{KEY}' or {KEY}{KEY} has been suspended.");
    let masked = secrets.mask(said.clone().into());
    assert_eq!(masked, said.replace(KEY, &"*".repeat(KEY.len())));
    let other = Bytes::from_static(b"\xff AIza and nothing more");
    assert_eq!(secrets.mask(other.clone()).as_ptr(), other.as_ptr(), "it is not copied");
}

#[test]
fn a_short_key_is_a_word_and_no_secret() {
    assert_eq!(secrets(&["key"]).mask("bad key".into()), "bad key");
}

#[test]
fn a_key_is_found_as_json_and_urls_spell_it() {
    let secrets = secrets(&["a/b\"c\\d=e"]);
    for spelling in [
        "a/b\"c\\d=e",
        r#"a/b\"c\\d=e"#,
        r#"a\/b\"c\\d=e"#,
        "a%2Fb%22c%5Cd%3De",
        "a%2fb%22c%5cd%3de",
    ] {
        let masked = secrets.mask(format!("x{spelling}y").into());
        assert_eq!(masked, format!("x{}y", "*".repeat(spelling.len())));
    }
}

#[test]
fn a_key_that_is_cut_anywhere_does_not_pass() {
    let secrets = secrets(&[KEY, "AIzaSyD-9tSrke72", "AAAIAAAIAAAZ"]);
    let said = format!("AAIza{KEY} AAAIAAAIAAAIAAAZ AIzaSyD-9tSrke72 {}", &KEY[..20]);
    let whole = secrets.mask(said.clone().into());
    assert!(!String::from_utf8_lossy(&whole).contains("tSrke72Pou"));
    assert_eq!(whole.len(), said.len());
    let said = said.as_bytes();
    for first in 0..said.len() {
        for second in first..said.len() {
            let pieces = [&said[..first], &said[first..second], &said[second..]];
            assert_eq!(passed(&secrets, &pieces).concat(), whole, "cut at {first} and {second}");
        }
    }
    let bytes: Vec<_> = said.chunks(1).collect();
    assert_eq!(passed(&secrets, &bytes).concat(), whole);
}

#[test]
fn a_key_that_escapes_hide_does_not_pass_wherever_it_is_cut() {
    let secrets = secrets(&[KEY, "a/b+c=d\"e\\f"]);
    let in_json: String = KEY.bytes().map(|byte| format!("\\u{byte:04X}")).collect();
    let in_url: String = KEY.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mixed = format!("AI\\u007aa{}%42WY", &KEY[4..KEY.len() - 3]);
    for hidden in [&in_json, &in_url, &mixed, "a\\/b\\u002bc%3dd\\\"e\\\\f"] {
        let said = format!("AIz 5% \\n\\\\{hidden}\\u00e4{hidden}%4");
        let mask = "*".repeat(hidden.len());
        let masked = format!("AIz 5% \\n\\\\{mask}\\u00e4{mask}%4");
        assert_eq!(secrets.mask(said.clone().into()), masked);
        let said = said.as_bytes();
        for cut in 0..said.len() {
            let pieces = [&said[..cut], &said[cut..]];
            assert_eq!(passed(&secrets, &pieces).concat(), masked.as_bytes(), "cut at {cut}");
        }
        let bytes: Vec<_> = said.chunks(1).collect();
        assert_eq!(passed(&secrets, &bytes).concat(), masked.as_bytes());
    }
    for innocent in ["50%", "\\", "\\u00", "%4", "AIza\\u", "\\\\u0041Iza", "%%41\\ud83d\\ude00"] {
        assert_eq!(secrets.mask(innocent.into()), innocent);
        assert_eq!(passed(&secrets, &[innocent.as_bytes()]).concat(), innocent.as_bytes());
    }
}

#[test]
fn a_header_that_a_key_names_is_left_out() {
    let mut headers = HeaderMap::new();
    headers.insert(format!("x-{KEY}").parse::<HeaderName>().unwrap(), "1".parse().unwrap());
    headers.insert("x-escaped", KEY.replace("AI", "%41I").parse().unwrap());
    secrets(&[KEY]).redact_headers(&mut headers);
    let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
    assert_eq!(left, [("x-escaped", &"*".repeat(KEY.len() + 2).parse().unwrap())]);
}

#[test]
fn nothing_is_held_back_but_the_beginning_of_a_key() {
    let secrets = secrets(&[KEY]);
    let out = passed(&secrets, &[b"data: A\r\n\r\n", b"is AI", b"zaS", b"yx", b"AIzaSy"]);
    assert_eq!(out, ["data: A\r\n\r\n", "is ", "", "AIzaSyx", "", "AIzaSy"]);
}

#[test]
fn a_long_key_that_repeats_itself_is_searched_for_in_linear_time() {
    let repeating = format!("{}b", "a".repeat(8000));
    let secrets = secrets(&[&repeating]);
    let said = Bytes::from("a".repeat(4_000_000));
    // A search that began again at each byte would compare 32 thousand million times.
    assert_eq!(secrets.mask(said.clone()), said);
}

#[test]
fn what_has_the_form_of_a_secret_is_overwritten_in_errors() {
    for secret in [
        KEY,
        "AQ.Ab8RN6IhVd3mQx0aZk7P_q-s",
        "ya29.a0AfH6SMBx-1234567890.abc_d",
        "auth_tokens/0123456789abcdef",
        "auth_tokens%2f0123456789abcdef",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ] {
        let said = format!("the credential '{secret}' is not valid");
        let masked = said.replace(secret, &"*".repeat(secret.len()));
        assert_eq!(redact_text(&said), masked);
        assert_eq!(redact(said.as_bytes()), masked.as_bytes());
    }
    for word in ["AIza", "AIza-short", "AQ.", "FAQ. Answers", "ya29.", "auth_tokens/", "whsec_"] {
        assert_eq!(redact_text(word), word);
    }
}

#[test]
fn escapes_in_the_json_of_an_error_hide_no_key() {
    let secrets = secrets(&["the-server-key"]);
    let hidden: String = "the-server-key".bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let google = format!("\\u0041{}", &KEY[1..]);
    let body =
        format!(r#"{{"error":{{"code":403,"message":"{hidden} or {google}","details":[1]}}}}"#);
    let redacted: Value = serde_json::from_slice(&secrets.redact_body(body.into())).unwrap();
    // The key in use is overwritten with its escapes; what only has the form of one, without.
    let message = format!("{} or {}", "*".repeat(hidden.len()), "*".repeat(KEY.len()));
    assert_eq!(
        redacted,
        serde_json::json!({"error": {"code": 403, "message": message, "details": [1]}})
    );
    let named = format!(r#"{{"a":{{"{google}":1}}}}"#);
    assert_eq!(secrets.redact_body(named.into()), r#"{"a":null}"#);
    let innocent = r#"{ "error" : "a\nb" }"#;
    assert_eq!(secrets.redact_body(innocent.into()), innocent, "to the letter");
}

#[test]
fn nothing_prints_a_key() {
    let secrets = secrets(&[KEY]);
    let printed = format!("{secrets:?} {:?}", secrets.masker());
    assert_eq!(printed, "Secrets(…) Masker(…)");
}
