use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Config, InvalidSetting> {
    Config::read(|name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn unset_variables_have_the_documented_defaults() {
    let config = read(&[]).unwrap();
    assert!(config.admin_api_key.is_none() && config.gemini_api_key.is_none());
    assert!(config.environment_fallback);
    assert_eq!((config.concurrency_limit, config.port), (15, 5004));
    assert_eq!(config.max_body_bytes, 64 * 1024 * 1024);
    assert_eq!(config.host.to_string(), "0.0.0.0");
}

#[test]
fn polls_are_turned_off_with_zero() {
    let poll = |value| read(&[("BACKGROUND_POLL_SECONDS", value)]).map(|it| it.background_poll);
    assert_eq!(poll("0"), Ok(None));
    assert_eq!(poll(""), Ok(Some(Duration::from_secs(5))));
    assert_eq!(poll("0.5"), Ok(Some(Duration::from_millis(500))));
    for invalid in ["-1", "x", "inf"] {
        let error = poll(invalid).unwrap_err();
        assert!(error.to_string().ends_with("0 for none"), "{error}");
    }
}

#[test]
fn continuations_are_bounded() {
    let continuations =
        |value| read(&[("MAX_CONTINUATIONS", value)]).map(|it| it.max_continuations);
    assert_eq!(continuations(""), Ok(8));
    assert_eq!(continuations("0"), Ok(0));
    assert_eq!(continuations("64"), Ok(64));
    for invalid in ["65", "18446744073709551615", "99999999999999999999", "-1"] {
        let error = continuations(invalid).unwrap_err();
        assert_eq!(error.to_string(), "MAX_CONTINUATIONS: expected a whole number, 0 to 64");
    }
}

#[test]
fn a_blank_value_counts_as_unset() {
    let config = read(&[("GEMINI_API_KEY", " "), ("PORT", ""), ("ADMIN_API_KEY", "")]).unwrap();
    assert!(config.gemini_api_key.is_none() && config.admin_api_key.is_none());
    assert_eq!(config.port, 5004);
}

#[test]
fn quotes_around_a_value_are_reported_without_the_value() {
    for (variable, value) in [
        ("GEMINI_API_KEY", "\"AIza-secret\""),
        ("GEMINI_API_KEY", " 'AIza-secret' "),
        ("GEMINI_API_KEY", "\"AIza-secret"),
        ("ADMIN_API_KEY", "\"secret\""),
        ("REDIS_URL", "\"redis://:secret@host\""),
        ("GEMINI_BASE_URL", "\"https://host.example\""),
        ("PORT", "'5004'"),
        ("GEMINI_LIMITS", "\"*:rpm=1000\""),
        ("GEMINI_KEY_LABELS", "\"\""),
        ("CORS_ORIGINS", "\"*\""),
        ("RUST_LOG", "\"info\""),
        ("ADMIN_API_KEY", "\""),
    ] {
        let error = read(&[(variable, value)]).expect_err(variable);
        assert_eq!(error.variable, variable);
        assert!(error.to_string().contains("without quotes"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let config = read(&[("ADMIN_API_KEY", "it's"), ("GEMINI_API_KEY", " AIza \n")]).unwrap();
    assert!(config.admin_api_key.unwrap().matches(b"it's"));
    assert!(config.gemini_api_key.is_some(), "white space around a key does not count");
}

#[test]
fn a_version_at_the_end_of_the_base_url_is_dropped() {
    for (written, read_as) in [
        ("https://g.example", "https://g.example"),
        ("https://g.example/", "https://g.example"),
        ("https://g.example/v1beta", "https://g.example"),
        ("https://g.example/v1/", "https://g.example"),
        ("https://g.example/v1alpha", "https://g.example"),
        ("https://g.example/v1beta2", "https://g.example"),
        ("https://g.example/v1beta/openai/", "https://g.example"),
        ("https://g.example/v1beta/models", "https://g.example"),
        ("https://g.example/proxy/v1beta/openai", "https://g.example/proxy"),
        ("https://g.example/v1/account/gemini", "https://g.example/v1/account/gemini"),
        ("https://g.example/openai", "https://g.example/openai"),
        ("https://g.example/v1x", "https://g.example/v1x"),
        ("https://v1", "https://v1"),
        ("http://v1/openai", "http://v1/openai"),
    ] {
        let config = read(&[("GEMINI_BASE_URL", written)]).unwrap();
        assert_eq!(config.base_url, read_as, "{written}");
    }
}

#[test]
fn an_invalid_value_is_reported_with_its_variable_and_what_is_expected() {
    for (variable, value) in [
        ("GEMINI_CONCURRENCY_LIMIT", "0"),
        ("GEMINI_CONCURRENCY_LIMIT", "-3"),
        ("PORT", "70000"),
        ("HOST", "localhost:80"),
        ("ENVIRONMENT_FALLBACK", "maybe"),
        ("GEMINI_BASE_URL", "not a url"),
        ("GEMINI_CHAT_MODEL", "../secrets"),
        ("REQUEST_TIMEOUT_SECONDS", "0.0"),
        ("REQUEST_TIMEOUT_SECONDS", "NaN"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "gemini=shout"),
        ("GEMINI_BASE_URL", "http://127.0.0.1:99999"),
        ("GEMINI_API_KEY", "wrong\nkey"),
        ("ADMIN_API_KEY", "wrong\nkey"),
        ("ADMIN_API_KEY", "wrong\u{7f}key"),
    ] {
        let error = read(&[(variable, value)]).expect_err(variable);
        assert_eq!(error.variable, variable);
        assert!(!error.to_string().contains(value), "{error}");
    }
}

#[test]
fn the_scheme_of_the_base_url_selects_the_proxy() {
    const HTTPS: &str = "https://g.example";
    const HTTP: &str = "http://g.example";
    let (own, other) = ("http://own.example:1", "http://other.example:2");
    for (base_url, variables, is_own) in [
        (HTTPS, vec![("HTTPS_PROXY", own), ("HTTP_PROXY", other), ("ALL_PROXY", other)], true),
        (HTTPS, vec![("https_proxy", own), ("HTTPS_PROXY", other)], true),
        (HTTPS, vec![("https_proxy", " "), ("HTTPS_PROXY", own)], true),
        (HTTPS, vec![("HTTP_PROXY", other)], false),
        (HTTPS, vec![("ALL_PROXY", own)], true),
        (HTTPS, vec![("all_proxy", own), ("ALL_PROXY", other)], true),
        (HTTP, vec![("HTTP_PROXY", own), ("HTTPS_PROXY", other)], true),
        (HTTP, vec![("HTTP_PROXY", other), ("REQUEST_METHOD", "GET")], false),
        (HTTP, vec![("http_proxy", own), ("REQUEST_METHOD", "GET")], true),
        (HTTP, vec![("ALL_PROXY", own), ("NO_PROXY", "x.example")], true),
        (HTTP, vec![("ALL_PROXY", own), ("NO_PROXY", "example")], false),
        (HTTP, vec![("ALL_PROXY", own), ("no_proxy", "x.example"), ("NO_PROXY", "*")], true),
        ("http://localhost:5005", vec![("HTTP_PROXY", other)], false),
        ("http://127.0.0.1:5005", vec![("HTTP_PROXY", "")], false),
    ] {
        let all = [("GEMINI_BASE_URL", base_url)].into_iter().chain(variables.clone());
        let proxy = read(&all.collect::<Vec<_>>()).unwrap().proxy;
        let shown = proxy.map(|proxy| proxy.to_string());
        assert_eq!(shown.as_deref(), is_own.then_some("own.example:1"), "{base_url} {variables:?}");
    }
}
