//! A caller's credential is sent to Gemini once, in its surface's header, and no other secret is
//! sent.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use gemini_concurrent_generation::config::{AdminKey, Config};
use gemini_concurrent_generation::simulator::Options;
use http::{HeaderMap, Uri};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{ADMIN_KEY, SERVER_KEY, Service, answer, contents, listen};

const GENERATE: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
const STREAM: &str = "/v1beta/models/gemini-3.5-flash-lite:streamGenerateContent?alt=sse";

/// All headers in which Google accepts credentials.
const HEADERS: [&str; 3] = ["x-goog-api-key", "authorization", "x-goog-iam-authorization-token"];
const PARAMETERS: [&str; 4] = ["key=", "access_token=", "oauth_token=", "bearer_token="];

type Heads = Arc<Mutex<Vec<(Uri, HeaderMap)>>>;

/// A service over an upstream that always answers with one text and keeps the heads of its
/// requests.
struct Fixture {
    service: Service,
    heads: Heads,
    _stop: DropGuard,
}

impl Fixture {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let stop = CancellationToken::new();
        let heads = Heads::default();
        let asked = Arc::clone(&heads);
        let router = Router::new().fallback(async move |uri: Uri, headers: HeaderMap, _: Body| {
            asked.lock().unwrap().push((uri, headers));
            let text = json!({
                "candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]
            });
            axum::Json(text)
        });
        let base_url = format!("http://{}", listen(router, &stop).await);
        let service = Service::with(Options::default(), |config| {
            config.base_url = base_url;
            change(config);
        });
        Self { service: service.await, heads, _stop: stop.drop_guard() }
    }

    /// The head of a request as it reached Gemini.
    async fn sent(&self, request: RequestBuilder) -> (Uri, HeaderMap) {
        let sent = request.send().await.unwrap();
        let status = sent.status();
        let text = sent.text().await.unwrap();
        let mut heads = std::mem::take(&mut *self.heads.lock().unwrap());
        assert_eq!(heads.len(), 1, "{status}: {text}");
        heads.remove(0)
    }

    /// The credential of a request as it reached Gemini.
    async fn credential(&self, request: RequestBuilder) -> (String, String) {
        let (uri, headers) = self.sent(request).await;
        let query = uri.query().unwrap_or_default();
        assert!(!PARAMETERS.iter().any(|name| query.contains(name)), "{uri}");
        let all = HEADERS.iter().flat_map(|name| {
            headers.get_all(*name).iter().map(|value| (name.to_string(), text(value)))
        });
        let [one] = <[_; 1]>::try_from(all.collect::<Vec<_>>()).expect("one credential");
        one
    }
}

fn text(value: &http::HeaderValue) -> String {
    value.to_str().unwrap().to_owned()
}

fn completion() -> Value {
    json!({"model": "gemini-3.5-flash-lite", "messages": [{"role": "user", "content": "x"}]})
}

