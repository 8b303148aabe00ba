//! A collector that is a process of its own, and the faults that can befall it.
//!
//! One [`Apart`] is one place where a collector may be: incarnations follow each other at the same endpoint, and the
//! account is over all of them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::handled::{Account, Line};
use crate::netns::NetNs;
use crate::process::{Process, built_folder};
use crate::wait::{self, PATIENCE};

/// Environment variable with the path of the binary, for unusual target folders.
const BINARY_VARIABLE: &str = "FLOWTILLA_COLLECTOR";

/// What the collector is like.
#[derive(Clone, Copy, Debug)]
pub struct Likeness<'a> {
    /// Host it lives on; `None`: this one.
    pub host: Option<&'a NetNs>,
    /// Address it binds at.
    pub address: &'a str,
    /// How long a message takes it.
    pub delay: Duration,
    /// Messages that wait inside libzmq; `None`: as ntopng has it.
    pub queue: Option<i32>,
    /// Whether it throws away what it takes, and so handles nothing.
    pub discard: bool,
}

impl Default for Likeness<'_> {
    fn default() -> Self {
        Self {
            host: None,
            address: "127.0.0.1",
            delay: Duration::ZERO,
            queue: None,
            discard: false,
        }
    }
}

/// A collector's place.
#[derive(Debug)]
pub struct Apart<'a> {
    likeness: Likeness<'a>,
    endpoint: String,
    running: Option<Process>,
    /// Lines of the newest incarnation that are in the account.
    read: usize,
    account: Account,
}

impl<'a> Apart<'a> {
    /// Starts the first incarnation, at any free port.
    ///
    /// # Errors
    /// When it is not built or does not come up.
    pub fn start(likeness: Likeness<'a>) -> Result<Self> {
        let mut apart = Self {
            likeness,
            endpoint: format!("tcp://{}:*", likeness.address),
            running: None,
            read: 0,
            account: Account::default(),
        };
        apart.come_back()?;
        Ok(apart)
    }

    /// Where it is, or was.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Changes how long a message takes the next incarnation.
    pub fn set_delay(&mut self, delay: Duration) {
        self.likeness.delay = delay;
    }

    /// Starts the next incarnation, at the same endpoint.
    ///
    /// # Errors
    /// When the last still runs, or this one does not come up.
    pub fn come_back(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "the collector has not gone");
        // The port is free once the kernel has seen the last connection out.
        let (process, endpoint) = wait::until(PATIENCE, "the collector's port", || Ok(self.try_start().ok()))
            .or_else(|_| self.try_start())?;
        self.endpoint = endpoint;
        self.running = Some(process);
        self.read = 0;
        self.account.begin();
        Ok(())
    }

    /// Ends it without a chance to handle what it has.
    ///
    /// # Errors
    /// When it has ended by itself, or said something that is not a line of its form.
    pub fn kill(&mut self) -> Result<()> {
        self.running()?.signal(Signal::SIGKILL)?;
        self.running()?.wait_end(PATIENCE)?;
        self.read_lines(true)?;
        self.running = None;
        Ok(())
    }

    /// Has it close its socket and end, as a stop of the service does.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn close(&mut self) -> Result<()> {
        self.running()?.close_stdin();
        let status = self.running()?.wait_end(PATIENCE)?;
        ensure!(status.success(), "the collector ended with {status}");
        self.read_lines(false)?;
        self.running = None;
        Ok(())
    }

    /// Stops all its threads, those of libzmq included: its kernel still takes octets.
    ///
    /// # Errors
    /// When it has ended.
    pub fn freeze(&mut self) -> Result<()> {
        self.running()?.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen one go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn thaw(&mut self) -> Result<()> {
        self.running()?.signal(Signal::SIGCONT)
    }

    /// What all incarnations handled so far.
    ///
    /// # Errors
    /// When a message was unreadable.
    pub fn account(&mut self) -> Result<&Account> {
        if self.running.is_some() {
            self.read_lines(false)?;
        }
        Ok(&self.account)
    }

    fn running(&mut self) -> Result<&mut Process> {
        self.running.as_mut().context("the collector is away")
    }

    fn try_start(&self) -> Result<(Process, String)> {
        let binary = binary();
        ensure!(binary.is_file(), "{} is not built", binary.display());
        let mut command = match self.likeness.host {
            Some(host) => host.command(&binary),
            None => Command::new(&binary),
        };
        let delay_us = self.likeness.delay.as_micros().to_string();
        command.args(["--bind", &self.endpoint, "--delay-us", &delay_us]);
        if let Some(queue) = self.likeness.queue {
            command.args(["--queue", &queue.to_string()]);
        }
        if self.likeness.discard {
            command.arg("--discard");
        }
        let mut process = Process::start(command)?;
        let lines = process.out().clone();
        let endpoint =
            process.wait_for_line(lines, PATIENCE, "endpoint", |line| {
                match serde_json::from_str(line) {
                    Ok(Line::Ready(endpoint)) => Some(endpoint),
                    _ => None,
                }
            })?;
        Ok((process, endpoint))
    }

    /// Puts the newest lines into the account. `cut`: the last may be half a line, of a message not handled.
    fn read_lines(&mut self, cut: bool) -> Result<()> {
        let read = self.read;
        let lines = self.running()?.out().since(read);
        let count = lines.len();
        for (index, line) in lines.into_iter().enumerate() {
            match serde_json::from_str(&line) {
                Ok(Line::Ready(_)) => {}
                Ok(Line::Handled(handled)) => self.account.take(handled),
                Ok(Line::Unreadable(why)) => bail!("ntopng would have dropped a message: {why}"),
                Err(_) if cut && index + 1 == count => {}
                Err(error) => return Err(error).with_context(|| format!("read a collector's line: {line}")),
            }
            self.read += 1;
        }
        Ok(())
    }
}

impl Drop for Apart<'_> {
    fn drop(&mut self) {
        if let Some(process) = &self.running {
            // A frozen process would not see its standard input close; SIGKILL, which follows, reaches it anyway.
            let _ = process.signal(Signal::SIGCONT);
        }
    }
}

fn binary() -> PathBuf {
    std::env::var_os(BINARY_VARIABLE).map_or_else(|| built_folder().join("collector"), PathBuf::from)
}
