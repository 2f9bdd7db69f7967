//! The service, tested through its front door: one binary, one file a capability.

mod cinematic;
mod corpus;
mod documentation;
mod door;
mod health;
mod lifecycle;
mod metrics;
mod process;
mod semaphores;
mod settings;
mod structured;
mod support;
mod upstream;
