use http::Request;

use super::counted::ModelSource;
use super::*;
use crate::dispatch::{CallKind, ChargedTo};
use crate::gemini::Model;

const BEARER: (&str, &str) = ("authorization", "Bearer k");
const GOOGLE: (&str, &str) = ("x-goog-api-key", "k");

fn of(method: Method, path: &str, headers: &[(&str, &str)]) -> Result<Destination, InvalidPath> {
    let request = Request::builder().method(method).uri(path);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    Destination::of(&request.body(()).unwrap().into_parts().0)
}

const UPLOAD: &str = "/upload/v1beta/fileSearchStores/s:uploadToFileSearchStore";

/// The model that a request is counted for; `None` where it costs nothing. `body` is the model that
/// the body names, and the name in parentheses counts where it names none.
fn counted(method: Method, path: &str) -> Option<String> {
    let destination = of(method, path, &[]).unwrap_or_else(|_| panic!("{path}: an error"));
    Some(match destination.call?.model {
        ModelSource::Path(model) => model.to_string(),
        ModelSource::Body => "body".to_owned(),
        ModelSource::BodyOr { resource, within: None } => format!("body ({resource})"),
        ModelSource::BodyOr { resource, within: Some(field) } => {
            format!("body or its {field} ({resource})")
        }
    })
}

#[test]
fn a_request_that_is_not_known_to_be_free_is_counted() {
    for (path, name) in [
        ("/v1beta/models/m:generateContent", "m"),
        ("/v1beta/models/m:streamGenerateContent", "m"),
        ("/v1/models/m:batchGenerateContent", "m"),
        ("/v1/models/m:inventedByGoogleTomorrow", "m"),
        ("/v1/tunedModels/m:generateContent", "tunedModels/m"),
        ("/v1/dynamic/m:generateContent", "m"),
        ("/v1beta/interactions", "body (interactions)"),
        ("/v1/interactions/", "body (interactions)"),
        ("/v1beta/decisions", "body (decisions)"),
        ("/v1/voices", "body or its voice (voices)"),
        ("/v1beta/triggers/t/executions", "body (triggers)"),
        ("/v1beta/fileSearchStores/s:importFile", "body (fileSearchStores)"),
        (UPLOAD, "body (fileSearchStores)"),
        ("/upload/v1beta/fileSearchStores/s:uploadTomorrow", "body (fileSearchStores)"),
        ("/v1beta/environments", "body (environments)"),
        ("/v1beta/agents/a:run", "body (agents)"),
        ("/v1beta/auth_tokens", "body (auth_tokens)"),
        ("/v1beta/interactions/i/cancel/x", "body (interactions)"),
        ("/v1beta/models/m:generateContent/cancel", "body (models)"),
        ("/v1beta/batches/a:b:cancel", "body (batches)"),
        ("/upload/v1beta/interactions", "body (interactions)"),
        ("/upload/v1beta/models/m:generateContent", "m"),
        ("/v1beta/%C3%A4", "body (other)"),
        ("/v1/chat/completions", "body"),
        ("/v1beta/openai/images/generations", "body"),
        ("/v1/videos", "body (videos)"),
        ("/v1beta/openai/batches", "body (batches)"),
        ("/v1beta/openai/inventedTomorrow", "body (inventedTomorrow)"),
    ] {
        for method in [Method::POST, Method::PUT, Method::PATCH] {
            assert_eq!(counted(method, path).as_deref(), Some(name), "{path}");
        }
        for method in [Method::GET, Method::HEAD, Method::DELETE] {
            assert_eq!(counted(method, path), None, "{path}");
        }
    }
}

#[test]
fn a_request_that_generates_nothing_is_free() {
    for (method, path) in [
        (Method::POST, "/upload/v1beta/files"),
        (Method::PUT, "/upload/v1beta/files"),
        (Method::POST, "/v1beta/fileSearchStores"),
        (Method::POST, "/v1beta/agents"),
        (Method::PATCH, "/v1beta/triggers/t"),
        (Method::POST, "/v1/webhooks/w:rotateSigningSecret"),
        (Method::PUT, "/upload/v1beta/environments/e/files/a/b"),
        (Method::POST, "/v1beta/cachedContents"),
        (Method::PATCH, "/v1/cachedContents/c"),
        (Method::POST, "/v1beta/batches/b:cancel"),
        (Method::POST, "/v1/interactions/i/cancel"),
        (Method::POST, "/v1beta/models/m/operations/o:cancel"),
        (Method::POST, "/v1beta/openai/files"),
        (Method::POST, "/v1beta/openai/batches/b/cancel"),
    ] {
        assert_eq!(counted(method, path), None, "{path}");
    }
}

