//! `agentctl revoke` and `agentctl approve`: who may be in, and who may not any more.

use clap::{Args, ValueEnum};
use flowtilla_proto::wire::fleet::{ApproveRequest, RevokeRequest, RevokeResponse, revoke_request};

use super::print;
use crate::client::{Client, Reach};
use crate::exit::Exit;
use crate::output::harmless;
use crate::view::short;

/// What is made void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Void {
    /// An agent's identity: its stream ends within seconds, and it gets no other without a token.
    Agent,
    /// An operator's identity.
    Operator,
    /// A join token that is not used yet.
    Token,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RevokeArgs {
    /// What is made void.
    #[arg(value_name = "KIND", value_enum)]
    pub(crate) what: Void,
    /// Its name or id.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ApproveArgs {
    /// Agent whose SVID ran out longer ago than it may recover by itself.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs `revoke`.
///
/// # Errors
///
/// The controller refuses, or knows nothing of that name.
pub(crate) async fn revoke(args: RevokeArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let name = args.name.clone();
    let (kind, what) = match args.what {
        Void::Agent => ("agent", revoke_request::What::Agent(name)),
        Void::Operator => ("operator", revoke_request::What::Operator(name)),
        Void::Token => ("token", revoke_request::What::Token(name)),
    };
    let request = RevokeRequest { what: Some(what) };
    let answer = client.ask(client.fleet().revoke(request)).await?;
    let name = harmless(&args.name);
    let told = match answer.streams {
        0 => format!("{kind} {name} is void\n"),
        n => format!("{kind} {name} is void; {n} stream(s) of it were cut\n"),
    };
    print(&(told + &left_behind(&answer)))
}

/// What an operator leaves: tokens that are void, and those whom it has let in.
fn left_behind(answer: &RevokeResponse) -> String {
    let mut text = match answer.tokens {
        0 => String::new(),
        n => format!("{n} unused token(s) of its making are void, too\n"),
    };
    if !answer.admitted.is_empty() {
        text += "these came in by its tokens and are in still; revoke those that you do not know:\n";
    }
    for id in &answer.admitted {
        text += &format!("  {}\n", short(id));
    }
    let told = u32::try_from(answer.admitted.len()).unwrap_or(u32::MAX);
    match answer.admitted_total.saturating_sub(told) {
        0 => text,
        more => text + &format!("  and {more} more\n"),
    }
}

/// Runs `approve`.
///
/// # Errors
///
/// The controller refuses, or knows no such agent.
pub(crate) async fn approve(args: ApproveArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let request = ApproveRequest {
        agent: args.name.clone(),
    };
    client.ask(client.fleet().approve(request)).await?;
    print(&format!(
        "agent {} may come back with its old key\n",
        harmless(&args.name)
    ))
}
