//! `agentctl history`: revisions, the newest first.

use clap::Args;
use flowtilla_agent::clock;
use flowtilla_proto::wire::fleet::HistoryRequest;

use super::get::List;
use super::{Output, print};
use crate::client::{Client, Reach};
use crate::exit::Exit;

#[derive(Args, Clone, Debug)]
pub(crate) struct HistoryArgs {
    /// Most of them.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: u32,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// The controller refuses.
pub(crate) async fn run(args: HistoryArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let request = HistoryRequest { limit: args.limit };
    let revisions = client.ask(client.fleet().history(request)).await?.revisions;
    let now = clock::wall_now();
    if matches!(args.output, Output::Table | Output::Wide) {
        client.say_view(now);
    }
    print(&List::Revisions(revisions).text(args.output, now))
}
