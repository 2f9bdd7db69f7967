//! HTTP: routes, authentication, bodies, errors. The only module that knows status codes.

mod auth;
mod batch;
mod body;
mod browser;
mod buffered;
mod chat;
mod cinematic;
mod code;
mod credentials;
mod destination;
mod encoding;
mod error;
mod form;
mod generation_request;
mod guard;
mod health;
mod incoming;
mod json;
mod leases;
mod limits;
mod methods;
mod metrics;
mod observe;
mod openapi;
mod path;
mod read_ahead;
mod relay;
mod router;
mod semaphore_status;
mod semaphores;
mod single;
mod split;
mod structured;
mod whole_number;

pub use code::Code;
pub use router::{openapi, router};
