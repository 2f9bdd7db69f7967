//! How sessions begin and end.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Redirect, Response};
use http::{HeaderMap, StatusCode, Uri};
use maud::{Markup, html};
use url::form_urlencoded;

use super::Site;
use super::access::{Action, client_address, no_session_cookie, session_cookie, session_of};
use super::failure::PageError;
use super::form::Form;
use super::layout;

/// The longest address to which a login leads, in bytes.
const MAX_NEXT: usize = 1024;

/// The page with the form.
pub(super) async fn form(State(site): State<Site>, uri: Uri, headers: HeaderMap) -> Response {
    let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let next = query.into_iter().find(|(name, _)| name == "next");
    let next = next.map(|(_, next)| next.into_owned()).unwrap_or_default();
    match session_of(&headers, &site).await {
        Some(_) => Redirect::to(safe(&next)).into_response(),
        None => page(&next, None),
    }
}

/// Begins a session if the form has the admin key.
pub(super) async fn login(State(site): State<Site>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let client = client_address(&head);
    let form = match Form::read(&head.headers, body, &site.gateway).await {
        Ok(form) => form,
        Err(error) => return error.into_response(),
    };
    let next = form.get("next");
    if let Err(wait) = site.dashboard.throttle.attempt(client) {
        let message = "Too many attempts. Wait a moment before you try again.";
        let error = PageError::new(StatusCode::TOO_MANY_REQUESTS, message).after(wait);
        return page(next, Some(&error));
    }
    let admin = site.gateway.config.admin_api_key.as_ref();
    if !admin.is_some_and(|admin| admin.matches(form.get("key").trim().as_bytes())) {
        tracing::warn!(%client, "a login to the dashboard had a wrong key");
        let error = PageError::new(StatusCode::UNAUTHORIZED, "This is not the admin key.");
        return page(next, Some(&error));
    }
    site.dashboard.throttle.succeeded(client);
    tracing::info!(%client, "a session of the dashboard begins");
    let token = site.dashboard.sessions.begin(site.gateway.limiter.store()).await;
    (session_cookie(&token, &head.headers), Redirect::to(safe(next))).into_response()
}

/// Ends the session.
pub(super) async fn logout(headers: HeaderMap, action: Action) -> Response {
    let view = action.view;
    let store = view.site.gateway.limiter.store();
    view.site.dashboard.sessions.end(&view.session, store).await;
    (no_session_cookie(&headers), Redirect::to("/dashboard/login")).into_response()
}

/// A page of the dashboard to go to. Other addresses lead to the overview.
fn safe(next: &str) -> &str {
    let rest = next.strip_prefix("/dashboard").unwrap_or("\\");
    let is_page = rest.is_empty() || rest.starts_with(['/', '?']);
    let is_plain = next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_page && is_plain && next.len() <= MAX_NEXT { next } else { "/dashboard" }
}

fn page(next: &str, error: Option<&PageError>) -> Response {
    let described = error.map(|_| "error");
    let form: Markup = html! {
        @if let Some(error) = error {
            p.alert role="alert" id="error" { (error.message()) }
        }
        form.stacked method="post" action="/dashboard/login" {
            input type="hidden" name="next" value=(safe(next));
            label for="key" { "Admin key" }
            input #key type="password" name="key" required autofocus autocomplete="current-password"
                spellcheck="false" aria-invalid=[error.map(|_| "true")] aria-describedby=[described];
            p.hint { "The value of " code { "ADMIN_API_KEY" } "." }
            button.primary type="submit" { "Sign in" }
        }
    };
    let mut response = layout::bare("Sign in", html! {}, form);
    if let Some(error) = error {
        error.mark(&mut response);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_only_to_pages_of_the_dashboard() {
        for page in ["/dashboard", "/dashboard/jobs?after=job_1", "/dashboard?x=//y"] {
            assert_eq!(safe(page), page);
        }
        for other in [
            "",
            "/",
            "//evil.example",
            "https://evil.example",
            "/dashboards",
            "/dashboard.evil",
            "/dashboard\\@evil",
            "/dashboard/\n",
            "/dashboard/é",
            &format!("/dashboard/{}", "x".repeat(MAX_NEXT)),
        ] {
            assert_eq!(safe(other), "/dashboard", "{other}");
        }
    }
}
