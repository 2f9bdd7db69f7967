//! The dashboard over HTTP.

mod access;
mod browser;
mod figures;
mod jobs;
mod live;
mod login;
mod playground;
mod replicas;
mod semaphores;

use std::net::SocketAddr;

use reqwest::header::{COOKIE, HeaderMap, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, StatusCode};

use crate::support::{ADMIN_KEY, Service, TEST_TIMEOUT};

/// What a browser does: it keeps the cookie and sends forms.
pub struct Browser {
    http: reqwest::Client,
    address: SocketAddr,
    cookie: Option<String>,
    /// The token of the session's forms.
    csrf: String,
}

/// A page.
#[derive(Debug)]
pub struct Shown {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Browser {
    pub fn new(service: &Service) -> Self {
        Self::at(service.address)
    }

    pub fn at(address: SocketAddr) -> Self {
        let http = reqwest::Client::builder().timeout(TEST_TIMEOUT).redirect(Policy::none());
        let http = http.build().expect("a client");
        Self { http, address, cookie: None, csrf: String::new() }
    }

    /// A browser with a session.
    pub async fn signed_in(service: &Service) -> Self {
        let mut browser = Self::new(service);
        let shown = browser.login(ADMIN_KEY).await;
        assert_eq!((shown.status.as_u16(), shown.leads_to()), (303, "/dashboard"), "{shown:?}");
        let page = browser.get("/dashboard").await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        browser.csrf = page.csrf();
        browser
    }

    pub async fn login(&mut self, key: &str) -> Shown {
        let request = self.request(Method::POST, "/dashboard/login");
        let shown = self.send(request.body(form(&[("key", key)]))).await;
        if let Some(cookie) = shown.headers.get(SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            self.cookie = Some(cookie.split(';').next().unwrap().to_owned());
        }
        shown
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("http://{}{path}", self.address));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        match &self.cookie {
            Some(cookie) => request.header(COOKIE, cookie),
            None => request,
        }
    }

    pub async fn send(&self, request: RequestBuilder) -> Shown {
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        Shown { status, headers, text: response.text().await.expect("a whole answer") }
    }

    pub async fn get(&self, path: &str) -> Shown {
        self.send(self.request(Method::GET, path)).await
    }

    /// Sends a form of the session.
    pub async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Shown {
        let fields = [&[("csrf", &*self.csrf)], fields].concat();
        self.send(self.request(Method::POST, path).body(form(&fields))).await
    }
}

impl Shown {
    pub fn leads_to(&self) -> &str {
        self.headers.get("location").map_or("", |location| location.to_str().unwrap())
    }

    pub fn csrf(&self) -> String {
        let (_, rest) = self.text.split_once("name=\"csrf\" value=\"").expect("a form");
        rest.split('"').next().unwrap().to_owned()
    }

    #[track_caller]
    pub fn has(&self, text: &str) {
        assert!(self.text.contains(text), "{text} is not in {}", self.text);
    }

    #[track_caller]
    pub fn has_not(&self, text: &str) {
        assert!(!self.text.contains(text), "{text} is in {}", self.text);
    }
}

pub fn form(fields: &[(&str, &str)]) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields);
    form.finish()
}

/// The pages that need no other names.
pub const PAGES: &[&str] = &[
    "/dashboard",
    "/dashboard/accounts",
    "/dashboard/jobs",
    "/dashboard/semaphores",
    "/dashboard/replicas",
    "/dashboard/failures",
];

/// The actions, with a path that exists or not.
pub const ACTIONS: &[&str] = &[
    "/dashboard/logout",
    "/dashboard/jobs/job_00000000000000000000000000000000/pause",
    "/dashboard/jobs/job_00000000000000000000000000000000/resume",
    "/dashboard/jobs/job_00000000000000000000000000000000/cancel",
    "/dashboard/jobs/job_00000000000000000000000000000000/retry",
    "/dashboard/jobs/job_00000000000000000000000000000000/delete",
    "/dashboard/accounts/reset",
    "/dashboard/playground",
    "/dashboard/semaphores",
    "/dashboard/semaphores/images/limit",
    "/dashboard/semaphores/images/delete",
    "/dashboard/semaphores/images/leases/0/release",
];
