//! `/openapi.json` and `/docs` match what the service does.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{ADMIN_KEY, Answer, Service, answer};

async fn document(service: &Service) -> Value {
    let document = answer(service.get("/openapi.json")).await;
    assert_eq!(document.status, StatusCode::OK);
    document.body
}

/// One method of one path.
struct Operation<'a> {
    document: &'a Value,
    method: Method,
    path: &'a str,
    described: &'a Value,
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().unwrap();
    let methods = paths.iter().flat_map(|(path, methods)| {
        methods
            .as_object()
            .unwrap()
            .iter()
            .map(move |(method, described)| (path, method, described))
    });
    methods
        .map(|(path, method, described)| {
            let method = method.to_uppercase().parse().unwrap();
            Operation { document, method, path, described }
        })
        .collect()
}

impl Operation<'_> {
    /// The example body that the documentation shows.
    fn example(&self) -> Option<&Value> {
        let content = &self.described.get("requestBody")?["content"]["application/json"];
        let schema = &content["schema"];
        let named = schema["$ref"].as_str().map(|name| self.resolve(name));
        let example = [content.get("example"), schema.get("example")].into_iter().flatten().next();
        Some(
            example
                .or_else(|| named?.get("example"))
                .unwrap_or_else(|| panic!("{self}: no example")),
        )
    }

    /// Whether it relays requests and errors in Gemini's or OpenAI's format.
    fn is_relayed(&self) -> bool {
        self.path.starts_with("/v1")
    }

    /// Whether the body is optional.
    fn body_is_optional(&self) -> bool {
        self.described["requestBody"]["required"] != true
    }

    /// The path with its parameters' examples filled in.
    fn url(&self) -> String {
        let parameters = self.described["parameters"].as_array().into_iter().flatten();
        let in_path = parameters.filter(|parameter| parameter["in"] == "path");
        in_path.fold(self.path.to_owned(), |path, parameter| {
            let example =
                parameter["example"].as_str().unwrap_or_else(|| panic!("{self}: no example"));
            path.replace(&format!("{{{}}}", parameter["name"].as_str().unwrap()), example)
        })
    }

    /// Sends the documented example, or another body.
    async fn send(&self, service: &Service, body: Option<&Value>) -> Answer {
        self.send_to(service, &self.url(), body).await
    }

    async fn send_to(&self, service: &Service, path: &str, body: Option<&Value>) -> Answer {
        let request = reqwest::Client::new().request(self.method.clone(), service.url(path));
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string()),
            None => request,
        };
        let response = request.header("Admin-API-Key", ADMIN_KEY).send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        let is_json = headers.get("content-type").is_some_and(|kind| kind == "application/json");
        let body = if is_json { serde_json::from_str(&text).unwrap() } else { Value::Null };
        Answer { status, headers, body }
    }

    /// Checks an answer against the documentation of its status.
    fn check(&self, answer: &Answer) {
        let status = answer.status.as_str();
        let response = self.described["responses"].get(status);
        let response = response.unwrap_or_else(|| panic!("{self}: {status} is not documented"));
        let Some(schema) = response.pointer("/content/application~1json/schema") else {
            assert_eq!(answer.body, Value::Null, "{self}: {status} has no body");
            return;
        };
        let mut schema = schema.clone();
        schema["components"] = self.document["components"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let faults: Vec<_> =
            validator.iter_errors(&answer.body).map(|fault| fault.to_string()).collect();
        assert_eq!(faults, [""; 0], "{self}: {}", answer.body);
    }

    fn resolve(&self, reference: &str) -> &Value {
        self.document.pointer(reference.trim_start_matches('#')).unwrap()
    }
}

impl std::fmt::Display for Operation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

#[tokio::test]
async fn the_openapi_document_matches_its_snapshot() {
    let mut document = document(&Service::start().await).await;
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    document["info"]["version"] = "(this crate's)".into();
    insta::assert_json_snapshot!("openapi", document);
}

#[tokio::test]
async fn every_endpoint_is_documented() {
    let service = Service::start().await;
    let document = document(&service).await;
    let documented: Vec<_> =
        operations(&document).iter().map(|operation| operation.to_string()).collect();
    assert_eq!(
        documented,
        [
            "GET /",
            "GET /livez",
            "GET /readyz",
            "POST /chat",
            "POST /structured-output",
            "POST /cinematic-story-design",
            "POST /batch/chat",
            "POST /batch/structured-output",
            "POST /batch/cinematic-story-design",
            "GET /jobs",
            "POST /jobs",
            "POST /jobs/{job_id}/pause",
            "POST /jobs/{job_id}/resume",
            "POST /jobs/{job_id}/cancel",
            "POST /jobs/{job_id}/retry",
            "GET /jobs/{job_id}/events",
            "GET /jobs/{job_id}/results",
            "GET /jobs/{job_id}",
            "DELETE /jobs/{job_id}",
            "GET /_admin/semaphores",
            "POST /_admin/semaphores",
            "GET /_admin/semaphores/{semaphore_id}/leases",
            "POST /_admin/semaphores/{semaphore_id}/leases",
            "PUT /_admin/semaphores/{semaphore_id}/leases/{lease_id}",
            "DELETE /_admin/semaphores/{semaphore_id}/leases/{lease_id}",
            "DELETE /_admin/semaphores/{semaphore_id}",
            "GET /_admin/limits",
            "DELETE /_admin/limits/{key}/{model}",
            "GET /metrics",
            "POST /v1beta/models/{model}:generateContent",
            "POST /v1beta/models/{model}:streamGenerateContent",
            "POST /v1/chat/completions",
            "POST /v1/embeddings",
            "GET /v1/models",
        ]
    );
    for operation in operations(&document) {
        let described = operation.described;
        for text in ["summary", "operationId"] {
            assert!(described[text].as_str().is_some_and(|text| !text.is_empty()), "{operation}");
        }
    }
}

