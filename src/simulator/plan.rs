//! How a call is to be answered.

use std::time::Duration;

use bytes::Bytes;

use super::refusal::ErrorResponse;
use super::script::Script;
use super::tier::ServiceTier;

/// How a call is to be answered.
pub(super) struct Plan {
    /// From the arrival to the last byte.
    pub latency: Duration,
    /// The tier that serves the call.
    pub tier: ServiceTier,
    pub reply: Reply,
}

/// What a call is to be answered with.
pub(super) enum Reply {
    Refused(ErrorResponse),
    /// The connection is closed without a response.
    Closed,
    Answered(ResponseChunks),
}

/// A response, and how much of it is sent.
pub(super) struct ResponseChunks {
    pub chunks: Vec<Bytes>,
    /// Whether the connection is closed half way.
    pub truncated: bool,
    /// After how many chunks nothing more is sent.
    pub stall_after: Option<u32>,
    /// After how many chunks of a stream which error follows.
    pub failure: Option<(u32, ErrorResponse)>,
}

impl ResponseChunks {
    /// Chunks that are sent as the script says.
    pub fn new(chunks: Vec<Bytes>, script: &Script<'_>) -> Self {
        let (truncated, stall_after) = (script.truncate_body, script.stall_after);
        Self { chunks, truncated, stall_after, failure: None }
    }
}
