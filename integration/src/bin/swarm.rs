//! Measures how many agents one controller holds: the head of `integration::swarm` says how.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use flowtilla_grpc::channel::Address;
use integration::swarm::{self, Plan, lone};

/// Connects many agents to a controller, pushes policies, restarts it, and prints what that takes.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    plan: Plan,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// One idle session in this process, for the swarm; its token on standard input.
    #[command(hide = true)]
    Lone {
        #[arg(long)]
        controller: String,
        #[arg(long)]
        span_s: u64,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        None => swarm::measure(cli.plan, |line| println!("{line}")).map(drop),
        Some(Command::Lone { controller, span_s }) => {
            lone::run(&Address::parse(&controller)?, Duration::from_secs(span_s))
        }
    }
}
