//! `agentctl rollout`: looks at a change on its way, and steers it.

use std::time::Duration;

use clap::{Args, Subcommand};
use flowtilla_proto::wire::fleet::{SteerRequest, Steering};

use super::get::{GetArgs, What};
use super::{Output, print, watch};
use crate::client::{Client, Reach};
use crate::exit::Exit;
use crate::view;

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Shows rollouts, the newest first.
    List(ListArgs),
    /// Lets no further wave begin.
    Pause(NumberArgs),
    /// Goes on after a pause.
    Resume(NumberArgs),
    /// Stops, and takes back what was changed.
    Abort(NumberArgs),
    /// Shows each agent's answer until the rollout has ended.
    Watch(WatchArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ListArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct NumberArgs {
    /// Number of the rollout [default: the newest that goes on].
    #[arg(value_name = "ROLLOUT", default_value_t = 0, hide_default_value = true)]
    pub(crate) rollout: u64,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct WatchArgs {
    /// Number of the rollout [default: the newest].
    #[arg(value_name = "ROLLOUT", default_value_t = 0, hide_default_value = true)]
    pub(crate) rollout: u64,
    /// Ends after this time, with exit code 1; the rollout goes on.
    #[arg(long, value_name = "TIME", value_parser = super::token::parse_ttl)]
    pub(crate) timeout: Option<u64>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// The controller refuses.
pub(crate) async fn run(command: RolloutCommand) -> anyhow::Result<Exit> {
    match command {
        RolloutCommand::List(args) => {
            super::get::run(GetArgs {
                what: What::Rollouts,
                name: None,
                output: args.output,
                reach: args.reach,
            })
            .await
        }
        RolloutCommand::Pause(args) => steer(args, Steering::Pause).await,
        RolloutCommand::Resume(args) => steer(args, Steering::Resume).await,
        RolloutCommand::Abort(args) => steer(args, Steering::Abort).await,
        RolloutCommand::Watch(args) => {
            let client = Client::reach(&args.reach).await?;
            let timeout = args.timeout.map(Duration::from_millis);
            watch::watch(&client, &[args.rollout], timeout).await
        }
    }
}

async fn steer(args: NumberArgs, steering: Steering) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let request = SteerRequest {
        rollout: args.rollout,
        steering: steering.into(),
    };
    let rollout = client.ask(client.fleet().steer(request)).await?;
    let state = view::rollout_state(rollout.state());
    print(&format!(
        "rollout {}: {state}, wave {} of {}\n",
        rollout.id, rollout.wave, rollout.waves
    ))
}
