//! What the commands do. What they write to `out` is for whoever asked; the rest is log.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use flowtilla_grpc::telemetry::page;
use flowtilla_proto::token::JoinToken;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::backup;
use crate::clock::Clock;
use crate::config::{
    BackupArgs, Command, InitArgs, METRICS_DEFAULT, PORT_DEFAULT, RestoreArgs, RunArgs, TokenArgs,
};
use crate::enrolment::{RENEW_GRACE_DEFAULT, TokenOrder};
use crate::identities::Identities;
use crate::identity::ca::Origin;
use crate::local::{self, Ask};
use crate::metrics;
use crate::run::{Controller, Options};
use crate::setup::{self, SetupError};
use crate::state::{self, StateError, control_socket};

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
    let file = TokenFile::make(args.token_file.as_deref())?;
    let made = setup::create(&args.state.state, &args.domain, &origin, RENEW_GRACE_DEFAULT, now);
    let opened = match made {
        Ok(opened) => opened,
        Err(error) => {
            let again = matches!(error, SetupError::State(StateError::Present(_)));
            let error = anyhow::Error::from(error);
            return Err(match again {
                true => anyhow::anyhow!("{error}; its operator's token: {}", remedy(args)),
                false => error,
            });
        }
    };
    let token = make_token(&opened.identities, &order, clock);
    token
        .and_then(|token| file.hand_over(&token, out))
        .with_context(|| format!("the state is made, but the token is not: {}", remedy(args)))
}

/// How to get a token when a state is there.
fn remedy(args: &InitArgs) -> String {
    format!(
        "run `flowtilla-controller token --state {} --operator {}`",
        args.state.state.display(),
        args.operator
    )
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
    let place = page::bind(args.metrics.0, METRICS_DEFAULT).await?;
    let mut controller = Controller::start(options).await?;
    let stop = CancellationToken::new();
    let served = tokio::spawn(metrics::serve(
        place,
        Arc::clone(controller.parts()),
        stop.clone(),
    ));
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
    let _ = served.await; // It has nothing to say, and waits for nobody.
    Ok(outcome?)
}

fn token(args: &TokenArgs, clock: &Clock, out: &mut dyn Write) -> Result<()> {
    let order = operator_order(&args.operator);
    order
        .check()
        .map_err(|mistakes| anyhow::anyhow!("--{mistakes}"))?;
    let file = TokenFile::make(args.token_file.as_deref())?;
    let token = match setup::open(&args.state.state, RENEW_GRACE_DEFAULT) {
        Ok(opened) => make_token(&opened.identities, &order, clock)?,
        Err(error) => {
            runs(&args.state.state, error)?;
            let mut text = Vec::new();
            local::ask(&args.state.state, &Ask::Token(args.operator.clone()), &mut text)?;
            JoinToken::parse(std::str::from_utf8(&text)?).context("the controller's answer")?
        }
    };
    file.hand_over(&token, out)
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
    let voided = backup::restore(&args.file, &args.state.state, clock.now())?;
    writeln!(
        out,
        "restored; agents and operators that were revoked after the backup are not: revoke them again\n\
         {voided} join tokens that were not used before the backup are void, for they may have been used since: make others\n\
         agents and operators that the backup knows come back by themselves, also when their SVID is newer than it; whoever \
         enrolled after it is not known here, and needs a new token: until then it goes on with what it has\n\
         if this backup was restored before, do that first: agents that came in since, and feed collectors of nested JSON or header \
         version 1, have numbers there that others may get now"
    )?;
    Ok(())
}

/// Goes on when the state is in use by a controller that hears commands. Root, who may not open the state of a controller that has
/// a user of its own, may ask it.
fn runs(state: &Path, error: SetupError) -> Result<()> {
    match error {
        SetupError::State(StateError::InUse { .. } | StateError::Foreign { user: 0, .. })
            if control_socket(state).exists() =>
        {
            Ok(())
        }
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

/// Where a token goes: a new file of mode 0600, which is made before the token, or the standard output. The file goes again when
/// there is no token for it.
struct TokenFile(Option<(PathBuf, File)>);

impl TokenFile {
    fn make(path: Option<&Path>) -> Result<Self> {
        let made = path.map(|path| anyhow::Ok((path.to_owned(), state::create_private(path)?)));
        Ok(Self(made.transpose().context("--token-file")?))
    }

    /// Shows a token, this once.
    fn hand_over(mut self, token: &JoinToken, out: &mut dyn Write) -> Result<()> {
        let text = token.expose();
        let Some((path, file)) = &mut self.0 else {
            return Ok(writeln!(out, "{text}")?);
        };
        file.write_all(format!("{text}\n").as_bytes())
            .and_then(|()| file.sync_all())
            .with_context(|| format!("writing {}", path.display()))?;
        state::sync_parent(path)?;
        self.0 = None; // It holds the token: it stays.
        Ok(())
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.0 {
            let _ = std::fs::remove_file(path); // It is empty: nothing is lost.
        }
    }
}
