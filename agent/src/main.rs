//! `flowtilla-agent`: see [`flowtilla_agent::fleet`].
//!
//! Exit codes: 0 it ended as it was told to; 1 it could not start or go on, the message says why; 2 flags are wrong; 78 nobody has
//! said where its controller is (the unit does not start it again then). Of `doctor`: see [`flowtilla_agent::doctor`].

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use clap::Parser;
use flowtilla_agent::build::Build;
use flowtilla_agent::config::{Cli, Command, METRICS_DEFAULT, NotSetUp, ProveArgs, RunArgs};
use flowtilla_agent::doctor::{self, DoctorArgs};
use flowtilla_agent::{fleet, identity, metrics};
use flowtilla_grpc::proof::CHALLENGE_OCTETS_MAX;
use flowtilla_grpc::telemetry::{self, Program, page};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Run(args) => execute(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => examine(&args),
        Command::Prove(args) => prove(&args),
    };
    ended.unwrap_or_else(|error| {
        telemetry::complain(format_args!("flowtilla-agent: {error:#}"));
        match error.is::<NotSetUp>() {
            true => ExitCode::from(NotSetUp::EXIT_CODE),
            false => ExitCode::FAILURE,
        }
    })
}

fn examine(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let captures = tokio::runtime::Runtime::new()?.block_on(doctor::run(args, &mut std::io::stdout()))?;
    Ok(if captures {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn prove(args: &ProveArgs) -> anyhow::Result<ExitCode> {
    let mut challenge = Vec::new();
    let most = CHALLENGE_OCTETS_MAX as u64 + 1;
    std::io::stdin().take(most).read_to_end(&mut challenge)?;
    let proven = identity::prove(&args.state, &challenge)?;
    std::io::stdout().write_all(proven.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn execute(args: &RunArgs) -> anyhow::Result<()> {
    let mut options = args.options()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let filter = EnvFilter::try_from_env("FLOWTILLA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let system = rustix::system::uname();
    let program = Program {
        name: "flowtilla-agent",
        version: env!("CARGO_PKG_VERSION"),
        host: &system.nodename().to_string_lossy(),
    };
    let telemetry = {
        let _within = runtime.enter();
        telemetry::start(program, &args.otlp, Some(filter))?
    };
    options.build = Build::running()
        .inspect_err(|error| tracing::warn!(%error, "which build runs is not told"))
        .ok();
    let outcome = runtime.block_on(run(args, options));
    telemetry.stop();
    outcome
}

async fn run(args: &RunArgs, options: fleet::Options) -> anyhow::Result<()> {
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let place = page::bind(args.metrics.0, METRICS_DEFAULT).await?;
    let mut running = fleet::start(options).await?;
    let stop = CancellationToken::new();
    let sources = metrics::Sources {
        status: running.status.clone(),
        news: running.news.clone(),
        top: running.top.clone(),
    };
    let served = tokio::spawn(sources.serve(place, stop.clone()));
    let ended = tokio::select! { biased;
        _ = terminated.recv() => None,
        _ = interrupted.recv() => None,
        error = running.ended() => Some(error),
    };
    let outcome = match ended {
        Some(error) => Err(error.into()),
        None => running.stop().await.map(drop).map_err(Into::into),
    };
    stop.cancel();
    let _ = served.await; // It has nothing to say.
    outcome
}
