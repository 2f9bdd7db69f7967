//! The command line: `serve`, `simulate`, `run`, `jobs`, `config`, `healthcheck` and `with-permit`.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::{Parser, Subcommand};
use futures_util::FutureExt;
use tokio::join;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::{Config, Environment, RunningSettings};
use gemini_concurrent_generation::dashboard::Dashboard;
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::gemini::{ApiKey, Secrets};
use gemini_concurrent_generation::jobs::webhook::{Announcer, WebhookSender};
use gemini_concurrent_generation::jobs::{Engine, EngineSettings, StoreError};
use gemini_concurrent_generation::limits::{LocalStore, SharedStore, Store};
use gemini_concurrent_generation::metrics::Sampler;
use gemini_concurrent_generation::reload::Reloader;
use gemini_concurrent_generation::run::{self, RunFailure};
use gemini_concurrent_generation::server::{
    ServerLimits, Shutdown, Worker, affordable_connections, raise_limit, serve,
};
use gemini_concurrent_generation::simulator::{self, Simulator};
use gemini_concurrent_generation::telemetry::{self, LogFormat};
use gemini_concurrent_generation::with_permit;

/// A gateway for Google Gemini. Settings are environment variables, or lines of `.env`.
#[derive(Debug, Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts the gateway. This is the default command.
    Serve {
        /// Starts a built-in simulator and sends all calls to it. No Gemini key is needed, and
        /// nothing is spent.
        #[arg(long)]
        simulate: bool,
    },
    /// Starts a simulator of the Gemini API.
    Simulate {
        /// The address to listen on.
        #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.into())]
        host: IpAddr,
        /// The port to listen on; 0 picks a free one.
        #[arg(long, default_value_t = 5005)]
        port: u16,
        #[command(flatten)]
        options: Box<simulator::Options>,
    },
    /// Answers the prompts of a file, through a running gateway or with only GEMINI_API_KEY. Stopped, the
    /// same command continues.
    Run(Box<run::Arguments>),
    /// Lists and changes the jobs of a running gateway.
    Jobs(run::JobsArguments),
    /// Reads the settings as `serve` does.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Checks that a running gateway answers, for containers without curl.
    Healthcheck {
        /// Checks that it is ready for requests: its limits and its jobs can be used, and it is not
        /// shutting down.
        #[arg(long)]
        ready: bool,
    },
    /// Waits for permits of a running gateway's semaphore, runs a command while holding and renewing
    /// them, releases them when the command ends, and exits with its status.
    WithPermit(with_permit::Arguments),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Reports every invalid setting, and prints the settings that hold, without secrets. Exits with 1 if
    /// any is invalid.
    Check,
}

/// How many file descriptors are reserved for calls that take no slot of the concurrency limit, such as
/// uploads.
const UNCOUNTED_CALLS: usize = 256;

/// With glibc's allocator, allocation took a tenth of a chat's processor time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = match CommandLine::parse().command.unwrap_or(Command::Serve { simulate: false }) {
        Command::Serve { simulate } => settings()
            .and_then(|(environment, config)| run(serve_gateway(environment, config, simulate))),
        Command::Simulate { host, port, options } => {
            run(serve_simulator(SocketAddr::new(host, port), *options))
        }
        Command::Config(ConfigCommand::Check) => check_settings(),
        Command::Healthcheck { ready } => {
            settings().and_then(|(_, config)| run(healthcheck(config, ready)))
        }
        Command::WithPermit(arguments) => return run_with_permit(arguments),
        Command::Run(arguments) => return run_job(*arguments),
        Command::Jobs(arguments) => return manage_jobs(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => failed(message, 1),
    }
}

fn failed(message: impl Display, exit_status: u8) -> ExitCode {
    eprintln!("gemini-concurrent-generation: {message}");
    exit_status.into()
}

fn run_with_permit(arguments: with_permit::Arguments) -> ExitCode {
    // Taken before `.env` is loaded, so that the command does not get its keys.
    let environment = std::env::vars_os().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the runtime could not start: {error}"));
    let outcome = runtime
        .and_then(|runtime| Ok((runtime, settings()?)))
        .map_err(with_permit::Failure::settings)
        .and_then(|(runtime, (_, config))| {
            runtime.block_on(with_permit::run(arguments, &config, environment))
        });
    match outcome {
        Ok(exit_status) => exit_status.into(),
        Err(failure) => failed(&failure, failure.exit_status),
    }
}

fn run_job(arguments: run::Arguments) -> ExitCode {
    let outcome = settings().map_err(RunFailure::settings).and_then(|(_, config)| {
        let _logs = logs_on_request(&config);
        raise_limit();
        block_on(run::run(arguments, config, store), RunFailure::settings)
    });
    match outcome {
        Ok(exit_status) => exit_status.into(),
        Err(failure) => failed(&failure, failure.exit_status),
    }
}

