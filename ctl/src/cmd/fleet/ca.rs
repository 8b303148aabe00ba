//! `agentctl ca rotate`: changes the root of the trust domain, in three steps with time between them.

use crate::clock;
use clap::{Args, Subcommand, ValueEnum};
use flowtilla_proto::wire::fleet::{Root, RotateCaRequest, RotateCaStep};

use super::{Output, print, table};
use crate::client::{Client, Reach};
use crate::exit::Exit;
use crate::output::word;
use crate::view::until;

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Takes the next step of a change. Agents renew within seconds, those that are away when they are back; operators with their
    /// first command in the second half of an SVID's day. Wait for that before activate; retire names one who has not.
    Rotate(RotateArgs),
}

/// Steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Makes a root that is trusted beside the one there is.
    Prepare,
    /// Signs with it from here on.
    Activate,
    /// Trusts the one before no longer.
    Retire,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RotateArgs {
    /// Which step.
    #[arg(value_name = "STEP", value_enum)]
    pub(crate) step: Step,
    /// Retire although some have not renewed yet, who must enrol again, or have tokens that would not count any more.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// The controller refuses.
pub(crate) async fn run(command: CaCommand) -> anyhow::Result<Exit> {
    let CaCommand::Rotate(args) = command;
    let client = Client::reach(&args.reach).await?;
    let step = match args.step {
        Step::Prepare => RotateCaStep::Prepare,
        Step::Activate => RotateCaStep::Activate,
        Step::Retire => RotateCaStep::Retire,
    };
    let request = RotateCaRequest {
        step: step.into(),
        force: args.force,
    };
    let answer = client.ask(client.fleet().rotate_ca(request)).await?;
    let now = clock::wall_now();
    let row = |root: &Root| {
        let signs = if root.signs { "signs" } else { "trusted" };
        vec![signs.to_owned(), until(root.not_after_ms, now), word(&root.id)]
    };
    print(&table(
        &["ROOT", "EXPIRES", "KEY"],
        answer.roots.iter().map(row).collect(),
        &[],
        Output::Wide,
    ))
}
