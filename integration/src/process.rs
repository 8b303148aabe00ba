//! Processes that tests start: their output kept line by line, ended by pid when their handle goes.
//!
//! Each has its output read by threads of this process, so that no pipe fills; each dies with the test that started
//! it, even when that is killed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::wait;

/// Most lines kept of one output; a process that prints more than this is broken.
///
/// A full count of UDP peers prints 10,000 lines, a storm 20,000.
const LINES_MAX: usize = 1_000_000;

/// A started process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    out: Lines,
    err: Lines,
    readers: Vec<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

/// What one output said so far.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// All lines so far.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.since(0)
    }

    /// Lines from the one at index `first` on.
    #[must_use]
    pub fn since(&self, first: usize) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get(first..).unwrap_or_default().to_vec()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES_MAX {
            lines.push(line);
        }
    }
}

impl Process {
    /// Starts `command` with its three streams piped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: Command) -> Result<Self> {
        Self::start_into(command, Stdio::piped())
    }

    /// Starts `command` with what it writes to standard output thrown away: no reader costs it time.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_unread(command: Command) -> Result<Self> {
        Self::start_into(command, Stdio::null())
    }

    fn start_into(mut command: Command, out: Stdio) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(out).stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe and touches only the child.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                Ok(())
            });
        }
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let (out, err) = (Lines::default(), Lines::default());
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            readers.push(read_into(pipe, out.clone()));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.push(read_into(pipe, err.clone()));
        }
        Ok(Self {
            child,
            name,
            out,
            err,
            readers,
            status: None,
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Standard output.
    #[must_use]
    pub fn out(&self) -> &Lines {
        &self.out
    }

    /// Standard error.
    #[must_use]
    pub fn err(&self) -> &Lines {
        &self.err
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status.is_none())
    }

    /// Waits until a line of standard output (or error) is what `wanted` looks for.
    ///
    /// # Errors
    /// When the process ends without it, or it does not come within `deadline`; with what it wrote on standard error.
    pub fn wait_for_line<T>(
        &mut self,
        lines: Lines,
        deadline: Duration,
        what: &str,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let mut seen = 0;
        let what = format!("{what} of {} ({})", self.name, self.pid());
        wait::until(deadline, &what, || {
            let running = self.is_running()?;
            if !running {
                self.join_readers();
            }
            for line in lines.since(seen) {
                seen += 1;
                if let Some(found) = wanted(&line) {
                    return Ok(Some(found));
                }
            }
            if !running {
                bail!("{} ended before {what}: {}", self.name, self.last_words());
            }
            Ok(None)
        })
        .with_context(|| self.last_words())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("send {signal} to {} ({pid})", self.name))
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When that is closed.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("standard input is closed")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Closes its standard input, which tells the traffic helpers to come to an end.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits for its end and for the last of its output.
    ///
    /// # Errors
    /// When it does not end within `deadline`.
    pub fn wait_end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("end of {} ({})", self.name, self.pid());
        let status = wait::until(deadline, &what, || {
            self.is_running()?;
            Ok(self.status)
        })?;
        self.join_readers();
        Ok(status)
    }

    /// The end of its standard error, for messages.
    #[must_use]
    pub fn last_words(&self) -> String {
        let lines = self.err.all();
        let tail = &lines[lines.len().saturating_sub(20)..];
        format!("{} said: {}", self.name, tail.join(" | "))
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            // A reader only pushes lines; its panic would be a failed allocation.
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Fails when it has ended by itself meanwhile: as wanted.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end; its standard output.
///
/// # Errors
/// When it cannot be started or does not succeed, with its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Prints a value as a JSON line, by one write: lines of several processes stay whole, and what is printed when the
/// process is killed was said.
///
/// # Errors
/// When standard output is gone.
pub fn print_line(value: &impl serde::Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut rest = line.as_slice();
    // Only lines longer than PIPE_BUF may take another round.
    while !rest.is_empty() {
        let written = rustix::io::write(std::io::stdout(), rest)?;
        rest = &rest[written..];
    }
    Ok(())
}

/// CPU time that a process has used, all threads.
///
/// # Errors
/// When it has ended.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(pid)?));
    let clock = clock.context("the clock of a process's CPU time")?;
    Ok(clock.now()?.into())
}

/// CPU time that this process has used, all threads.
///
/// # Errors
/// When the kernel does not say.
pub fn own_cpu_time() -> Result<Duration> {
    cpu_time(std::process::id())
}

/// Folder of the built binaries: where the running executable is, or one above for test binaries in `deps`.
///
/// # Panics
/// When the running executable has no folder, which cannot be.
#[must_use]
pub fn built_folder() -> PathBuf {
    let binary = std::env::current_exe().expect("a running process knows its executable");
    let folder = binary.parent().expect("an executable lies in a folder");
    if folder.file_name().is_some_and(|name| name == "deps") {
        folder.parent().unwrap_or(Path::new("/")).to_owned()
    } else {
        folder.to_owned()
    }
}

fn read_into(pipe: impl std::io::Read + Send + 'static, lines: Lines) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut octets = Vec::new();
        while reader.read_until(b'\n', &mut octets).is_ok_and(|n| n > 0) {
            lines.push(String::from_utf8_lossy(&octets).trim_end().to_owned());
            octets.clear();
        }
    })
}
