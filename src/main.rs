//! The command line: `serve`, `simulate`, `run`, `jobs`, `config`, `healthcheck` and `with-permit`.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::{Parser, Subcommand};
use futures_util::FutureExt;
use tokio::join;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::{Config, Environment, Origin, RunningSettings};
use gemini_concurrent_generation::dashboard::Dashboard;
use gemini_concurrent_generation::gateway::{Gateway, open_store};
use gemini_concurrent_generation::gemini::{ApiKey, Secrets};
use gemini_concurrent_generation::jobs::StoreError;
use gemini_concurrent_generation::jobs::webhook::{Announcer, WebhookSender};
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

/// How long the start waits for the job store.
const STORE_TIME: Duration = Duration::from_secs(5);

/// How long Redis and the receiver of traces may take at the end of the process. Redis then gives back
/// what this replica holds when its lease ends.
const LAST_TIME: Duration = Duration::from_secs(5);

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

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
    exit(outcome.map(|()| 0), |_| 1)
}

/// The exit code of a command. Prints the error, which has the given exit status.
fn exit<E: Display>(outcome: Result<u8, E>, status_of: impl FnOnce(&E) -> u8) -> ExitCode {
    match outcome {
        Ok(status) => status.into(),
        Err(error) => {
            print_error(format_args!("gemini-concurrent-generation: {error}"));
            status_of(&error).into()
        }
    }
}

