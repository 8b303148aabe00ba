//! What commands on the controller's own host ask of one that runs: a backup, an operator's token.
//!
//! A Unix socket in the state directory, whose mode (0700) lets in whoever may read the keys anyway; root and the controller's
//! own user, nobody else, by the kernel's word. One request a connection, one line: `backup` or `token NAME`. Answer: a line
//! `ok`, then the backup or the token, to the end; or a line `refused`, then why.

use std::io::{self, BufRead as _, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::backup;
use crate::clock::Clock;
use crate::enrolment::TokenOrder;
use crate::identities::Identities;
use crate::state::control_socket;
use crate::store::sled::SledStore;

/// Most octets of a request.
const REQUEST_OCTETS_MAX: u64 = 256;
/// How long either side may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the asking side waits: a large store takes a while.
const PATIENCE: Duration = Duration::from_secs(120);

/// What answers.
#[derive(Clone)]
pub struct Local {
    /// Whose tokens.
    pub identities: Arc<Identities>,
    /// Whose backup.
    pub store: Arc<SledStore>,
    /// The state directory.
    pub state: PathBuf,
    /// The time.
    pub clock: Clock,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A backup.
    Backup,
    /// A token for an operator.
    Token(String),
}

/// Binds the socket. A file that a controller left behind is replaced: the lock says that there is no other one.
///
/// # Errors
///
/// What the system says.
pub fn bind(state: &Path) -> io::Result<UnixListener> {
    let path = control_socket(state);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Answers, one request after the other, until `stop`.
pub async fn run(listener: UnixListener, local: Local, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let asked = local.clone();
        let answered = tokio::task::spawn_blocking(move || answer(stream, &asked)).await;
        match answered {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a command on this host was not answered"),
            Err(error) => tracing::error!(%error, "answering a command on this host failed"),
        }
    }
    let _ = std::fs::remove_file(control_socket(&local.state)); // The next one replaces it in any case.
}

fn answer(stream: UnixStream, local: &Local) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    let mut stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        return refuse(&mut stream, "this user may not ask the controller");
    }
    let mut line = String::new();
    BufReader::new((&stream).take(REQUEST_OCTETS_MAX)).read_line(&mut line)?;
    match line.trim_end().split_once(' ') {
        None if line.trim_end() == "backup" => match spooled(local) {
            Ok(mut file) => {
                stream.write_all(b"ok\n")?;
                io::copy(&mut file, &mut stream).map(drop)
            }
            Err(error) => refuse(&mut stream, &format!("{error:#}")),
        },
        Some(("token", operator)) => match token(local, operator) {
            Ok(token) => stream.write_all(format!("ok\n{token}").as_bytes()),
            Err(error) => refuse(&mut stream, &format!("{error:#}")),
        },
        _ => refuse(&mut stream, "this version does not know the request"),
    }
}

/// The backup, in a file without a name: whoever reads slowly holds up no commit.
fn spooled(local: &Local) -> anyhow::Result<std::fs::File> {
    let mut file = tempfile::tempfile_in(&local.state)?;
    let mut out = io::BufWriter::new(&mut file);
    backup::write(&local.store, &local.state.join("ca"), &mut out, local.clock.now())?;
    drop(out);
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn token(local: &Local, operator: &str) -> anyhow::Result<String> {
    let order = TokenOrder {
        operator: operator.to_owned(),
        ..TokenOrder::default()
    };
    let (token, _) = local.identities.create_token(&order, None, local.clock.now())?;
    Ok(token.expose())
}

fn refuse(stream: &mut std::os::unix::net::UnixStream, why: &str) -> io::Result<()> {
    stream.write_all(format!("refused\n{why}").as_bytes())
}

/// Asks a controller that runs. The answer's octets go to `out`. Blocking.
///
/// # Errors
///
/// When none runs, or it refuses, or the answer ends too soon.
pub fn ask(state: &Path, ask: &Ask, out: &mut impl Write) -> anyhow::Result<()> {
    use anyhow::Context as _;

    let socket = control_socket(state);
    let stream = std::os::unix::net::UnixStream::connect(&socket).with_context(|| {
        format!(
            "asking the controller at {}, which must run for that; or run this command as its user",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let request = match ask {
        Ask::Backup => "backup\n".to_owned(),
        Ask::Token(operator) => format!("token {operator}\n"),
    };
    (&stream).write_all(request.as_bytes())?;
    let mut reader = BufReader::new(&stream);
    let mut verdict = String::new();
    (&mut reader).take(16).read_line(&mut verdict)?;
    if verdict == "ok\n" {
        io::copy(&mut reader, out)?;
        return Ok(());
    }
    let mut why = String::new();
    (&mut reader).take(4096).read_to_string(&mut why)?;
    let why = if why.is_empty() {
        "it ended in the middle"
    } else {
        &why
    };
    anyhow::bail!("the controller that runs refuses: {why}")
}
