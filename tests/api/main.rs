//! The service, tested through its front door: one binary, one file a capability.

mod corpus;
mod door;
mod support;
mod settings;
