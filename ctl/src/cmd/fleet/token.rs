//! `agentctl token`: join tokens, each of which lets one host or one operator in, once.
//!
//! `create` prints the token alone on stdout, once: it is kept nowhere. With `-o json`: `{token, id, expires}`. With `--token-file` it
//! is in a new file of mode 0600 instead, which is made before the token.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::clock;
use anyhow::Context as _;
use clap::{Args, Subcommand};
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
    /// Write the token to a new file of mode 0600, instead of the standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
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
    let file = args.token_file.as_deref().map(TokenFile::make).transpose()?;
    let mut made = client.ask(client.fleet().create_token(request)).await?;
    let to_file = file.is_some();
    if let Some(file) = file {
        file.keep(&std::mem::take(&mut made.token))?;
    }
    let text = match args.output {
        Brief::Text if to_file => String::new(),
        Brief::Text => format!("{}\n", harmless(&made.token)),
        Brief::Json => {
            let expires = moment(made.expires_ms).map(|time| rfc3339(time).to_string());
            let text = |name: &str, text: String| (name.to_owned(), Plain::Text(text));
            let mut members = vec![
                text("id", made.id.clone()),
                text("expires", expires.unwrap_or_default()),
            ];
            if !to_file {
                members.insert(0, text("token", made.token));
            }
            json(&Plain::Map(members))
        }
    };
    let exit = print(&text)?;
    let left = until(made.expires_ms, clock::wall_now());
    let id = harmless(&made.id);
    let file = match &args.token_file {
        Some(file) => {
            say(format_args!("token {id} may be used once, within {left}:"));
            harmless(&file.to_string_lossy())
        }
        None => {
            say(format_args!(
                "token {id} may be used once, within {left}; put it in a file of mode 0600 (or let --token-file do that), then:"
            ));
            "FILE".to_owned()
        }
    };
    let address = client.address();
    match &args.operator {
        Some(_) => say(format_args!(
            "  agentctl login --controller {address} --token-file {file}"
        )),
        None => say(format_args!(
            "  flowtilla-agent run --state DIR --controller {address} --token-file {file}"
        )),
    }
    Ok(exit)
}

/// A new file of mode 0600 for a token. It goes again when there is no token for it.
struct TokenFile {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl TokenFile {
    fn make(path: &Path) -> Result<Self, UsageError> {
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let refused = |error: io::Error| {
            let shown = harmless(&path.to_string_lossy());
            let remedy = match error.kind() {
                io::ErrorKind::AlreadyExists => "name a file that is not there yet",
                _ => "name a new file in a directory where you may write",
            };
            UsageError(vec![format!(
                "--token-file: {shown:?} cannot be made ({error}); {remedy}"
            )])
        };
        Ok(Self {
            path: path.to_owned(),
            file: made.map_err(refused)?,
            is_kept: false,
        })
    }

    fn keep(mut self, token: &str) -> anyhow::Result<()> {
        let written = self
            .file
            .write_all(format!("{token}\n").as_bytes())
            .and_then(|()| self.file.sync_all());
        written.with_context(|| format!("writing {}", harmless(&self.path.to_string_lossy())))?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_file(&self.path); // It holds no token.
        }
    }
}

pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
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