fn manage_jobs(arguments: run::JobsArguments) -> ExitCode {
    let outcome = settings()
        .map_err(RunFailure::settings)
        .and_then(|(_, config)| block_on(run::manage(arguments, &config), RunFailure::settings));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure, failure.exit_status),
    }
}

/// The logs of a command that people watch: none, unless `RUST_LOG` asks for them.
fn logs_on_request(config: &Config) -> Option<telemetry::Logs> {
    std::env::var_os("RUST_LOG").filter(|filter| !filter.is_empty())?;
    Some(telemetry::init(config.log_format, &config.log_filter, config.secrets()))
}

fn run(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    block_on(work, |message| message)
}

/// Runs a command on all processors.
fn block_on<T, E>(
    work: impl Future<Output = Result<T, E>>,
    cannot_start: impl FnOnce(String) -> E,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| cannot_start(format!("the runtime could not start: {error}")))?;
    let result = runtime.block_on(work);
    // Tasks that still run are not waited for.
    runtime.shutdown_background();
    result
}

/// Reads the settings from the environment and from `.env`. The environment takes precedence.
fn settings() -> Result<(Environment, Config), String> {
    let environment = Environment::load().map_err(|error| error.to_string())?;
    let config = environment.config().map_err(|error| error.to_string())?;
    Ok((environment, config))
}

fn check_settings() -> Result<(), String> {
    let environment = Environment::load().map_err(|error| error.to_string())?;
    // Its reader may be gone.
    let _ = io::stdout().write_all(environment.shown().as_bytes());
    for name in environment.unknown() {
        eprintln!("warning: .env sets {name}, which is no setting");
    }
    let errors = environment.errors();
    errors.iter().for_each(|error| eprintln!("{error}"));
    match errors.len() {
        0 => Ok(()),
        1 => Err("1 setting is invalid".to_owned()),
        count => Err(format!("{count} settings are invalid")),
    }
}

async fn serve_gateway(
    environment: Environment,
    mut config: Config,
    simulate: bool,
) -> Result<(), String> {
    let logs = telemetry::init(config.log_format, &config.log_filter, config.secrets());
    raise_limit();
    let shutdown = shutdown_on_signal(config.shutdown_delay)?;
    if simulate {
        let listener = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).await?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        config.base_url = format!("http://{address}");
        config.proxy = None;
        config.set_gemini_api_key(ApiKey::new("simulated-key").map_err(|error| error.to_string())?);
        let router = Simulator::new(simulator::Options::default()).router();
        // Not stopped by the signal: calls in flight are answered during the grace period.
        let workers = vec![Worker::here(router)];
        let limits = ServerLimits { max_connections: usize::MAX, ..ServerLimits::of(&config) };
        tokio::spawn(serve(listener, workers, limits, CancellationToken::new()));
        tracing::warn!(%address, "SIMULATED: answers come from the built-in simulator, not Gemini");
    }
    if !simulate {
        warn_if_key_is_open(&config);
    }
    if let Some(proxy) = &config.proxy {
        tracing::info!(%proxy, "calls to Gemini go through a proxy");
    }
    let store = shutdown.announced.run_until_cancelled(store(&config)).await;
    let Some(store) = store.transpose()? else { return Ok(()) };
    let gateway = Gateway::with_store(config, simulate, Arc::clone(&store));
    let gateway = gateway.map_err(|error| error.to_string())?.until(shutdown.announced.clone());
    let config = &gateway.config;
    check_job_store(&gateway).await?;
    let engine = Engine::start(
        Arc::clone(&gateway.jobs),
        Arc::clone(&gateway.dispatcher),
        api::item_format(gateway.clone()),
        config.gemini_api_key.clone(),
        EngineSettings {
            lease: config.job_lease,
            retention: config.job_retention,
            large_items: gateway.bodies.for_large_items(),
            metrics: Arc::clone(&gateway.metrics),
            observer: gateway.traces.job_observer(),
        },
    );
    let announcer = announcer(&gateway)?;
    let _sampler = Sampler::start(&gateway.history);
    let reloader = Reloader {
        settings: RunningSettings::new(environment),
        gateway: gateway.clone(),
        log_filter: logs.filter(),
    };
    reloader.start().map_err(|error| error.to_string())?;
    let listener = listen(SocketAddr::new(config.host, config.port)).await?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    tracing::info!(%address, concurrency_limit = config.concurrency_limit, "ready");
    let dashboard = Dashboard::new(shutdown.begins.clone());
    let workers = workers(|| {
        let gateway = gateway.with_own_connections();
        Ok(api::router_with(gateway.clone(), dashboard.routes(gateway)))
    })?;
    // Each call to Gemini takes a connection, and as many idle ones may be kept for later calls.
    let reserved = config.concurrency_limit.saturating_mul(2).saturating_add(UNCOUNTED_CALLS);
    let mut limits = ServerLimits::of(config);
    limits.max_connections = affordable_connections(limits.max_connections, reserved);
    // Both end with the grace period. A job that was accepted meanwhile is sent after the next start.
    let calls_of_jobs = async {
        shutdown.announced.cancelled().await;
        let time = config.shutdown_delay.saturating_add(config.shutdown_grace);
        let grace = shutdown.ends_now.run_until_cancelled(sleep(time));
        engine.stop(grace.map(drop)).await;
        announcer.stop(shutdown.ends_now.cancelled()).await;
    };
    join!(serve(listener, workers, limits, shutdown.clone()), calls_of_jobs);
    gateway.jobs.store().close().await;
    let last = async { join!(store.close(), gateway.traces.stop()) };
    shutdown.ends_now.run_until_cancelled(last).await;
    tracing::info!("stopped");
    Ok(())
}

