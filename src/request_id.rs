//! The ID of a request, in logs, answers and the list of failures.

use http::HeaderValue;
use tokio::task_local;

task_local! {
    static CURRENT: HeaderValue;
}

/// Handles a request with this ID. Tasks that it spawns do not have the ID.
pub async fn handling<T>(id: HeaderValue, handled: impl Future<Output = T>) -> T {
    CURRENT.scope(id, handled).await
}

/// The ID of the request that the current task handles, if it handles one.
pub fn current() -> Option<HeaderValue> {
    CURRENT.try_with(HeaderValue::clone).ok()
}
