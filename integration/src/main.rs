//! The test command and the benchmark.
//!
//! `cargo run -p integration -- test` is everything a change must pass; `.ci/run` calls it and nothing else.
//! `cargo run --release -p integration -- bench` measures what the agent costs.
//! `cargo run -p integration -- package` makes Debian packages, and the agent's program for hosts of any age.

mod bench;
mod release;
mod runner;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use integration::package;

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
    /// Debian packages, and the agent's program for `agentctl deploy`, which runs on glibc 2.28 and later.
    Package(release::Options),
    /// One package, of what is laid out: a process of its own, because its target folder comes by the environment.
    #[command(hide = true)]
    Deb(package::Order),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Test(options) => runner::test(&options),
        Command::Bench(options) => bench::bench(&options).map(|()| true),
        Command::Package(options) => release::make(&options).map(|()| true),
        Command::Deb(order) => package::write(&order).map(|()| true),
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