/// Checks that this version can read the jobs. A store that cannot be used now does not prevent the start:
/// it is tried again whenever it is needed.
async fn check_job_store(gateway: &Gateway) -> Result<(), String> {
    match gateway.jobs.store().check().await {
        Err(error @ StoreError::TooNew { .. }) => Err(error.to_string()),
        Err(error) => {
            tracing::warn!(%error, "there are no jobs until their store can be used");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Starts to announce the ends of jobs.
fn announcer(gateway: &Gateway) -> Result<Announcer, String> {
    let Config { webhooks, proxy, authorities, .. } = &gateway.config;
    let sender = WebhookSender::new(webhooks.clone(), proxy.as_ref(), authorities);
    let sender = sender.map_err(|error| format!("JOB_WEBHOOK_SECRET: {error}"))?;
    let (jobs, shown) = (&gateway.jobs, api::job_shown(gateway.clone()));
    Ok(Announcer::start(Arc::clone(jobs.store()), sender, jobs.ended(), shown))
}

/// Opens the store of the limits: in Redis if it is set up, else in memory.
async fn store(config: &Config) -> Result<Arc<dyn Store>, String> {
    let limit = config.concurrency_limit;
    let Some(redis) = &config.redis else { return Ok(LocalStore::new(limit)) };
    match SharedStore::connect(redis, limit).await {
        Ok(store) => {
            tracing::info!(prefix = redis.prefix, "limits are shared through Redis");
            Ok(store)
        }
        Err(reason) if config.redis_required => Err(format!(
            "REDIS_URL: {reason}. With REDIS_REQUIRED=false the replica starts with its own limits."
        )),
        Err(reason) => {
            tracing::warn!(%reason, "REDIS_REQUIRED=false: this replica has its own limits");
            Ok(LocalStore::new(limit))
        }
    }
}

/// One worker for each processor.
fn workers(router: impl Fn() -> Result<Router, String>) -> Result<Vec<Worker>, String> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let worker =
        |_| Worker::start(router()?).map_err(|error| format!("cannot start a worker: {error}"));
    (0..processors).map(worker).collect()
}

async fn serve_simulator(address: SocketAddr, options: simulator::Options) -> Result<(), String> {
    let _logs = telemetry::init(LogFormat::Text, "info", Secrets::default());
    raise_limit();
    let shutdown = shutdown_on_signal(Duration::ZERO)?;
    let listener = listen(address).await?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    tracing::info!(%address, "simulating Gemini");
    let limits = ServerLimits::of(&Config::default());
    let simulator = Simulator::new(options);
    serve(listener, workers(|| Ok(simulator.router()))?, limits, shutdown).await;
    Ok(())
}

async fn healthcheck(config: Config, ready: bool) -> Result<(), String> {
    let host = match config.host {
        // The address that stands for all addresses is not one to connect to.
        host if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        host => host,
    };
    let address = SocketAddr::new(host, config.port);
    let (path, quality) = if ready { ("/readyz", "ready") } else { ("/livez", "healthy") };
    gemini_concurrent_generation::server::answers(address, path)
        .await
        .map_err(|error| format!("{address} is not {quality}: {error}"))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}"))
}

/// Announces the shutdown on SIGTERM, which container runtimes send, or Ctrl-C, and begins it after a
/// delay. A second signal ends the delay and the grace period.
fn shutdown_on_signal(delay: Duration) -> Result<Shutdown, String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let shutdown = Shutdown::default();
    let Shutdown { announced, begins, ends_now } = shutdown.clone();
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::spawn(async move {
        next().await;
        tracing::info!(delay_seconds = delay.as_secs_f64(), "shutting down");
        announced.cancel();
        if timeout(delay, next()).await.is_err() {
            begins.cancel();
            next().await;
        }
        tracing::info!("stopping at once");
        begins.cancel();
        ends_now.cancel();
    });
    Ok(shutdown)
}

fn warn_if_key_is_open(config: &Config) {
    let both = config.admin_api_key.is_some() && config.gemini_api_key.is_some();
    if both && config.environment_fallback && !config.is_loopback() {
        tracing::warn!(
            host = %config.host,
            "anyone who can reach this port can spend the server's Gemini key without the admin key; \
             to prevent that, set ENVIRONMENT_FALLBACK=false or HOST=127.0.0.1"
        );
    }
}
