//! `flowtilla-controller`: reads the command line, runs one command, prints an error once.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use flowtilla_controller::clock::Clock;
use flowtilla_controller::command;
use flowtilla_controller::config::Cli;
use flowtilla_grpc::telemetry::{self, Program};
use tracing_subscriber::EnvFilter;

/// Time that tasks get to end after the command's own end.
const TASKS_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flowtilla-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let filter = EnvFilter::try_from_env("FLOWTILLA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let program = Program {
        name: "flowtilla-controller",
        version: env!("CARGO_PKG_VERSION"),
        host: "",
    };
    let telemetry = {
        let _within = runtime.enter();
        telemetry::start(program, &cli.command.otlp(), Some(filter))?
    };
    let outcome = runtime.block_on(command::execute(
        cli.command,
        Clock::system(),
        &mut std::io::stdout(),
    ));
    telemetry.stop();
    runtime.shutdown_timeout(TASKS_GRACE);
    outcome
}
