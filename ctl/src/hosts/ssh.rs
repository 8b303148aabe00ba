//! Has the system's `ssh` run [`SCRIPT`] on hosts, as root.
//!
//! In: a [`Way`] to a host, an action with its words, and what it is to read. Out: what the action printed, or a [`Trouble`].
//! ssh's own configuration, known hosts, agent and keys count; nothing is asked for on a terminal. The calls to one host share
//! one connection, whose socket is in a private directory that goes with [`Ssh`].
//!
//! Nothing secret stands in an argument: the script and what it reads go by stdin, the script first. It is read octet by octet
//! (`dd bs=1`), so that no reader takes what follows it. The command line itself must mean the same to any shell that a user
//! may log in with: one word in single quotes, without a backslash or an exclamation mark in it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_proto::hosts::Target;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, Command};
use tokio::time::timeout;

use super::trouble::{Step, Trouble, explain};

/// What runs on the host.
pub(crate) const SCRIPT: &str = include_str!("remote.sh");

/// How long ssh tries to connect.
///
/// A busy host across the world answers within 3 s. Half of it fails on a link that loses packets; double it, and a site that is
/// down is waited for.
const CONNECT_TIMEOUT_S: u32 = 10;
/// A host that is silent for so many of these is gone.
const ALIVE_INTERVAL_S: u32 = 5;
const ALIVE_COUNT_MAX: u32 = 3;
/// How long the shared connection stays after the last call, should nobody be left to close it.
const PERSIST_S: u32 = 60;
/// Most octets that are taken of what a host says.
const ANSWER_OCTETS_MAX: u64 = 256 << 10;
/// Longest path of the socket's directory: a socket's path has 108 octets at most, of which ssh needs 40 for the host and some
/// for itself. A longer one: each call makes a connection of its own.
const FOLDER_OCTETS_MAX: usize = 48;
/// How long a shared connection is given to close.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// How a host is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) target: Target,
    pub(crate) jump: Vec<Target>,
    pub(crate) sudo: bool,
}

/// Runs ssh.
#[derive(Debug)]
pub(crate) struct Ssh {
    program: PathBuf,
    /// Where the shared connections' sockets are.
    folder: TempDir,
}

/// What an action reads, part after part.
pub(crate) type Payload = Vec<Arc<[u8]>>;

