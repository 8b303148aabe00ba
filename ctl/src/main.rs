//! `agentctl`: the operator's tool.
//!
//! Reads the command line, runs one command, and turns what came of it into an exit code: see [`exit`].

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use flowtilla_grpc::telemetry::{self, Program};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};
use crate::cmd::fleet;
use crate::cmd::fleet::get::AgentsCommand;
use crate::exit::Exit;
use crate::signals::Signals;

mod cli;
mod client;
mod clock;
mod cmd;
mod document;
mod exit;
mod hosts;
mod output;
mod schema;
mod signals;
mod view;
mod when;

/// Time that tasks get to end after the command's own end. A thread that hangs in a write to a pipe is left behind.
const TASKS_GRACE: Duration = Duration::from_secs(1);
/// What is logged beside what a command says: that traces are not taken.
const LOGGED: &str = "flowtilla_grpc::telemetry=warn";

fn main() -> ExitCode {
    let exit = match Cli::try_parse() {
        Ok(cli) => execute(cli).unwrap_or_else(|error| exit::report(&error)),
        Err(error) => cli::refuse(&error),
    };
    exit.into()
}

fn execute(cli: Cli) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let otlp = cli.command.otlp();
    let telemetry = match otlp.is_on() {
        true => {
            let _within = runtime.enter();
            let program = Program {
                name: "agentctl",
                version: env!("CARGO_PKG_VERSION"),
                host: "",
            };
            Some(telemetry::start(program, &otlp, Some(EnvFilter::new(LOGGED)))?)
        }
        false => None, // `up` says itself where its log goes.
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(args) => cmd::up::run(*args).await,
            Command::Tap(args) => {
                let mut signals = Signals::new()?;
                cmd::tap::run(&args, &mut std::io::stdout(), signals.next()).await?;
                Ok(Exit::Done)
            }
            Command::Loss(args) => cmd::loss::run(args).await,
            Command::Buffer(command) => cmd::buffer::run(command).await,
            Command::Login(args) => fleet::login::run(args).await,
            Command::Context(command) => fleet::context::run(&command),
            Command::Token(command) => fleet::token::run(command).await,
            Command::Deploy(args) => fleet::deploy::run(*args).await,
            Command::Diff(args) => fleet::diff::run(args).await,
            Command::Get(args) => fleet::get::run(args).await,
            Command::Agents(mut args) => match args.command.take() {
                Some(AgentsCommand::Remove(remove)) => hosts::remove::run(remove).await,
                Some(AgentsCommand::Upgrade(upgrade)) => hosts::upgrade::run(*upgrade).await,
                Some(AgentsCommand::Drain(drain)) => fleet::drain::run(drain).await,
                None => fleet::get::run(args.into()).await,
            },
            Command::Describe(args) => fleet::describe::run(args).await,
            Command::Delete(args) => fleet::delete::run(args).await,
            Command::History(args) => fleet::history::run(args).await,
            Command::Rollback(args) => fleet::deploy::rollback(args).await,
            Command::Rollout(command) => fleet::rollout::run(command).await,
            Command::Status(args) => fleet::status::run(args).await,
            Command::Top(args) => args.run().await,
            Command::Revoke(args) => fleet::admit::revoke(args).await,
            Command::Approve(args) => fleet::admit::approve(args).await,
            Command::Ca(command) => fleet::ca::run(command).await,
            Command::Schema(args) => schema::run(&args),
            Command::Doctor(args) => cmd::doctor::run(&args).await,
            Command::Completions(args) => cli::completions(&args),
            Command::Man(args) => cli::man(&args),
        }
    });
    if let Some(telemetry) = telemetry {
        telemetry.stop();
    }
    runtime.shutdown_timeout(TASKS_GRACE);
    let _ = std::io::stdout().flush(); // Whoever reads it may be gone.
    result
}
