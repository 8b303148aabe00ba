//! `agentctl describe`: everything that the controller knows of one thing, as YAML.

use clap::Args;
use flowtilla_agent::clock;

use super::get::{List, What};
use super::print;
use crate::client::{Client, Reach};
use crate::exit::Exit;

#[derive(Args, Clone, Debug)]
pub(crate) struct DescribeArgs {
    /// What it is.
    #[arg(value_name = "KIND", value_enum)]
    pub(crate) what: What,
    /// Its name, id or number.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// The controller refuses, or has nothing of that name.
pub(crate) async fn run(args: DescribeArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let list = List::fetch(&client, args.what, Some(&args.name)).await?;
    let now = clock::wall_now();
    client.say_view(now);
    print(&list.described(now))
}
