//! The service, tested through its front door: one binary, one file a capability.

mod cinematic;
mod corpus;
mod documentation;
mod door;
mod health;
mod metrics;
mod semaphores;
mod structured;
mod support;
mod upstream;
