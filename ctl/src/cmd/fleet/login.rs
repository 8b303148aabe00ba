//! `agentctl login`: gets an operator's first identity for a join token, and makes the context the current one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use flowtilla_grpc::channel::Address;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::token::{JoinToken, TOKEN_OCTETS_MAX};

use super::print;
use crate::client;
use crate::client::contexts::{Home, Place};
use crate::client::identity::Identity;
use crate::exit::{Exit, UsageError};
use crate::output::{day_and_clock, harmless};
use crate::view::moment;

#[derive(Args, Clone, Debug)]
pub(crate) struct LoginArgs {
    /// Controller, port 7443 unless it is given.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) controller: String,
    /// File that holds an operator's join token and nothing else; - is stdin. A token is no argument: others would see it.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) token_file: PathBuf,
    /// Name of the context that is made or replaced [default: the name of the trust domain].
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// Runs the command.
///
/// # Errors
///
/// Wrong flags, a controller that is not reached or not the token's, a refusal, a directory that cannot be written.
pub(crate) async fn run(args: LoginArgs) -> anyhow::Result<Exit> {
    print(&login(&Home::of_user()?, &args, std::io::stdin()).await?)
}

/// See the module; what to print.
pub(crate) async fn login(home: &Home, args: &LoginArgs, stdin: impl Read) -> anyhow::Result<String> {
    let usage = |line: String| anyhow::Error::new(UsageError(vec![line]));
    let address = Address::parse(&args.controller)
        .map_err(|error| usage(format!("--controller: {:?} {error}", args.controller)))?;
    if let Some(name) = &args.context {
        home.identity_of(name)?;
    }
    let mut contexts = home.load()?;
    let token = read_token(&args.token_file, stdin)?;
    let identity = client::enrol(&address, &token).await?;
    let name = args.context.clone().unwrap_or_else(|| named_after(&identity));
    let directory = home.identity_of(&name)?;
    identity.store(&directory)?;
    let place = Place {
        controller: address.to_string(),
        identity: directory,
    };
    contexts.contexts.insert(name.clone(), place);
    contexts.current = Some(name.clone());
    home.store(&contexts)?;
    let until = moment(identity.not_after().saturating_mul(1_000)).map(day_and_clock);
    Ok(format!(
        "logged in to {address} as {}\ncontext {name} is the current one; its SVID counts until {} UTC and renews itself\n",
        identity.id(),
        until.unwrap_or_default()
    ))
}

fn named_after(identity: &Identity) -> String {
    let domain = identity.id().domain.as_str();
    match MemberName::parse(domain) {
        Ok(name) => name.as_str().to_owned(),
        Err(_) => "default".to_owned(),
    }
}

/// The secret is in no error.
fn read_token(path: &Path, stdin: impl Read) -> anyhow::Result<JoinToken> {
    let shown = harmless(&path.to_string_lossy());
    let usage = |why: String| UsageError(vec![format!("--token-file: {shown:?} {why}")]);
    let mut text = String::new();
    let most = TOKEN_OCTETS_MAX as u64 + 1;
    let read = match path == Path::new("-") {
        true => stdin.take(most).read_to_string(&mut text),
        false => File::open(path).and_then(|file| file.take(most).read_to_string(&mut text)),
    };
    read.map_err(|error| {
        usage(format!(
            "cannot be read ({error}); name the file that holds the token"
        ))
    })?;
    let parsed = JoinToken::parse(&text);
    Ok(parsed.map_err(|error| {
        usage(format!(
            "holds what {error}; make one with agentctl token create --operator NAME"
        ))
    })?)
}
