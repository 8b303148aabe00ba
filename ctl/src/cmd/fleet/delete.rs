//! `agentctl delete`: takes a policy, a collector or a group of hosts away, as a revision of its own.

use clap::{Args, ValueEnum};
use flowtilla_proto::wire::fleet::{ApplyRequest, ObjectName};

use super::deploy::{self, Follow};
use crate::client::{Client, Reach};
use crate::document::Kind;
use crate::exit::Exit;

/// What can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    #[value(alias = "policies")]
    Policy,
    #[value(alias = "collectors")]
    Collector,
    #[value(name = "hostgroup", alias = "hostgroups")]
    HostGroup,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DeleteArgs {
    /// What it is.
    #[arg(value_name = "KIND", value_enum)]
    pub(crate) what: What,
    /// Its name.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Shows what would change for whom, and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) follow: Follow,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// The controller refuses, or has nothing of that name.
pub(crate) async fn run(args: DeleteArgs) -> anyhow::Result<Exit> {
    let kind = match args.what {
        What::Policy => Kind::Policy,
        What::Collector => Kind::Collector,
        What::HostGroup => Kind::HostGroup,
    };
    let client = Client::reach(&args.reach).await?;
    let request = ApplyRequest {
        removed: vec![ObjectName {
            kind: kind.name().to_owned(),
            name: args.name.clone(),
        }],
        dry_run: args.dry_run,
        message: args.follow.message(),
        ..ApplyRequest::default()
    };
    let answer = client.ask(client.fleet().apply(request)).await?;
    deploy::finish(&client, &answer, args.dry_run, &args.follow).await
}
