//! HTTP: routes, authentication, bodies. The only place that knows status codes.

mod auth;
mod batch;
mod body;
mod browser;
mod chat;
mod cinematic;
mod destination;
mod encoding;
mod error;
mod form;
mod guard;
mod health;
mod leases;
mod limits;
mod metrics;
mod observe;
mod openapi;
mod path;
mod read_ahead;
mod relay;
mod router;
mod semaphores;
mod single;
mod structured;
mod whole_number;

pub use router::{openapi, router};