#[test]
fn an_upload_that_is_embedded_counts_once() {
    let begun = of(Method::POST, UPLOAD, &[]).ok().unwrap().call.unwrap();
    assert!(begun.takes_file);
    let continued = format!("{UPLOAD}?upload_protocol=resumable&upload_id=7");
    assert_eq!(counted(Method::POST, &continued), None);
    // Only an upload has this parameter.
    for path in ["/v1beta/fileSearchStores/s:importFile", "/upload/v1beta/interactions"] {
        assert!(counted(Method::POST, &format!("{path}?upload_id=7")).is_some(), "{path}");
    }
}

#[test]
fn only_creating_a_trigger_schedules_runs() {
    let schedules_runs = |method: Method, path: &str| {
        of(method, path, &[]).unwrap_or_else(|_| panic!("{path}")).schedules_runs
    };
    assert!(schedules_runs(Method::POST, "/v1beta/triggers"));
    assert!(!schedules_runs(Method::GET, "/v1beta/triggers"));
    assert!(!schedules_runs(Method::POST, "/v1beta/triggers/t/executions"));
    assert!(!schedules_runs(Method::POST, "/v1beta/agents"));
}

#[test]
fn a_path_that_could_be_read_in_two_ways_is_refused() {
    for (path, sent) in [
        ("//v1beta///models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/v1//chat//completions", "/v1beta/openai/chat/completions"),
        ("/v1/chat/%63ompletions", "/v1beta/openai/chat/%63ompletions"),
        ("/v1beta/%6fpenai/a%20b", "/v1beta/openai/a%20b"),
        ("/v1/models/%6D:generate%43ontent", "/v1/models/%6D:generate%43ontent"),
    ] {
        let destination = of(Method::POST, path, &[]).unwrap_or_else(|_| panic!("{path}"));
        assert_eq!(destination.path, sent);
        assert!(destination.call.is_some(), "{path}");
    }
    for path in [
        "/v1beta/models/../x",
        "/v1beta/models/%2e%2E/x:generateContent",
        "/v1beta/models/m%253AgenerateContent",
        "/v1beta/openai/%252e%252e/models",
        "/v1beta/openai/%2e%2e/models",
        "/v1beta/%2Fmodels/m",
        "/v1beta/files%00",
        "/v1/models/a%20b:predict",
    ] {
        let (_, error) = of(Method::POST, path, &[]).expect_err(path);
        assert_eq!(error.code(), "invalid_path", "{path}");
    }
    for path in [
        "/v1/interactions/..",
        "/v1beta/interactions/a%252Fb",
        "/v1beta/interactions/%0a",
        "/v1beta/interactions%2F",
        "/v1beta/interactions%2f",
        "/v1beta/interactions/a%2F",
        "/v1beta/interactions%2Fa",
        "/v1beta/%69nteractions/a%2Fcancel",
    ] {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let (surface, error) = of(method, path, &[]).expect_err(path);
            assert_eq!((surface, error.code()), (Surface::Interactions, "invalid_path"), "{path}");
        }
    }
    // OpenAI's clients escape the slash in the name of a model.
    assert!(of(Method::GET, "/v1/models/models%2Fm", &[BEARER]).is_ok());
}

#[test]
fn the_key_decides_the_surface_of_a_path_that_both_have() {
    let surface = |path: &str, headers: &[(&str, &str)]| {
        of(Method::GET, path, headers).map(|found| (found.surface, found.path)).map_err(|_| ())
    };
    for path in ["models", "models/m", "files", "files/f/content", "batches/b"] {
        let (shared, at_openai) = (format!("/v1/{path}"), format!("/v1beta/openai/{path}"));
        assert_eq!(surface(&shared, &[BEARER]), Ok((Surface::OpenAi, at_openai)));
        for headers in [&[GOOGLE][..], &[BEARER, GOOGLE], &[]] {
            assert_eq!(surface(&shared, headers), Ok((Surface::Gemini, shared.clone())));
        }
    }
    let register = "/v1/files:register".to_owned();
    assert_eq!(surface(&register, &[BEARER]), Ok((Surface::Gemini, register)));
    for path in ["/v1/responses", "/v1/responses/r", "/v1/images/edits", "/v1/audio/speech"] {
        for headers in [&[][..], &[BEARER], &[GOOGLE]] {
            let (surface, error) = of(Method::POST, path, headers).expect_err(path);
            assert_eq!((surface, error.code()), (Surface::OpenAi, "not_found"), "{path}");
        }
    }
}

