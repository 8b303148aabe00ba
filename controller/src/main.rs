//! `flowtilla-controller`: reads the command line, runs one command, prints an error once.
//!
//! Exit codes: 0 it did what it was told to; 1 it did not, the message says why; 2 flags are wrong; 78 there is no state to run
//! with (the unit does not start it again then).

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use flowtilla_controller::clock::Clock;
use flowtilla_controller::command;
use flowtilla_controller::config::Cli;
use flowtilla_controller::run::RunError;
use flowtilla_controller::setup::SetupError;
use flowtilla_controller::state::StateError;
use flowtilla_grpc::telemetry::{self, Program};
use tracing_subscriber::EnvFilter;

/// What one thread makes for a stream another frees: glibc's allocator keeps a part of that for each thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code when there is no state. Source: sysexits.h, EX_CONFIG.
const NO_STATE: u8 = 78;
/// Time that tasks get to end after the command's own end.
const TASKS_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::complain(format_args!("flowtilla-controller: {error:#}"));
            match error.downcast_ref() {
                Some(RunError::Setup(SetupError::State(StateError::Absent(_)))) => ExitCode::from(NO_STATE),
                _ => ExitCode::FAILURE,
            }
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