/// Prints a line to standard error. Its reader may be gone, at which `eprintln!` would panic.
fn print_error(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn run_with_permit(arguments: with_permit::Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the runtime could not start: {error}"));
    let outcome = runtime
        .and_then(|runtime| Ok((runtime, settings()?)))
        .map_err(with_permit::Failure::settings)
        .and_then(|(runtime, (environment, config))| {
            runtime.block_on(with_permit::run(arguments, &config, environment.of_process()))
        });
    exit(outcome, |failure| failure.exit_status)
}

fn run_job(arguments: run::Arguments) -> ExitCode {
    let outcome = settings().map_err(RunFailure::settings).and_then(|(environment, config)| {
        // People watch this command, so it has no log unless they ask for one.
        let logs_wanted = environment.origin("RUST_LOG") != Origin::Default;
        let _logs = logs_wanted
            .then(|| telemetry::init(config.log_format, &config.log_filter, config.secrets()));
        raise_limit();
        block_on(run::run(arguments, config), RunFailure::settings)
    });
    exit(outcome, |failure| failure.exit_status)
}

fn manage_jobs(arguments: run::JobsArguments) -> ExitCode {
    let outcome = settings()
        .map_err(RunFailure::settings)
        .and_then(|(_, config)| block_on(run::manage(arguments, &config), RunFailure::settings));
    exit(outcome.map(|()| 0), |failure| failure.exit_status)
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
    environment.warnings().iter().for_each(|text| print_error(format_args!("warning: {text}")));
    let errors = environment.errors();
    errors.iter().for_each(print_error);
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
    // Signals that come during the start are not lost.
    let shutdown = on_signals(config.shutdown_delay)?;
    let hangup = Reloader::listen().map_err(|error| error.to_string())?;
    // A port that is in use is noticed before anything is changed in Redis or in the job store, and
    // connections are refused until the gateway can serve them.
    let socket = bind(SocketAddr::new(config.host, config.port))?;
    if simulate {
        simulate_gemini(&mut config)?;
    } else {
        warn_if_key_is_open(&config);
    }
    if let Some(proxy) = &config.proxy {
        tracing::info!(%proxy, "calls to Gemini go through a proxy");
    }
    let store = shutdown.announced.run_until_cancelled(open_store(&config)).await;
    let Some(store) = store.transpose()? else { return Ok(()) };
    let gateway = Gateway::with_store(config, simulate, Arc::clone(&store));
    let gateway = gateway.map_err(|error| error.to_string())?.until(shutdown.announced.clone());
    let checked = shutdown.announced.run_until_cancelled(check_job_store(&gateway)).await;
    if checked.transpose()?.is_none() {
        store.close().await;
        return Ok(());
    }
    let config = &gateway.config;
    let dashboard = Dashboard::new(shutdown.begins.clone());
    let workers = workers(|| {
        let gateway = gateway.with_own_connections();
        Ok(api::router_with(gateway.clone(), dashboard.routes(gateway)))
    })?;
    let listener = listen(socket)?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let announcer = announcer(&gateway)?;
    let engine = gateway.start_jobs(api::item_format(gateway.clone()));
    let _sampler = Sampler::start(&gateway.history);
    let reloader = Reloader {
        settings: RunningSettings::new(environment),
        gateway: gateway.clone(),
        log_filter: logs.filter(),
    };
    reloader.start(hangup);
    tracing::info!(%address, concurrency_limit = config.concurrency_limit, "ready");
    // Each call to Gemini takes a connection, and as many idle ones may be kept for later calls.
    let reserved = config.concurrency_limit.saturating_mul(2).saturating_add(UNCOUNTED_CALLS);
    let mut limits = ServerLimits::of(config);
    limits.max_connections = affordable_connections(limits.max_connections, reserved);
    // All end with the grace period. A job that was accepted meanwhile is sent after the next start.
    let jobs = async {
        shutdown.announced.cancelled().await;
        let end = Instant::now() + config.shutdown_delay + config.shutdown_grace;
        let grace = || shutdown.ends_now.run_until_cancelled(sleep_until(end)).map(drop);
        engine.stop(grace()).await;
        announcer.stop(grace()).await;
        // Clients that follow a job connect again, to another replica.
        shutdown.begins.cancelled().await;
        gateway.jobs.end_watches();
    };
    join!(serve(listener, workers, limits, shutdown.clone()), jobs);
    gateway.jobs.store().close().await;
    let last = async { join!(store.close(), gateway.traces.stop()) };
    let _ = timeout(LAST_TIME, shutdown.ends_now.run_until_cancelled(last)).await;
    tracing::info!("stopped");
    Ok(())
}

/// Starts a simulator in this process, and changes the settings so that all calls go to it.
fn simulate_gemini(config: &mut Config) -> Result<(), String> {
    let listener = listen(bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?)?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    config.base_url = format!("http://{address}");
    config.proxy = None;
    config.set_gemini_api_key(ApiKey::new("simulated-key").map_err(|error| error.to_string())?);
    let router = Simulator::new(simulator::Options::default()).router();
    // Not stopped by the signal: calls in flight are answered during the grace period.
    let workers = vec![Worker::here(router)];
    let limits = ServerLimits { max_connections: usize::MAX, ..ServerLimits::of(config) };
    tokio::spawn(serve(listener, workers, limits, CancellationToken::new()));
    tracing::warn!(%address, "SIMULATED: answers come from the built-in simulator, not Gemini");
    Ok(())
}

/// Checks that this version can read the jobs. A store that cannot be used now does not prevent the start:
/// it is tried again whenever it is needed.
async fn check_job_store(gateway: &Gateway) -> Result<(), String> {
    const NO_JOBS: &str = "there are no jobs until their store can be used";
    match timeout(STORE_TIME, gateway.jobs.store().check()).await {
        Ok(Err(error @ StoreError::TooNew { .. })) => return Err(error.to_string()),
        Ok(Err(error)) => tracing::warn!(%error, "{NO_JOBS}"),
        Err(_) => tracing::warn!(error = "it does not answer", "{NO_JOBS}"),
        Ok(Ok(())) => {}
    }
    Ok(())
}

/// Starts to announce the ends of jobs.
fn announcer(gateway: &Gateway) -> Result<Announcer, String> {
    let Config { webhooks, proxy, authorities, .. } = &gateway.config;
    let sender = WebhookSender::new(webhooks.clone(), proxy.as_ref(), authorities);
    let sender = sender.map_err(|error| format!("JOB_WEBHOOK_SECRET: {error}"))?;
    let (jobs, shown) = (&gateway.jobs, api::job_shown(gateway.clone()));
    Ok(Announcer::start(Arc::clone(jobs.store()), sender, jobs.ended(), shown))
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
    let shutdown = on_signals(Duration::ZERO)?;
    let listener = listen(bind(address)?)?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    tracing::info!(%address, "simulating Gemini");
    let limits = ServerLimits::of(&Config::default());
    let simulator = Simulator::new(options);
    serve(listener, workers(|| Ok(simulator.router()))?, limits, shutdown).await;
    Ok(())
}

async fn healthcheck(config: Config, ready: bool) -> Result<(), String> {
    // The address that stands for all addresses is not one to connect to.
    let host = match config.host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    let address = SocketAddr::new(host, config.port);
    let (path, quality) = if ready { ("/readyz", "ready") } else { ("/livez", "healthy") };
    gemini_concurrent_generation::server::answers(address, path)
        .await
        .map_err(|error| format!("{address} is not {quality}: {error}"))
}

/// Reserves an address. Connections to it are refused until it is listened on.
fn bind(address: SocketAddr) -> Result<TcpSocket, String> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let bound = socket.and_then(|socket| {
        socket.set_reuseaddr(true)?;
        socket.bind(address).map(|()| socket)
    });
    bound.map_err(|error| format!("cannot listen on {address}: {error}"))
}

fn listen(socket: TcpSocket) -> Result<TcpListener, String> {
    let address = socket.local_addr().map_err(|error| error.to_string())?;
    socket.listen(BACKLOG).map_err(|error| format!("cannot listen on {address}: {error}"))
}

fn on_signals(delay: Duration) -> Result<Shutdown, String> {
    Shutdown::on_signals(delay).map_err(|error| error.to_string())
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
