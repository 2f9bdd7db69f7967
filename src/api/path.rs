//! The names in a path.

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::gateway::Gateway;

/// The names in a path: one, or a tuple of several.
#[derive(Debug)]
pub(super) struct Names<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Gateway> for Names<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, ApiError> {
        let path = Path::from_request_parts(parts, gateway).await;
        // A name that is not UTF-8 once it is decoded does not exist.
        path.map(|Path(names)| Self(names)).map_err(|_| ApiError::not_found())
    }
}