/// Credentials, each with its header on Gemini's own surface.
fn forms() -> Vec<(String, String, String)> {
    let in_key = |key: &str| (key.to_owned(), "x-goog-api-key".to_owned(), key.to_owned());
    let in_authorization = |scheme: &str, key: &str| {
        (key.to_owned(), "authorization".to_owned(), format!("{scheme} {key}"))
    };
    vec![
        in_key("AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY"),
        in_key("AQ.Ab8RN6IhVd3mQx0aZk7P_q-s"),
        in_authorization("Bearer", "ya29.a0AfH6SMBx-1234567890.abc_d"),
        in_authorization("Bearer", "ya29.c.b0Aaekm1K-service_account"),
        in_authorization("Bearer", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"),
        in_authorization("Token", "auth_tokens/0123456789abcdef"),
    ]
}

#[tokio::test]
async fn each_credential_is_sent_alone_in_its_surfaces_header() {
    let fixture = Fixture::start(|_| {}).await;
    let service = &fixture.service;
    for (key, name, value) in forms() {
        let gemini = (name, value);
        let openai = ("authorization".to_owned(), format!("Bearer {key}"));
        let chat = json!({"prompt": "x"});
        let streamed = json!({"prompt": "x", "stream": true});
        for request in [
            service.post(GENERATE, &contents("x")),
            service.post(STREAM, &contents("x")),
            service.post("/v1/interactions", &json!({"model": "m", "input": "x"})),
            service.post("/upload/v1beta/files", &json!({})),
            service.post("/chat", &chat),
            service.post("/chat", &streamed),
            service.post("/batch/chat", &json!({"requests": [chat]})),
            service.get("/v1beta/models"),
        ] {
            let as_key = request.try_clone().unwrap().header("x-goog-api-key", &key);
            let as_bearer = request.try_clone().unwrap().bearer_auth(&key);
            let as_token = request.header("authorization", format!("Token {key}"));
            for request in [as_key, as_bearer, as_token] {
                assert_eq!(fixture.credential(request).await, gemini);
            }
        }
        for name in PARAMETERS {
            let path = format!("{GENERATE}?alt=json&{name}{}", key.replace('/', "%2F"));
            let (uri, _) = fixture.sent(service.post(&path, &contents("x"))).await;
            assert_eq!(uri.query(), Some("alt=json"));
            assert_eq!(fixture.credential(service.post(&path, &contents("x"))).await, gemini);
        }
        let own = json!({"prompt": "x", "credentials": {"gemini_api_key": key}});
        for (path, body) in [
            ("/chat", own.clone()),
            ("/batch/chat", json!({"requests": [own.clone()]})),
            ("/batch/chat", json!({"requests": [chat], "credentials": own["credentials"]})),
        ] {
            assert_eq!(fixture.credential(service.post(path, &body)).await, gemini);
        }
        let completion = service.post("/v1/chat/completions", &completion());
        let completion = completion.header("openai-organization", "o");
        let completion = completion.header("openai-project", "p");
        let (_, headers) = fixture.sent(completion.try_clone().unwrap().bearer_auth(&key)).await;
        assert!(!headers.keys().any(|name| name.as_str().starts_with("openai")), "{headers:?}");
        assert_eq!(fixture.credential(completion.bearer_auth(&key)).await, openai);
        let models = service.get("/v1/models").bearer_auth(&key);
        assert_eq!(fixture.credential(models).await, openai);
    }
    let token = service.get("/v1/models").header("authorization", "Token auth_tokens/0123");
    let expected = ("authorization".to_owned(), "Token auth_tokens/0123".to_owned());
    assert_eq!(fixture.credential(token).await, expected, "OpenAI clients do not send it so");
}

#[tokio::test]
async fn the_server_may_have_its_own_access_token() {
    let token = "ya29.the-server-token";
    let fixture = Fixture::start(|config| {
        config
            .set_gemini_api_key(gemini_concurrent_generation::gemini::ApiKey::new(token).unwrap());
    })
    .await;
    let expected = ("authorization".to_owned(), format!("Bearer {token}"));
    let service = &fixture.service;
    assert_eq!(fixture.credential(service.post(GENERATE, &contents("x"))).await, expected);
    assert_eq!(fixture.credential(service.post("/chat", &json!({"prompt": "x"}))).await, expected);
}

#[tokio::test]
async fn a_repeated_key_is_accepted_and_different_keys_are_refused() {
    let fixture = Fixture::start(|_| {}).await;
    let service = &fixture.service;
    let (one, other) = ("ya29.one-of-the-tokens", "AIza-one-of-the-keys");
    let chat = json!({"prompt": "x"});
    let paths = [
        (GENERATE, contents("x")),
        ("/v1/chat/completions", completion()),
        ("/v1beta/openai/chat/completions", completion()),
    ];
    for (path, body) in &paths {
        let asked = |query: &str| service.post(&format!("{path}{query}"), body);
        for request in [
            asked("").header("x-goog-api-key", one).bearer_auth(one),
            asked(&format!("?key={one}&access_token={one}")).bearer_auth(format!(" {one} ")),
            asked("").header("x-goog-api-key", one).header("x-goog-api-key", one),
        ] {
            let (_, value) = fixture.credential(request).await;
            assert_eq!(value, format!("Bearer {one}"));
        }
        for request in [
            asked("").header("x-goog-api-key", other).bearer_auth(one),
            asked("").header("x-goog-api-key", one).header("x-goog-api-key", other),
            asked(&format!("?key={one}")).bearer_auth(other),
            asked(&format!("?key={one}&key={other}")),
            asked(&format!("?access_token={one}")).header("x-goog-api-key", other),
        ] {
            let refused = answer(request).await;
            let text = refused.body.to_string();
            assert_eq!(refused.status, 400, "{text}");
            assert!(text.to_lowercase().contains("multiple_credentials"), "{text}");
            assert!(!text.contains(one) && !text.contains(other), "{text}");
        }
    }
    let both =
        |body: &Value| service.post("/chat", body).header("x-goog-api-key", other).bearer_auth(one);
    let refused = answer(both(&chat)).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["code"]),
        (400, &json!("multiple_credentials"))
    );
    assert!(fixture.heads.lock().unwrap().is_empty());
    // A key in the body overrides all others, and the admin key overrides every key.
    let own = json!({"prompt": "x", "credentials": {"gemini_api_key": "AIza-own"}});
    assert_eq!(fixture.credential(both(&own)).await.1, "AIza-own");
    let admin = both(&chat).header("admin-api-key", ADMIN_KEY);
    assert_eq!(fixture.credential(admin).await.1, SERVER_KEY);
    let list = service.get("/v1beta/models").bearer_auth(ADMIN_KEY).header("x-goog-api-key", one);
    assert_eq!(fixture.credential(list).await.1, SERVER_KEY);
}

