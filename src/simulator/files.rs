//! The endpoints of files. Uploaded bytes are counted and discarded.

pub(super) mod store;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::TryStreamExt;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use store::{Files, Metadata};

use super::file_search::index;
use super::json::{json_response, received};
use super::refusal::ErrorResponse;
use super::state::Simulator;
use super::target::{api_key, check_key, owner, query_value};

/// The routes of files and uploads.
pub(super) fn router() -> Router<Simulator> {
    ["v1", "v1beta", "v1alpha"].into_iter().fold(Router::new(), |router, version| {
        router
            .route(&format!("/upload/{version}/files"), post(upload).put(upload))
            .route(
                &format!("/upload/{version}/fileSearchStores/{{call}}"),
                post(upload).put(upload),
            )
            .route(&format!("/{version}/files"), get(list))
            .route(&format!("/{version}/files/{{id}}"), get(get_file).delete(delete_file))
    })
}

/// Body of the request that begins an upload.
#[derive(Default, Deserialize)]
struct StartUpload {
    #[serde(default)]
    file: Metadata,
}

async fn upload(State(simulator): State<Simulator>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let answered = if let Some(id) = query_value(&parts.uri, "upload_id") {
        proceed(&simulator, &parts, id, body).await
    } else if header(&parts.headers, "x-goog-upload-protocol") == Some("resumable") {
        start(&simulator, &parts, body).await
    } else {
        upload_at_once(&simulator, &parts, body).await
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// Begins a resumable upload. The response says where to send the bytes.
async fn start(
    simulator: &Simulator,
    parts: &Parts,
    body: Body,
) -> Result<Response, ErrorResponse> {
    let key = check_key(api_key(&parts.headers, &parts.uri), simulator.options())?;
    let body = received(body).await?;
    let StartUpload { file: mut metadata } = match &body[..] {
        b"" => StartUpload::default(),
        body => serde_json::from_slice(body)
            .map_err(|_| ErrorResponse::with_status(StatusCode::BAD_REQUEST))?,
    };
    let named = header(&parts.headers, "x-goog-upload-header-content-type").map(str::to_owned);
    metadata.mime_type = metadata.mime_type.or(named);
    let id = simulator.files().begin(key, metadata);
    let (host, path) = (host(parts), parts.uri.path());
    let url = format!("http://{host}{path}?upload_id={id}&upload_protocol=resumable");
    let url = HeaderValue::try_from(url);
    let url = url.map_err(|_| ErrorResponse::with_status(StatusCode::BAD_REQUEST))?;
    let mut response = with_upload_status(Response::default(), "active");
    response.headers_mut().insert("x-goog-upload-url", url);
    Ok(response)
}

/// Continues a resumable upload, or reports its size. No key is needed: the upload's address is the
/// proof.
async fn proceed(
    simulator: &Simulator,
    parts: &Parts,
    id: &str,
    body: Body,
) -> Result<Response, ErrorResponse> {
    let files = simulator.files();
    let so_far =
        files.received(id).ok_or_else(|| ErrorResponse::with_status(StatusCode::NOT_FOUND))?;
    let command = header(&parts.headers, "x-goog-upload-command").unwrap_or_default();
    let asks_for = |wanted| command.split(',').any(|command| command.trim() == wanted);
    if asks_for("query") {
        let mut response = with_upload_status(Response::default(), "active");
        response.headers_mut().insert("x-goog-upload-size-received", so_far.into());
        return Ok(response);
    }
    if asks_for("upload") {
        let offset = match header(&parts.headers, "x-goog-upload-offset") {
            Some(offset) => offset.parse().ok().filter(|offset| *offset <= so_far),
            None => Some(so_far),
        };
        let offset = offset.ok_or_else(|| ErrorResponse::with_status(StatusCode::BAD_REQUEST))?;
        files.set_received(id, offset + count(body).await?);
    }
    if asks_for("finalize") {
        return finish(simulator, parts, id).await;
    }
    if asks_for("upload") {
        return Ok(with_upload_status(Response::default(), "active"));
    }
    Err(ErrorResponse::with_status(StatusCode::BAD_REQUEST))
}

/// Receives a whole file in one request.
async fn upload_at_once(
    simulator: &Simulator,
    parts: &Parts,
    body: Body,
) -> Result<Response, ErrorResponse> {
    let key = check_key(api_key(&parts.headers, &parts.uri), simulator.options())?;
    let mime_type = header(&parts.headers, header::CONTENT_TYPE.as_str()).map(str::to_owned);
    let bytes = count(body).await?;
    let files = simulator.files();
    let id = files.begin(key, Metadata { mime_type, ..Metadata::default() });
    files.set_received(&id, bytes);
    finish(simulator, parts, &id).await
}

/// Ends an upload. A file for a search store is embedded; the response is an operation.
async fn finish(simulator: &Simulator, parts: &Parts, id: &str) -> Result<Response, ErrorResponse> {
    let last = parts.uri.path().rsplit('/').next().unwrap_or_default();
    if let Some(store) = last.strip_suffix(":uploadToFileSearchStore") {
        let upload = simulator.files().upload(id);
        let (key, bytes) =
            upload.ok_or_else(|| ErrorResponse::with_status(StatusCode::NOT_FOUND))?;
        let response = index(simulator, parts, &key, store, bytes).await;
        return Ok(with_upload_status(response, "final"));
    }
    let version = parts.uri.path().split('/').nth(2).unwrap_or_default();
    let address = format!("http://{}/{version}", host(parts));
    let file = simulator.files().finish(id, &address);
    let file = file.ok_or_else(|| ErrorResponse::with_status(StatusCode::NOT_FOUND))?;
    Ok(with_upload_status(json_response(&json!({"file": file})), "final"))
}

/// The size of a body, in bytes.
async fn count(body: Body) -> Result<u64, ErrorResponse> {
    let count = async |bytes, chunk: bytes::Bytes| Ok(bytes + chunk.len() as u64);
    let counted = body.into_data_stream().try_fold(0, count).await;
    counted.map_err(|_| ErrorResponse::with_status(StatusCode::BAD_REQUEST))
}

async fn list(State(simulator): State<Simulator>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    match owner(&parts, simulator.options()) {
        Ok(owner) => {
            let files = simulator.files().list(owner);
            json_response(&if files.is_empty() { json!({}) } else { json!({"files": files}) })
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn get_file(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    on_file(&simulator, &id, request, Files::get)
}

async fn delete_file(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    on_file(&simulator, &id, request, Files::delete)
}

fn on_file(
    simulator: &Simulator,
    id: &str,
    request: Request,
    act: fn(&Files, u64, &str) -> Option<Value>,
) -> Response {
    let (parts, _) = request.into_parts();
    let done = owner(&parts, simulator.options()).and_then(|owner| {
        act(simulator.files(), owner, &format!("files/{id}"))
            .ok_or_else(|| ErrorResponse::no_such_file(id))
    });
    done.map_or_else(IntoResponse::into_response, |answer| json_response(&answer))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn host(parts: &Parts) -> &str {
    header(&parts.headers, header::HOST.as_str()).unwrap_or("localhost")
}

fn with_upload_status(mut response: Response, status: &'static str) -> Response {
    response.headers_mut().insert("x-goog-upload-status", HeaderValue::from_static(status));
    response
}
