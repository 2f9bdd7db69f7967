//! The service, tested through its front door: one binary, one file a capability.

mod auth;
mod batch;
mod corpus;
mod door;
mod failures;
mod input;
mod protocol;
mod support;