impl Ssh {
    /// Makes the private directory.
    ///
    /// # Errors
    ///
    /// There is no place for it.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            program: PathBuf::from("ssh"),
            folder: tempfile::Builder::new().prefix("agentctl-").tempdir()?,
        })
    }

    /// Runs one action to its end.
    ///
    /// # Errors
    ///
    /// [`Trouble`], at `step` when it is the action's own.
    ///
    /// # Cancel safety
    ///
    /// ssh is ended; what the host does then ends by itself, or goes on to its end.
    pub(crate) async fn run(
        &self,
        way: &Way,
        step: Step,
        action: &[&str],
        payload: Payload,
        within: Duration,
    ) -> Result<String, Trouble> {
        let mut command = self.command(way);
        command.arg(remote_command(way.sudo, action));
        let trouble = |why: String, remedy: &str| Trouble::new(step, why, remedy);
        let mut child = command
            .spawn()
            .map_err(|error| trouble(format!("ssh does not start ({error})"), "install openssh-client"))?;
        const PIPED: &str = "it is piped";
        let (stdin, stdout, stderr) = (
            child.stdin.take().expect(PIPED),
            child.stdout.take().expect(PIPED),
            child.stderr.take().expect(PIPED),
        );
        let running = async {
            let ((), said, complained, ended) =
                tokio::join!(feed(stdin, payload), hear(stdout), hear(stderr), child.wait());
            (said, complained, ended)
        };
        let Ok((said, complained, ended)) = timeout(within, running).await else {
            let why = format!("it took longer than {} s", within.as_secs());
            return Err(trouble(why, "look at the host, and deploy again").broken_off());
        };
        match ended {
            Ok(status) if status.success() => Ok(said),
            Ok(status) => Err(explain(step, &way.target, status.code(), &complained)),
            Err(error) => Err(trouble(format!("ssh got lost ({error})"), "deploy again").broken_off()),
        }
    }

    /// Closes a shared connection, if there is one.
    pub(crate) async fn close(&self, way: &Way) {
        let mut command = self.command_to(way, &["-O", "exit"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let Ok(mut child) = command.spawn() else { return };
        let _ = timeout(CLOSE_WAIT, child.wait()).await; // It ends by itself a little later.
    }

    fn command(&self, way: &Way) -> Command {
        let mut command = self.command_to(way, &[]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn command_to(&self, way: &Way, first: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.kill_on_drop(true).args(first).args(["-T", "-a", "-x"]);
        let mut option = |text: String| {
            command.args(["-o", &text]);
        };
        option("BatchMode=yes".to_owned());
        option("ClearAllForwardings=yes".to_owned());
        option("RemoteCommand=none".to_owned());
        option(format!("ConnectTimeout={CONNECT_TIMEOUT_S}"));
        option(format!("ServerAliveInterval={ALIVE_INTERVAL_S}"));
        option(format!("ServerAliveCountMax={ALIVE_COUNT_MAX}"));
        let folder = self.folder.path();
        if folder.as_os_str().len() <= FOLDER_OCTETS_MAX {
            option("ControlMaster=auto".to_owned());
            option(format!("ControlPersist={PERSIST_S}"));
            option(format!("ControlPath={}/%C", folder.display()));
        }
        if !way.jump.is_empty() {
            let hops: Vec<String> = way.jump.iter().map(hop).collect();
            command.args(["-J", &hops.join(",")]);
        }
        if let Some(user) = &way.target.user {
            command.args(["-l", user]);
        }
        if let Some(port) = way.target.port {
            command.args(["-p", &port.to_string()]);
        }
        command.arg("--").arg(&way.target.host);
        command
    }
}

/// A host to go through; ssh wants each address of version 6 in brackets there.
fn hop(target: &Target) -> String {
    if !target.host.contains(':') || target.port.is_some() {
        return target.to_string();
    }
    let user = target
        .user
        .as_ref()
        .map_or(String::new(), |user| format!("{user}@"));
    format!("{user}[{}]", target.host)
}

/// What the user's shell on the host is told. The words of an action are ours, and plain.
pub(super) fn remote_command(sudo: bool, action: &[&str]) -> String {
    debug_assert!(
        action.iter().all(|word| word
            .bytes()
            .all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')),
        "{action:?}"
    );
    let inner = format!("eval \"$(dd bs=1 count={} 2>/dev/null)\"", SCRIPT.len());
    let words = action.join(" ");
    // The first shell only chooses; both arms read the script by the same words.
    match sudo {
        false => format!("/bin/sh -c '{inner}' flowtilla {words}"),
        true => format!(
            "/bin/sh -c 'case $(id -u) in 0) exec /bin/sh -c \"$0\" \"$@\" ;; *) exec sudo -n /bin/sh -c \"$0\" \"$@\" ;; esac' \
             '{inner}' flowtilla {words}"
        ),
    }
}

/// Writes the script, then the parts. Whoever stops reading says why on stderr.
async fn feed(mut stdin: ChildStdin, payload: Payload) {
    if stdin.write_all(SCRIPT.as_bytes()).await.is_err() {
        return;
    }
    for part in payload {
        if stdin.write_all(&part).await.is_err() {
            return;
        }
    }
    let _ = stdin.shutdown().await;
}

/// Everything that is said, up to a bound; the rest is read and dropped.
async fn hear(mut from: impl AsyncRead + Unpin) -> String {
    let mut octets = Vec::new();
    let _ = (&mut from).take(ANSWER_OCTETS_MAX).read_to_end(&mut octets).await; // What came before an error counts.
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&octets).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command as Blocking, Output};

    use super::*;

    /// Runs what ssh would hand to a user's shell.
    fn by_shell(shell: &str, sudo: bool, action: &[&str], more: &[u8]) -> Option<Output> {
        let mut child = Blocking::new(shell)
            .args(["-c", &remote_command(sudo, action)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(SCRIPT.as_bytes()).expect("it reads");
        let _ = stdin.write_all(more); // It may have ended.
        drop(stdin);
        Some(child.wait_with_output().expect("it ends"))
    }

    #[test]
    fn the_script_runs_under_any_login_shell_and_says_what_it_lacks() {
        for shell in ["sh", "bash", "zsh", "csh", "fish"] {
            // Where this user is not root, and sudo wants a password, both are refused.
            let Some(ran) = by_shell(shell, false, &["nothing"], b"") else {
                println!("{shell} is not here");
                continue;
            };
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            let root = rustix::process::geteuid().is_root();
            let wanted = if root { "no such action" } else { "not root" };
            assert_eq!(said, format!("flowtilla: {wanted}\n"), "{shell}");
            assert_eq!(ran.status.code(), Some(3), "{shell}");
            if root {
                let ran = by_shell(shell, true, &["nothing"], b"").expect("it is here");
                let said = String::from_utf8_lossy(&ran.stderr).into_owned();
                assert_eq!(said, "flowtilla: no such action\n", "{shell}");
            }
        }
    }

    #[test]
    fn the_script_is_posix_shell() {
        for checker in [
            &["sh", "-n", "-"][..],
            &["shellcheck", "-s", "sh", "-e", "SC2016", "-"],
        ] {
            let child = Blocking::new(checker[0])
                .args(&checker[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let Ok(mut child) = child else {
                println!("{} is not here", checker[0]);
                continue;
            };
            let mut stdin = child.stdin.take().expect("piped");
            stdin.write_all(SCRIPT.as_bytes()).expect("it reads");
            drop(stdin);
            let ran = child.wait_with_output().expect("it ends");
            assert!(
                ran.status.success(),
                "{checker:?}: {}",
                String::from_utf8_lossy(&ran.stdout)
            );
        }
        // It is read whole into one word, from which the shell drops line ends at its end.
        assert!(SCRIPT.is_ascii());
    }

    #[test]
    fn the_way_becomes_flags_before_the_host() {
        let target = |host: &str, user: Option<&str>, port: u16| Target {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port: std::num::NonZeroU16::new(port),
        };
        let way = Way {
            target: target("2001:db8::1", Some("admin"), 2222),
            jump: vec![target("bastion", Some("j"), 1), target("2001:db8::2", None, 0)],
            sudo: true,
        };
        let ssh = Ssh::new().expect("a directory");
        let command = ssh.command_to(&way, &[]);
        let words: Vec<_> = command
            .as_std()
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        let end = words.len() - 8;
        assert_eq!(
            words[end..],
            [
                "-J",
                "j@bastion:1,[2001:db8::2]",
                "-l",
                "admin",
                "-p",
                "2222",
                "--",
                "2001:db8::1"
            ]
        );
        assert!(words.iter().any(|word| word == "BatchMode=yes"), "{words:?}");
    }
}