/// Running all examples from top to bottom succeeds, with the lease and the job from one answer put into
/// the next requests.
#[tokio::test]
async fn every_example_works_and_is_answered_as_documented() {
    let service = Service::start().await;
    let document = document(&service).await;
    let (mut lease, mut job) = (String::new(), String::new());
    for operation in operations(&document) {
        let path = operation.url().replace("{lease_id}", &lease).replace("{job_id}", &job);
        let answered = operation.send_to(&service, &path, operation.example()).await;
        if let Some(id) = answered.body["lease_id"].as_str() {
            lease = id.to_owned();
        }
        if let Some(id) = answered.body["job_id"].as_str() {
            job = id.to_owned();
        }
        assert!(answered.status.is_success(), "{operation}: {answered:?}");
        operation.check(&answered);
        if operation.path.ends_with("/retry") {
            // No engine runs here. The job ends, so that its events and its results do.
            let cancel = service.http.post(service.url(&format!("/jobs/{job}/cancel")));
            let cancelled = answer(cancel.header("Admin-API-Key", ADMIN_KEY)).await;
            assert_eq!(cancelled.body["status"], "cancelled");
        }
        if let Some(failed) = answered.body.get("failed_requests") {
            assert_eq!(failed, 0, "{operation}: {answered:?}");
            assert!(answered.body["total_requests"] != 0, "{operation}: {answered:?}");
        }
    }
}

#[tokio::test]
async fn errors_are_answered_as_documented() {
    let service = Service::start().await;
    let document = document(&service).await;
    for operation in operations(&document) {
        let Some(example) = operation.example() else { continue };
        if operation.body_is_optional() || operation.is_relayed() {
            continue;
        }
        let empty = operation.send(&service, Some(&json!({}))).await;
        assert_eq!(empty.status, StatusCode::UNPROCESSABLE_ENTITY, "{operation}");
        operation.check(&empty);
        if operation.path.starts_with("/_admin") {
            continue;
        }
        let mut lost = example.clone();
        lost["external_semaphore_id"] = "lost".into();
        let lost = operation.send(&service, Some(&lost)).await;
        assert_eq!(lost.status, StatusCode::NOT_FOUND, "{operation}");
        operation.check(&lost);
        let without_body = operation.send(&service, None).await;
        assert_eq!(without_body.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{operation}");
        operation.check(&without_body);
    }
}

#[tokio::test]
async fn an_optional_body_may_be_null() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let leases = "/_admin/semaphores/images/leases";
    let admin =
        |request: reqwest::RequestBuilder| answer(request.header("Admin-API-Key", ADMIN_KEY));
    let taken = admin(service.post(leases, &json!({"holder": "x", "ttl_seconds": 60}))).await;
    let lease = service.url(&format!("{leases}/{}", taken.body["lease_id"].as_str().unwrap()));
    let renewal = reqwest::Client::new().put(lease).header("content-type", "application/json");
    let renewed = admin(renewal.body(" null\n")).await;
    assert_eq!(renewed.status, StatusCode::OK, "{renewed:?}");
}

/// Errors of batch items are documented too.
#[tokio::test]
async fn failed_batch_items_are_answered_as_documented() {
    let service = Service::start().await;
    let document = document(&service).await;
    let operations = operations(&document);
    let batch = operations.iter().find(|operation| operation.path == "/batch/chat").unwrap();
    let requests = ["fine", "[[simulate:status=400]]", "[[simulate:blocked=SAFETY]]"]
        .map(|prompt| json!({"prompt": prompt}));
    let answered = batch.send(&service, Some(&json!({"requests": requests}))).await;
    assert_eq!(answered.body["failed_requests"], 2);
    batch.check(&answered);
}

#[tokio::test]
async fn the_admin_key_is_a_security_scheme_of_every_endpoint_that_takes_keys() {
    let document = document(&Service::start().await).await;
    let scheme = &document["components"]["securitySchemes"]["AdminKey"];
    assert_eq!((&scheme["type"], &scheme["in"]), (&json!("apiKey"), &json!("header")));
    assert_eq!(scheme["name"], "Admin-API-Key");
    for operation in operations(&document) {
        let expected = match operation.path {
            "/" | "/livez" | "/readyz" | "/metrics" => Value::Null,
            path if path.starts_with("/_admin") => json!([{"AdminKey": []}]),
            _ => json!([{}, {"AdminKey": []}, {"GoogleApiKey": []}, {"BearerToken": []}]),
        };
        assert_eq!(operation.described["security"], expected, "{operation}");
    }
}

#[tokio::test]
async fn the_documentation_is_an_html_page() {
    let service = Service::start().await;
    for path in ["/docs", "/docs/"] {
        // The first page redirects to the second.
        let response = service.get(path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert!(response.url().path().starts_with("/docs/"), "{path}");
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("text/html"), "{path}: {kind}");
        let page = response.text().await.unwrap();
        assert!(page.contains("swagger-ui"), "{path}: {page}");
    }
    let start = service.get("/docs/swagger-initializer.js").send().await.unwrap();
    let start = start.text().await.unwrap();
    assert!(start.contains("/openapi.json") && start.contains("tryItOutEnabled"), "{start}");
}
