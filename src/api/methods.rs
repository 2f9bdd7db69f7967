//! The HTTP methods that this service knows.

use http::Method;

/// The known methods, as `Allow` lists them.
pub(super) const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Whether a method is known.
pub(super) fn is_known(method: &Method) -> bool {
    METHODS.split(", ").any(|known| known == method.as_str())
}
