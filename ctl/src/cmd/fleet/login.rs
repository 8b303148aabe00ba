//! `agentctl login`: gets an operator's first identity for a join token, and makes the context the current one.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use flowtilla_grpc::channel::{self, Address};
use flowtilla_grpc::{svid, trust};
use flowtilla_proto::spiffe::{MemberName, SpiffeId};
use flowtilla_proto::token::{JoinToken, TOKEN_OCTETS_MAX};

use super::print;
use crate::client;
use crate::client::contexts::{Home, Place};
use crate::client::identity::{self, Identity};
use crate::exit::{Exit, UsageError, say};
use crate::output::{day_and_clock, harmless};
use crate::view::moment;

/// Contexts that begin with the same name and are told apart by a number, at most.
const CONTEXTS_OF_A_NAME_MAX: u32 = 100;

#[derive(Args, Clone, Debug)]
pub(crate) struct LoginArgs {
    /// Controller, port 7443 unless it is given.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) controller: String,
    /// File that holds an operator's join token and nothing else; - is stdin. A token is no argument: others would see it.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) token_file: PathBuf,
    /// Name of the context that is made [default: the name of the trust domain].
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Replace a context of this name, its key and SVID included, although it is of another controller or operator.
    #[arg(long)]
    pub(crate) replace: bool,
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
    // Before the token is used up.
    if !args.replace && !contexts.contexts.is_empty() {
        let name = match &args.context {
            Some(name) => Some(name.clone()),
            // What goes wrong here goes wrong below once more, and is told there.
            None => channel::who(&address, Arc::new(trust::with_pin(token.pin.0)))
                .await
                .ok()
                .map(|controller| named_after(&controller)),
        };
        if let Some(name) = name
            && let Some(place) = contexts.contexts.get(&name)
            && !is_same(place, &address, &token)
        {
            return Err(usage(format!(
                "--context: {name} is of the controller at {}; write another name, or --replace",
                harmless(&place.controller)
            )));
        }
    }
    let identity = client::enrol(&address, &token).await?;
    let mut name = args.context.clone().unwrap_or_else(|| named_after(identity.id()));
    let mut note = String::new();
    if let Some(place) = contexts.contexts.get(&name).filter(|_| !args.replace)
        && let Some(other) = other_owner(place, &address, &token, &identity)
    {
        // The token is used up: what it gave is kept beside what is there.
        let free = (2..=CONTEXTS_OF_A_NAME_MAX).map(|n| MemberName::nearest(&name, &n.to_string()));
        let mut free = free.map(|free| free.as_str().to_owned());
        let free = free.find(|free| !contexts.contexts.contains_key(free));
        let free =
            free.ok_or_else(|| usage("--context: too many have this name; write another one".into()))?;
        note = format!("context {name} is of {other}, and stays\n");
        name = free;
    }
    let directory = home.identity_of(&name)?;
    identity.store(&directory)?;
    let place = Place {
        controller: address.to_string(),
        identity: directory.clone(),
    };
    let former = contexts.contexts.insert(name.clone(), place);
    contexts.current = Some(name.clone());
    home.store(&contexts)?;
    if let Some(former) = former.filter(|former| former.identity != directory)
        && let Err(error) = identity::remove(&former.identity)
    {
        say(format_args!(
            "the former identity stays in {} ({error})",
            harmless(&former.identity.to_string_lossy())
        ));
    }
    let until = moment(identity.not_after().saturating_mul(1_000)).map(day_and_clock);
    Ok(format!(
        "logged in to {address} as {}\n{note}context {name} is the current one; its SVID counts until {} UTC and renews itself\n",
        identity.id(),
        until.unwrap_or_default()
    ))
}

fn named_after(id: &SpiffeId) -> String {
    match MemberName::parse(id.domain.as_str()) {
        Ok(name) => name.as_str().to_owned(),
        Err(_) => "default".to_owned(),
    }
}

/// Whether a context is of the controller that the token is of: at the same address, or with the same authority.
fn is_same(place: &Place, address: &Address, token: &JoinToken) -> bool {
    let pinned = |kept: &Identity| {
        let mut bundle = kept.bundle().iter();
        bundle.any(|root| svid::pin_of(root) == Some(token.pin.0))
    };
    place.controller == address.to_string() || Identity::load(&place.identity).is_ok_and(|kept| pinned(&kept))
}

/// Whose a context is, when it is not of this operator at this controller. What cannot be read is nobody's.
fn other_owner(place: &Place, address: &Address, token: &JoinToken, identity: &Identity) -> Option<String> {
    let kept = Identity::load(&place.identity).ok()?;
    let is_ours = is_same(place, address, token) && kept.id() == identity.id();
    (!is_ours).then(|| format!("{} at {}", kept.id(), harmless(&place.controller)))
}

/// Whoever reads a token first may be in instead of its owner.
fn warn_of_readers(path: &Path, shown: &str) {
    let facts = std::fs::metadata(path).ok().filter(Metadata::is_file);
    if facts.is_some_and(|facts| facts.mode() & 0o077 != 0) {
        say(format_args!(
            "--token-file: others can read {shown}, and whoever uses the token first is in: make it with token create \
             --token-file, or with mode 0600"
        ));
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
    warn_of_readers(path, &shown);
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
