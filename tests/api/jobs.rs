//! Jobs over HTTP: uploads, results, changes, owners, and batches that become jobs.

mod batches;
mod changes;
mod forms;
mod hostile;
mod owners;
mod results;
mod uploads;

use gemini_concurrent_generation::api::item_format;
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::jobs::Engine;
use gemini_concurrent_generation::simulator::Options;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Service, answer};

/// A service with an engine for its jobs.
pub struct JobService {
    service: Service,
    _engine: Option<Engine>,
}

impl std::ops::Deref for JobService {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl JobService {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut started = Self::without_engine(change).await;
        started.run_engine();
        started
    }

    /// A service whose jobs stay queued.
    pub async fn without_engine(change: impl FnOnce(&mut Config)) -> Self {
        let service = Service::with(Options::default(), change).await;
        Self { service, _engine: None }
    }

    pub fn run_engine(&mut self) {
        let gateway = &self.service.gateway;
        let engine = gateway.start_jobs(item_format(gateway.clone()));
        self._engine = Some(engine);
    }

    /// Uploads lines of a kind.
    pub fn upload(&self, kind: &str, lines: impl Into<reqwest::Body>) -> RequestBuilder {
        let kind = if kind.is_empty() { String::new() } else { format!("?kind={kind}") };
        let request = self.http.post(self.url(&format!("/jobs{kind}")));
        request.header("content-type", "application/x-ndjson").body(lines)
    }

    /// Uploads chats, and gives the id of the job.
    pub async fn chats(&self, prompts: impl IntoIterator<Item = String>) -> String {
        accepted(answer(self.upload("chat", chats(prompts))).await)
    }

    pub async fn job(&self, id: &str) -> Value {
        let shown = answer(self.get(&format!("/jobs/{id}"))).await;
        assert_eq!(shown.status, StatusCode::OK, "{shown:?}");
        shown.body
    }

    /// The results that a query gives.
    async fn results(&self, id: &str, query: &str) -> Vec<Value> {
        let response = self.get(&format!("/jobs/{id}/results{query}")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        lines(&response.text().await.expect("a whole answer"))
    }

    /// All results, once the job has ended.
    pub async fn all_results(&self, id: &str) -> Vec<Value> {
        self.results(id, "?follow=true").await
    }

    /// Changes a job.
    async fn change(&self, id: &str, what: &str) -> Answer {
        answer(self.http.post(self.url(&format!("/jobs/{id}/{what}")))).await
    }

    /// The jobs that the admin sees.
    async fn list(&self) -> Vec<Value> {
        let listed = answer(crate::support::admin(self.get("/jobs"))).await;
        listed.body["jobs"].as_array().expect("a list").clone()
    }
}

/// The id of a job that was accepted.
pub fn accepted(begun: Answer) -> String {
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{begun:?}");
    let id = begun.body["job_id"].as_str().expect("an id").to_owned();
    assert_eq!(begun.headers["location"], format!("/jobs/{id}"));
    id
}

pub fn chats(prompts: impl IntoIterator<Item = String>) -> String {
    prompts.into_iter().map(|prompt| format!("{}\n", json!({"prompt": prompt}))).collect()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The code of an error, and the places that it names.
fn faults(refused: &Answer) -> Vec<(String, String)> {
    let detail = refused.body["detail"].as_array();
    let detail = detail.unwrap_or_else(|| panic!("no fields: {refused:?}"));
    detail
        .iter()
        .map(|fault| (fault["loc"].to_string(), fault["type"].as_str().unwrap().to_owned()))
        .collect()
}