#[test]
fn a_request_uses_the_key_for_generation_for_its_account_or_for_a_credential() {
    for (method, path, purpose) in [
        (Method::POST, "/v1beta/models/m:generateContent", Purpose::Generation),
        (Method::POST, "/v1beta/models/m:countTokens", Purpose::Generation),
        (Method::POST, "/v1beta/interactions", Purpose::Generation),
        (Method::POST, "/v1/chat/completions", Purpose::Generation),
        (Method::GET, "/v1beta/models", Purpose::Generation),
        (Method::GET, "/v1beta/models/m", Purpose::Generation),
        (Method::GET, "/v1beta/openai/models/m", Purpose::Generation),
        (Method::GET, "/v1beta/models/m/operations/o", Purpose::Account),
        (Method::GET, "/v1beta/tunedModels", Purpose::Account),
        (Method::GET, "/v1beta/interactions/i", Purpose::Account),
        (Method::DELETE, "/v1beta/models/m", Purpose::Account),
        (Method::DELETE, "/v1beta/files/f", Purpose::Account),
        (Method::POST, "/upload/v1beta/files", Purpose::Account),
        (Method::POST, "/v1beta/models/m:batchGenerateContent", Purpose::Account),
        (Method::POST, "/v1beta/webhooks", Purpose::Account),
        (Method::POST, "/v1beta/auth_tokens", Purpose::Credential),
        (Method::POST, "/v1beta/interactions/i/auth_tokens", Purpose::Credential),
        (Method::POST, "/v1alpha/auth_tokens:create", Purpose::Credential),
    ] {
        assert_eq!(
            of(method, path, &[]).unwrap_or_else(|_| panic!("{path}")).purpose,
            purpose,
            "{path}"
        );
    }
    let call = of(Method::POST, "/v1/models/m:countTokens", &[]).ok().unwrap().call.unwrap();
    assert_eq!(call.kind, CallKind::CountTokens);
    assert_eq!(call.kind.charged_to(), ChargedTo::Method("countTokens"));
    assert!(matches!(call.model, ModelSource::Path(model) if model == Model::parse("m").unwrap()));
}

#[test]
fn interactions_have_a_surface_of_their_own() {
    for (path, surface) in [
        ("/v1/interactions", Surface::Interactions),
        ("/v1beta/interactions/i/cancel", Surface::Interactions),
        ("/v1beta/%69nteractions/i", Surface::Interactions),
        ("/v1beta/models/interactions", Surface::Gemini),
        ("/v1beta/decisions", Surface::Gemini),
    ] {
        for method in [Method::GET, Method::POST] {
            let found = of(method, path, &[]).unwrap_or_else(|_| panic!("{path}"));
            assert_eq!((found.surface, &*found.path), (surface, path));
        }
    }
}

#[test]
fn a_call_counts_as_the_kind_of_its_method() {
    for (path, kind) in [
        ("/v1beta/models/m:generateContent", CallKind::GenerateContent),
        ("/v1beta/models/m:streamGenerateContent", CallKind::StreamGenerateContent),
        ("/v1beta/models/m:countTokens", CallKind::CountTokens),
        ("/v1beta/models/m:embedContent", CallKind::EmbedContent),
        ("/v1beta/models/m:batchEmbedContents", CallKind::EmbedContent),
        ("/v1beta/models/m:predict", CallKind::Predict),
        ("/v1beta/models/m:predictLongRunning", CallKind::Predict),
        ("/v1beta/models/m:predictTomorrow", CallKind::Predict),
        ("/v1beta/models/m:batchGenerateContent", CallKind::BatchGenerateContent),
        ("/v1beta/models/m:asyncBatchEmbedContent", CallKind::AsyncBatchEmbedContent),
        ("/v1beta/models/m:inventedTomorrow", CallKind::OtherMethod),
        ("/v1beta/models/m:streamInventedTomorrow", CallKind::OtherStream),
        ("/v1beta/interactions", CallKind::Interaction),
        ("/v1beta/decisions", CallKind::Decision),
        ("/v1beta/voices", CallKind::Voice),
        ("/v1beta/triggers/t/executions", CallKind::TriggerExecution),
        ("/v1beta/fileSearchStores/s:importFile", CallKind::IndexFile),
        (UPLOAD, CallKind::IndexFile),
        ("/v1/chat/completions", CallKind::OpenAiChat),
        ("/v1/embeddings", CallKind::OpenAiEmbeddings),
        ("/v1/images/generations", CallKind::OpenAiOther),
        ("/v1/videos", CallKind::OpenAiOther),
        ("/v1beta/openai/batches", CallKind::OpenAiBatch),
        ("/v1beta/openai/inventedTomorrow", CallKind::OpenAiOther),
    ] {
        let destination = of(Method::POST, path, &[]).unwrap_or_else(|_| panic!("{path}"));
        assert_eq!(destination.call.map(|call| call.kind), Some(kind), "{path}");
    }
}
