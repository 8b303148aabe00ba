//! Traffic whose makers tell the truth about it.
//!
//! The helper binary `traffic` opens sockets in the ways that programs in the field do, moves octets of a known
//! pattern, and prints one JSON line a flow: who (pid), between which addresses, how many payload octets each way.
//! [`Helper`] starts it and reads these lines. A helper that serves ends when its standard input closes.

pub mod attempt;
pub mod client;
pub mod idle;
pub mod load;
pub mod pattern;
pub mod server;
pub mod spawn;
pub mod steady;
pub mod udp;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::netns::NetNs;
use crate::process::Process;

/// Environment variable with the path of the helper, for tests of other crates and unusual target folders.
const HELPER_VARIABLE: &str = "FLOWTILLA_TRAFFIC";

/// What a helper says of one flow, or of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Truth {
    /// The server listens; the idle sockets are open.
    Ready(Ready),
    /// One end of a TCP connection.
    Stream(Flow),
    /// One end of a UDP flow: one socket and one peer.
    Datagrams(Flow),
    /// A connect that was meant to fail.
    Attempt(Attempt),
    /// How a storm of short processes went.
    Storm(Storm),
    /// What a load cost.
    Load(load::Cost),
}

/// A helper that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// The helper.
    pub pid: u32,
    /// Where it listens.
    pub address: SocketAddr,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// The process that opened or accepted the socket.
    pub pid: u32,
    /// The process that moved the payload.
    pub user_pid: u32,
    /// This end, as far as it is known.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Payload octets sent.
    pub sent: u64,
    /// Payload octets received.
    pub received: u64,
    /// Datagrams sent; 0 for TCP.
    pub datagrams_sent: u64,
    /// Datagrams received; 0 for TCP.
    pub datagrams_received: u64,
    /// A word from the command line that only this process had; empty: none.
    pub tag: String,
}

/// A connect that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Who tried.
    pub pid: u32,
    /// Port it tried from.
    pub local_port: u16,
    /// Where it wanted to go.
    pub peer: SocketAddr,
    /// What the system call said, such as `ECONNREFUSED`.
    pub error: String,
}

/// How a storm of short processes went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Storm {
    /// Processes started.
    pub started: u64,
    /// Of these, processes that did not end well.
    pub failed: u64,
    /// From the first start to the last.
    pub took_ms: u64,
}

/// Prints a truth; one write, so that lines of several processes stay whole.
///
/// # Errors
/// When standard output is gone.
pub fn tell(truth: &Truth) -> Result<()> {
    crate::process::print_line(truth)
}

/// A running helper.
#[derive(Debug)]
pub struct Helper(Process);

impl Helper {
    /// Starts a helper in `host`.
    ///
    /// # Errors
    /// When it is not built or cannot be started.
    pub fn start(host: &NetNs, arguments: &[&str]) -> Result<Self> {
        let mut command = host.command(binary());
        command.args(arguments);
        Ok(Self(Process::start(command)?))
    }

    /// Starts a helper from a command that the caller has made from [`binary`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_command(command: Command) -> Result<Self> {
        Ok(Self(Process::start(command)?))
    }

    /// Starts a helper that serves, and waits until it does.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn serve(host: &NetNs, arguments: &[&str]) -> Result<(Self, Ready)> {
        let mut helper = Self::start(host, arguments)?;
        let ready = helper.ready()?;
        Ok((helper, ready))
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it ends before, or takes too long.
    pub fn ready(&mut self) -> Result<Ready> {
        let lines = self.0.out().clone();
        self.0.wait_for_line(
            lines,
            crate::wait::PATIENCE * 4,
            "readiness",
            |line| match serde_json::from_str(line) {
                Ok(Truth::Ready(ready)) => Some(ready),
                _ => None,
            },
        )
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// How many lines it told so far.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.0.out().count()
    }

    /// What it told so far.
    ///
    /// # Errors
    /// When a line is not a truth.
    pub fn told(&self) -> Result<Vec<Truth>> {
        let read = |line: String| {
            serde_json::from_str(&line).with_context(|| format!("read what a helper told: {line}"))
        };
        self.0.out().all().into_iter().map(read).collect()
    }

    /// Tells it to come to an end, waits for that, and returns all it told.
    ///
    /// # Errors
    /// When it does not end well within `deadline`.
    pub fn finish(mut self, deadline: Duration) -> Result<Vec<Truth>> {
        self.0.close_stdin();
        self.wait(deadline)
    }

    /// Waits until it ends by itself, and returns all it told.
    ///
    /// # Errors
    /// When it does not end well within `deadline`.
    pub fn wait(mut self, deadline: Duration) -> Result<Vec<Truth>> {
        let status = self.0.wait_end(deadline)?;
        ensure!(
            status.success(),
            "traffic helper ended with {status}: {}",
            self.0.last_words()
        );
        self.told()
    }
}

/// Runs a helper to its end; what it told.
///
/// # Errors
/// When it does not end well within `deadline`.
pub fn run(host: &NetNs, deadline: Duration, arguments: &[&str]) -> Result<Vec<Truth>> {
    Helper::start(host, arguments)?.wait(deadline)
}

/// The flows among what was told.
#[must_use]
pub fn flows(told: &[Truth]) -> Vec<Flow> {
    told.iter()
        .filter_map(|truth| match truth {
            Truth::Stream(flow) | Truth::Datagrams(flow) => Some(flow.clone()),
            _ => None,
        })
        .collect()
}

/// A copy of the helper that other users may execute, under another name.
///
/// # Errors
/// When it cannot be copied.
pub fn copy_for_everyone(folder: &Path, name: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    let copy = folder.join(name);
    std::fs::copy(binary(), &copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// Path of the helper.
#[must_use]
pub fn binary() -> PathBuf {
    std::env::var_os(HELPER_VARIABLE)
        .map_or_else(|| crate::process::built_folder().join("traffic"), PathBuf::from)
}
