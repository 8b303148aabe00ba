//! The test command and the benchmark.
//!
//! `cargo run -p integration -- test` is everything a change must pass; `.ci/run` calls it and nothing else.
//! `cargo run --release -p integration -- bench` measures what the agent costs.

mod bench;
mod runner;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tests everything, or measures what the agent costs.
#[derive(Parser)]
#[command(name = "integration")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formats, lints, licences, builds and all tests, those that need root included.
    Test(runner::Options),
    /// Interleaved pairs with and without the agent, as a table.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Test(options) => runner::test(&options),
        Command::Bench(options) => bench::bench(&options).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("integration: {error:#}");
            ExitCode::FAILURE
        }
    }
}
