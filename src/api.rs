//! HTTP: routes, authentication, bodies, errors. With the dashboard, the only module that knows status
//! codes.

mod ask;
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
pub(crate) mod jobs;
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
mod route;
mod router;
mod semaphore_status;
mod semaphores;
mod service_tier;
mod single;
mod split;
mod structured;
mod whole_number;

pub use code::Code;
pub use jobs::{item_format, job_shown};
pub use router::{openapi, router, router_with};

pub(crate) use ask::{Asked, Reply, ask};
pub(crate) use body::collect;
pub(crate) use browser::{is_cross_site, is_trusted_host};
pub(crate) use buffered::Buffered;
pub(crate) use error::ApiError;
pub(crate) use incoming::observer;
pub(crate) use leases::release;
pub(crate) use semaphores::{register, registered, unregister};
