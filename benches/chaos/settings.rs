//! What is the same in every run, and a run's arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// How many replicas share the limits. The first is never killed, so that its memory can be
/// compared.
pub const REPLICAS: usize = 4;

/// The most calls in flight, for all replicas together.
pub const LIMIT: usize = 64;

/// The semaphore that some calls name, and its limit.
pub const SEMAPHORE: &str = "tight";
pub const SEMAPHORE_LIMIT: usize = 3;

/// How long Redis keeps the permits of a silent replica.
pub const LEASE: Duration = Duration::from_secs(5);

/// What the service promises: a call that takes no longer than this ends before its permit is given
/// to another call, whatever happens to its replica or to Redis.
pub const COVERED: Duration = Duration::from_secs(4);

/// The time limit of one attempt.
pub const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);

/// The time limit of a request or a batch item.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest time until a replica must serve again.
pub const RECOVERY: Duration = Duration::from_secs(20);

/// The longest time until a call must have ended after its client has disconnected.
pub const HANG_UP: Duration = Duration::from_secs(3);

/// The server's own key, and the admin key.
pub const SERVER_KEY: &str = "AIzaSyNEVERSHOWN-server-00-xxxxxxxxxxxx";
pub const ADMIN_KEY: &str = "admin-NEVERSHOWN-admin";

/// Kills replicas, disturbs Redis, steps clocks and breaks the upstream under load, and checks the
/// promises of the service. Fails if any was violated.
#[derive(Parser, Debug, Clone)]
pub struct Arguments {
    /// The total number of calls; the number of disturbances is in proportion
    #[arg(long, default_value_t = 1_000_000)]
    pub calls: u64,
    /// Seed of the requests, faults and disturbances; random if unset
    #[arg(long)]
    pub seed: Option<u64>,
    /// The program to test; the one built with this benchmark if unset
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// Kinds of disturbances to leave out, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KINDS")]
    pub without: Vec<Kind>,
    /// The only kinds of disturbances, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KINDS")]
    pub only: Vec<Kind>,
    /// Multiplies the number of disturbances
    #[arg(long, default_value_t = 1, value_name = "FACTOR")]
    pub times: u64,
    /// Keep the replicas' logs, and print where they are
    #[arg(long)]
    pub keep: bool,
    /// Set by `cargo bench`
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Arguments {
    /// Whether this run includes a kind of disturbance.
    pub fn has(&self, kind: Kind) -> bool {
        (self.only.is_empty() || self.only.contains(&kind)) && !self.without.contains(&kind)
    }
}

/// What is done to the processes, or to the calls.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL to a replica, which is restarted at once
    Kill,
    /// SIGSTOP to a replica, for up to one and a half leases
    Pause,
    /// The clock of a replica is set forward or back
    ReplicaClock,
    /// Redis is stopped and restarted with its saved data
    RedisKept,
    /// Redis is killed and restarted with older saved data, or none
    RedisStale,
    /// Redis is killed and restarted empty
    RedisEmpty,
    /// FLUSHALL
    Flush,
    /// Redis is stopped for up to one and a half leases
    RedisPause,
    /// Redis closes all connections
    RedisCut,
    /// The clock of Redis is set forward
    RedisForward,
    /// The clock of Redis is set back
    RedisBack,
    /// Answers of the upstream other than good ones
    Faults,
    /// Clients that disconnect
    HangUps,
}

impl Kind {
    /// Its name in the table of figures.
    pub fn text(self) -> &'static str {
        match self {
            Self::Kill => "replica killed",
            Self::Pause => "replica paused",
            Self::ReplicaClock => "clock of a replica stepped",
            Self::RedisKept => "Redis restarted, data kept",
            Self::RedisStale => "Redis killed, older data restored",
            Self::RedisEmpty => "Redis killed, data lost",
            Self::Flush => "FLUSHALL",
            Self::RedisPause => "Redis paused",
            Self::RedisCut => "connections to Redis closed",
            Self::RedisForward => "clock of Redis set forward",
            Self::RedisBack => "clock of Redis set back",
            Self::Faults => "faults of the upstream",
            Self::HangUps => "clients that disconnect",
        }
    }
}
