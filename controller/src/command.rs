//! What the commands do. What they write to `out` is for whoever asked; the rest is log.

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flowtilla_proto::token::JoinToken;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::backup;
use crate::clock::Clock;
use crate::config::{BackupArgs, Command, InitArgs, PORT_DEFAULT, RestoreArgs, RunArgs, TokenArgs};
use crate::enrolment::{RENEW_GRACE_DEFAULT, TokenOrder};
use crate::identities::Identities;
use crate::identity::ca::Origin;
use crate::local::{self, Ask};
use crate::metrics;
use crate::run::{Controller, Options};
use crate::setup::{self, SetupError};
use crate::state::{self, StateError, control_socket};

/// How long a page of /metrics that is being written may take when the controller stops.
const METRICS_GRACE: Duration = Duration::from_secs(1);

/// Runs one command to its end.
///
/// # Errors
///
/// What went wrong, for a person.
pub async fn execute(command: Command, clock: Clock, out: &mut (dyn Write + Send)) -> Result<()> {
    match command {
        Command::Init(args) => init(&args, &clock, out),
        Command::Run(args) => run(args, clock).await,
        Command::Token(args) => token(&args, &clock, out),
        Command::Backup(args) => back_up(&args, &clock, out),
        Command::Restore(args) => restore(&args, &clock, out),
    }
}

fn init(args: &InitArgs, clock: &Clock, out: &mut dyn Write) -> Result<()> {
    let order = operator_order(&args.operator);
    // Before anything is made.
    order
        .check()
        .map_err(|mistakes| anyhow::anyhow!("--{mistakes}"))?;
    let origin = match (&args.ca_cert, &args.ca_key) {
        (Some(chain), Some(key)) => Origin::Brought {
            chain: state::read_small(chain)?,
            key: state::read_private(key)?,
        },
        _ => Origin::Own,
    };
    let now = clock.now();
    let opened = setup::create(&args.state.state, &args.domain, &origin, RENEW_GRACE_DEFAULT, now)?;
    let (token, _) = opened.identities.create_token(&order, None, now)?;
    hand_over(&token, args.token_file.as_deref(), out)
}

async fn run(args: RunArgs, clock: Clock) -> Result<()> {
    let listen = match args.listen.is_empty() {
        true => vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT_DEFAULT))],
        false => args.listen,
    };
    let mut options = Options::new(args.state.state, listen);
    options.renew_grace = args.renew_grace;
    options.clock = clock;
    let mut ask_to_stop = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let metrics = metrics::bind(args.metrics.0).await?;
    let mut controller = Controller::start(options).await?;
    let stop = CancellationToken::new();
    let served = tokio::spawn(metrics.serve(Arc::clone(controller.parts()), stop.clone()));
    let ended = tokio::select! {
        ended = controller.ended() => Some(ended),
        _ = ask_to_stop.recv() => None,
        _ = interrupt.recv() => None,
    };
    let outcome = match ended {
        Some(ended) => ended,
        None => {
            tracing::info!("the controller stops");
            controller.stop().await
        }
    };
    stop.cancel();
    // A page that nobody reads is left behind.
    let _ = tokio::time::timeout(METRICS_GRACE, served).await;
    Ok(outcome?)
}

fn token(args: &TokenArgs, clock: &Clock, out: &mut dyn Write) -> Result<()> {
    let order = operator_order(&args.operator);
    order
        .check()
        .map_err(|mistakes| anyhow::anyhow!("--{mistakes}"))?;
    let token = match setup::open(&args.state.state, RENEW_GRACE_DEFAULT) {
        Ok(opened) => make_token(&opened.identities, &order, clock)?,
        Err(error) => {
            runs(&args.state.state, error)?;
            let mut text = Vec::new();
            local::ask(&args.state.state, &Ask::Token(args.operator.clone()), &mut text)?;
            JoinToken::parse(std::str::from_utf8(&text)?).context("the controller's answer")?
        }
    };
    hand_over(&token, args.token_file.as_deref(), out)
}

fn back_up(args: &BackupArgs, clock: &Clock, out: &mut dyn Write) -> Result<()> {
    let mut file = state::create_private(&args.file)?;
    let written = match setup::open(&args.state.state, RENEW_GRACE_DEFAULT) {
        Ok(opened) => backup::write(&opened.store, &opened.directory.ca(), &mut file, clock.now())
            .map_err(anyhow::Error::from),
        Err(error) => runs(&args.state.state, error)
            .and_then(|()| local::ask(&args.state.state, &Ask::Backup, &mut file)),
    };
    let written = written
        .and_then(|()| Ok(file.sync_all()?))
        .and_then(|()| Ok(backup::verify(&args.file)?));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&args.file); // It is no backup.
        return Err(error);
    }
    state::sync_parent(&args.file)?;
    writeln!(
        out,
        "{} holds the CA's keys: keep it as you would keep those",
        args.file.display()
    )?;
    Ok(())
}

fn restore(args: &RestoreArgs, clock: &Clock, out: &mut dyn Write) -> Result<()> {
    backup::restore(&args.file, &args.state.state, clock.now())?;
    writeln!(
        out,
        "restored; agents and operators that were revoked after the backup are not: revoke them again"
    )?;
    Ok(())
}

/// Goes on when the state is in use by a controller that hears commands.
fn runs(state: &Path, error: SetupError) -> Result<()> {
    match error {
        SetupError::State(StateError::InUse { .. }) if control_socket(state).exists() => Ok(()),
        error => Err(error.into()),
    }
}

fn operator_order(name: &str) -> TokenOrder {
    TokenOrder {
        operator: name.to_owned(),
        ..TokenOrder::default()
    }
}

fn make_token(identities: &Identities, order: &TokenOrder, clock: &Clock) -> Result<JoinToken> {
    Ok(identities.create_token(order, None, clock.now())?.0)
}

/// Shows a token, this once.
fn hand_over(token: &JoinToken, file: Option<&Path>, out: &mut dyn Write) -> Result<()> {
    let text = token.expose();
    match file {
        None => writeln!(out, "{text}")?,
        Some(file) => state::write_private(&PathBuf::from(file), format!("{text}\n").as_bytes())?,
    }
    Ok(())
}
