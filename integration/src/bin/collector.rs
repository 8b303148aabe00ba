//! Collects as ntopng does and says what it handled: the other side of tests that kill it, see
//! `integration::collector::application`.

use std::process::ExitCode;

use clap::Parser;
use integration::collector::application::{self, Plan};

/// Binds as ntopng does and prints what it handled, one JSON line a message.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    plan: Plan,
}

fn main() -> ExitCode {
    match application::run(&Cli::parse().plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}
