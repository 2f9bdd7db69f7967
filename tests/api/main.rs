//! The service, tested through its front door: one binary, one file a capability.

mod auth;
mod batch;
mod cinematic;
mod corpus;
mod documentation;
mod door;
mod failures;
mod health;
mod input;
mod leases;
mod lifecycle;
mod limits;
mod metrics;
mod outages;
mod process;
mod protocol;
mod redis_server;
mod replicas;
mod semaphores;
mod settings;
mod sharing;
mod structured;
mod support;
mod upstream;
mod with_permit;