#[tokio::test]
async fn only_the_owner_of_a_credential_chooses_the_project_it_charges() {
    let fixture = Fixture::start(|_| {}).await;
    let service = &fixture.service;
    let chat = json!({"prompt": "x"});
    for (path, body) in
        [(GENERATE, contents("x")), ("/chat", chat), ("/v1/chat/completions", completion())]
    {
        let asked = || service.post(path, &body).header("x-goog-user-project", "my-project");
        let (_, headers) = fixture.sent(asked().bearer_auth("ya29.owner")).await;
        assert_eq!(headers["x-goog-user-project"], "my-project", "{path}");
        let twice = asked().header("x-goog-user-project", "another").bearer_auth("ya29.owner");
        let (_, headers) = fixture.sent(twice).await;
        let projects: Vec<_> = headers.get_all("x-goog-user-project").iter().collect();
        assert_eq!(projects, ["my-project"], "the project that the call is counted for");
        for request in
            [asked(), asked().header("admin-api-key", ADMIN_KEY), asked().bearer_auth(ADMIN_KEY)]
        {
            let (_, headers) = fixture.sent(request).await;
            assert!(!headers.contains_key("x-goog-user-project"), "{path}");
        }
    }
}

/// The keys of all accounts of a service, as the administrator sees them.
async fn accounts(service: &Service) -> Vec<String> {
    let limits = service.get("/_admin/limits").header("Admin-API-Key", ADMIN_KEY);
    let limits = answer(limits).await.body["limits"].take();
    let mut keys: Vec<_> = limits
        .as_array()
        .unwrap()
        .iter()
        .map(|limit| limit["key"].as_str().unwrap().to_owned())
        .collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn tokens_share_their_projects_account_once_gemini_accepted_them() {
    let options = Options { bad_keys: vec!["ya29.stranger".to_owned()], ..Options::default() };
    let service = Service::with(options, |_| {}).await;
    let ask = async |token: &str| {
        let request = service.post(GENERATE, &contents("x")).bearer_auth(token);
        answer(request.header("x-goog-user-project", "my-project")).await.status.as_u16()
    };
    assert_eq!(ask("ya29.first-hour").await, 200);
    let first = accounts(&service).await;
    assert_eq!(first.len(), 1);
    for _ in 0..2 {
        assert_eq!(ask("ya29.first-hour").await, 200);
    }
    let project = accounts(&service).await.into_iter().find(|key| *key != first[0]).unwrap();
    // A caller that names the project without such a token gets its own account, however often it
    // asks.
    for _ in 0..3 {
        assert_eq!(ask("ya29.stranger").await, 400);
    }
    let with_stranger = accounts(&service).await;
    assert_eq!(with_stranger.len(), 3);
    // The project's next token has its own account for its first call.
    for _ in 0..3 {
        assert_eq!(ask("ya29.second-hour").await, 200);
    }
    assert_eq!(accounts(&service).await.len(), 4);
    let limits = service.get("/_admin/limits").header("Admin-API-Key", ADMIN_KEY);
    let limits = answer(limits).await.body["limits"].take();
    let used = |key: &str| {
        let of = limits.as_array().unwrap().iter().find(|limit| limit["key"] == key).unwrap();
        of["requests_per_minute"]["used"].as_u64().unwrap()
    };
    assert_eq!((used(&project), used(&first[0])), (4, 1));
}

#[tokio::test]
async fn a_request_that_contains_the_admin_key_is_refused_without_showing_it() {
    let fixture = Fixture::start(|config| {
        config.admin_api_key = Some(AdminKey::new("The/Admin+Key-0123456789"));
    })
    .await;
    let (service, admin) = (&fixture.service, "The/Admin+Key-0123456789");
    let once: String = admin.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let twice = once.replace('%', "%25");
    let some = admin.replace('/', "%2f").replace('+', "%2B");
    let encoded = BASE64_STANDARD.encode(format!("x:{admin}"));
    let unpadded = encoded.trim_end_matches('=').replace('+', "-").replace('/', "_");
    let spellings = [admin, &once, &twice, &some, &encoded, &unpadded];
    let mut requests = Vec::new();
    for spelling in spellings {
        for word in [spelling.to_owned(), format!("x{spelling}"), format!("{spelling}.x")] {
            let asked = || service.post(GENERATE, &contents("x"));
            requests.push(asked().header("x-custom", &word));
            requests.push(asked().header("user-agent", format!("curl {word}")));
            requests.push(service.post(&format!("{GENERATE}?x={word}"), &contents("x")));
            requests.push(service.post(&format!("{GENERATE}?Key={word}"), &contents("x")));
            requests.push(service.post(&format!("{GENERATE}?{word}=1"), &contents("x")));
            requests.push(service.get(&format!("/v1beta/files/{word}")));
            requests.push(asked().header("x-goog-api-key", format!("a{word}")));
            requests.push(asked().bearer_auth("ya29.a").header("x-goog-user-project", &word));
            let chat = service.post("/chat", &json!({"prompt": "x"})).bearer_auth("ya29.a");
            requests.push(chat.header("x-goog-user-project", &word));
        }
    }
    let body = json!({"contents": [{"parts": [{"text": format!("it is ({admin})")}]}]});
    requests.push(service.post(GENERATE, &body));
    let mut completion = completion();
    completion["user"] = admin.into();
    requests.push(service.post("/v1/chat/completions", &completion));
    // The key with JSON escapes.
    let escaped = body.to_string().replace(admin, &admin.replace('/', "\\/"));
    requests.push(service.post(GENERATE, &contents("x")).body(escaped));
    let chat = json!({"prompt": format!("it is {admin}")});
    let schema = json!({"type": "object", "properties": {"a": {"description": admin}}});
    let schema = json!({"user_content": "x", "system_prompt": "x", "json_schema": schema});
    requests.push(service.post("/batch/chat", &json!({"requests": [{"prompt": "x"}, chat]})));
    requests.push(service.post("/chat", &chat));
    requests.push(service.post("/chat", &json!({"prompt": "x", "system_prompt": admin})));
    let configured = json!({"prompt": "x", "generation_config": {"stopSequences": [admin]}});
    requests.push(service.post("/chat", &configured));
    requests.push(service.post("/structured-output", &schema));
    for request in requests {
        let shown = format!("{:?}", request.try_clone().unwrap().build().unwrap());
        let refused = answer(request).await;
        let text = refused.body.to_string();
        assert!([400, 401].contains(&refused.status.as_u16()), "{shown}: {text}");
        assert!(!spellings.iter().any(|spelling| text.contains(spelling)), "{text}");
        assert!(fixture.heads.lock().unwrap().is_empty(), "{shown}");
    }
    // The key in a header name.
    let name = AdminKey::new("The-Admin-Key");
    let fixture = Fixture::start(|config| config.admin_api_key = Some(name)).await;
    for name in ["the-admin-key", "X-THE-ADMIN-KEY-1"] {
        let refused = answer(fixture.service.get("/v1beta/models").header(name, "1")).await;
        assert_eq!(refused.status, 401);
        assert!(!refused.body.to_string().to_lowercase().contains("the-admin-key"));
    }
    // A short admin key is a common word and may be part of other text.
    let fixture =
        Fixture::start(|config| config.admin_api_key = Some(AdminKey::new("gemini"))).await;
    let generate = fixture.service.post(GENERATE, &contents("x")).header("x-custom", "gemini-1");
    fixture.sent(generate).await;
    let word = fixture.service.get("/v1beta/models?x=gemini");
    assert_eq!(answer(word).await.status, 401);
}
