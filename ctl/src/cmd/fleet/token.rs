//! `agentctl token`: join tokens, each of which lets one host or one operator in, once.
//!
//! `create` prints the token alone on stdout, once: it is kept nowhere. With `-o json`: `{token, id, expires}`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use flowtilla_agent::clock;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{CreateTokenRequest, RevokeRequest, revoke_request};

use super::get::{GetArgs, What};
use super::{Brief, json, print};
use crate::client::{Client, Reach};
use crate::document::render::Plain;
use crate::document::units;
use crate::exit::{Exit, UsageError, say};
use crate::output::{harmless, rfc3339};
use crate::view::{moment, until};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes one, and prints it, once.
    Create(CreateArgs),
    /// Shows those that were made, without their secrets.
    List(ListArgs),
    /// Takes one back that is not used yet.
    Revoke(RevokeArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArgs {
    /// Label that the agent will have. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    /// How long it may be used [default: 1h].
    #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
    pub(crate) ttl: Option<u64>,
    /// Lets an operator of this name in instead of an agent.
    #[arg(long, value_name = "NAME", conflicts_with = "label")]
    pub(crate) operator: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Brief,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ListArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: super::Output,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RevokeArgs {
    /// Id of the token, as create and list print it.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// Wrong flags, or the controller refuses.
pub(crate) async fn run(command: TokenCommand) -> anyhow::Result<Exit> {
    match command {
        TokenCommand::Create(args) => {
            let request = request(&args)?;
            create(&Client::reach(&args.reach).await?, &args, request).await
        }
        TokenCommand::List(args) => {
            super::get::run(GetArgs {
                what: What::Tokens,
                name: None,
                output: args.output,
                reach: args.reach,
            })
            .await
        }
        TokenCommand::Revoke(args) => {
            let what = revoke_request::What::Token(args.id.clone());
            let client = Client::reach(&args.reach).await?;
            let request = RevokeRequest { what: Some(what) };
            client.ask(client.fleet().revoke(request)).await?;
            print(&format!("token {} is void\n", harmless(&args.id)))
        }
    }
}

fn request(args: &CreateArgs) -> Result<CreateTokenRequest, UsageError> {
    let mut labels = BTreeMap::new();
    let mut lines = Vec::new();
    for (key, value) in &args.label {
        if labels.insert(key.clone(), value.clone()).is_some() {
            lines.push(format!("--label: {key:?} is there twice; write it once"));
        }
    }
    if let Some(Err(mistakes)) = args.operator.as_deref().map(MemberName::parse) {
        lines.push(format!("--operator: {mistakes}"));
    }
    match lines.is_empty() {
        true => Ok(CreateTokenRequest {
            labels,
            ttl_ms: args.ttl.unwrap_or(0),
            operator: args.operator.clone().unwrap_or_default(),
        }),
        false => Err(UsageError(lines)),
    }
}

async fn create(client: &Client, args: &CreateArgs, request: CreateTokenRequest) -> anyhow::Result<Exit> {
    let made = client.ask(client.fleet().create_token(request)).await?;
    let text = match args.output {
        Brief::Text => format!("{}\n", harmless(&made.token)),
        Brief::Json => {
            let expires = moment(made.expires_ms).map(|time| rfc3339(time).to_string());
            let text = |name: &str, text: String| (name.to_owned(), Plain::Text(text));
            json(&Plain::Map(vec![
                text("token", made.token),
                text("id", made.id.clone()),
                text("expires", expires.unwrap_or_default()),
            ]))
        }
    };
    let exit = print(&text)?;
    let left = until(made.expires_ms, clock::wall_now());
    say(format_args!(
        "token {} may be used once, within {left}; put it in a file of mode 0600, then:",
        harmless(&made.id)
    ));
    let address = client.address();
    match &args.operator {
        Some(_) => say(format_args!(
            "  agentctl login --controller {address} --token-file FILE"
        )),
        None => say(format_args!(
            "  flowtilla-agent --controller {address} --token-file FILE"
        )),
    }
    Ok(exit)
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("is no label; write KEY=VALUE".to_owned()),
    }
}

/// Milliseconds, never 0.
pub(crate) fn parse_ttl(text: &str) -> Result<u64, String> {
    match units::read_time(text) {
        Ok(0) => Err("is no time at all; write a longer one".to_owned()),
        Ok(ms) => Ok(ms),
        Err((why, remedy)) => Err(format!("{why}; {remedy}")),
    }
}
