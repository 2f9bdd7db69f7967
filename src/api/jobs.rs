//! `/jobs`: durable bulk work. A job is read and stored whole before it is accepted; its items are sent
//! in the background, and its results can be read while they come and afterwards.
//!
//! | file | what is in it |
//! |---|---|
//! | `begin`, `read`, `change` | the endpoints |
//! | `apply` | what changes a job, for endpoints and the dashboard |
//! | `owner` | whose job it is |
//! | `upload`, `pieces`, `form`, `lines` | reads a body of any size item by item |
//! | `options`, `rules` | what is said of a whole job, and what follows for its items |
//! | `item`, `format` | reads an item, sends it, and writes its result |
//! | `storing` | stores items until the job is accepted |
//! | `status`, `results`, `events` | what is shown of a job |

pub(crate) mod apply;
mod begin;
mod change;
mod events;
mod form;
mod format;
mod item;
mod lines;
mod object;
mod options;
mod owner;
mod pieces;
mod query;
mod read;
mod results;
mod rules;
mod status;
mod storing;
mod upload;

pub use format::item_format;
pub use status::job_shown;

pub(crate) use owner::Viewer;
pub(crate) use results::{ResultQuery, ResultReader, lines};
pub(crate) use status::JobStatus;

pub(super) use begin::{Accepted, IDEMPOTENCY_KEY, IdempotencyKey, begin_batch, resume_failing};
pub(super) use options::JobOptions;
pub(super) use results::{NDJSON, ResultsEnded, report};

/// The endpoints, for the router. utoipa's macros make more than the functions.
pub(super) mod endpoints {
    pub(in crate::api) use super::begin::*;
    pub(in crate::api) use super::change::*;
    pub(in crate::api) use super::read::*;
}
