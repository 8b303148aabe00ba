//! The product under test: the built `agentctl`, run as an operator runs it.
//!
//! In: flags. Out: its records, its words, its exit code. Nothing of the agent is linked in here.

pub mod record;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use self::record::{Flow, Record};
use crate::cgroup::{self, Cgroup};
use crate::netns::NetNs;
use crate::pods::Containerd;
use crate::process::{self, Process};
use crate::wait::{self, PATIENCE, Stopwatch};

/// Environment variable with the path of another `agentctl`.
const BINARY_VARIABLE: &str = "FLOWTILLA_AGENTCTL";
/// What the line of standard error says by which the attach report begins.
const READY_MARK: &str = "programs attached in";
/// Time an agent gets to end after it was told to: its own grace period and some.
const END_WITHIN: Duration = Duration::from_secs(20);

/// A running `agentctl up`.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    ready_after: Duration,
    /// Records of the lines read so far: long runs print many, and waits look often.
    read: Mutex<Vec<Record>>,
}

/// An agent that ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// All it told.
    pub records: Vec<Record>,
    /// Its words on standard error.
    pub words: Vec<String>,
}

impl Agent {
    /// Starts `agentctl up -o json` with more flags, and waits until its attach report is out.
    ///
    /// # Errors
    /// When it does not come up, with what it said.
    pub fn start(flags: &[&str]) -> Result<Self> {
        let mut command = command()?;
        command.args(["up", "-o", "json"]).args(flags);
        Self::start_command(command, Process::start)
    }

    /// The same beside a runtime of containers: on its host, with its view of cgroups.
    ///
    /// # Errors
    /// When it does not come up, with what it said.
    pub fn start_beside(runtime: &Containerd<'_>, flags: &[&str]) -> Result<Self> {
        let mut command = runtime.command(&binary()?);
        command.args(["up", "-o", "json"]).args(flags);
        Self::start_command(command, Process::start)
    }

    /// Starts `agentctl up` with its default form of records, which go to `/dev/null`: for measuring.
    ///
    /// # Errors
    /// When it does not come up, with what it said.
    pub fn start_unread(flags: &[&str]) -> Result<Self> {
        let mut command = command()?;
        command.arg("up").args(flags);
        Self::start_command(command, Process::start_unread)
    }

    fn start_command(command: Command, start: fn(Command) -> Result<Process>) -> Result<Self> {
        let watch = Stopwatch::start();
        let mut process = start(command)?;
        let lines = process.err().clone();
        process.wait_for_line(lines, PATIENCE, "attach report", |line| {
            line.contains(READY_MARK).then_some(())
        })?;
        let ready_after = watch.elapsed();
        Ok(Self {
            process,
            ready_after,
            read: Mutex::default(),
        })
    }

    /// Starts an agent that sees `host` only.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn watching(host: &NetNs, flags: &[&str]) -> Result<Self> {
        let scope = format!("netns={}", host.path().display());
        Self::start(&[&["--scope", &scope], flags].concat())
    }

    /// Starts an agent that itself lives on the host `desk`, from where it exports, and sees `host` only.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn watching_from(desk: &NetNs, host: &NetNs, flags: &[&str]) -> Result<Self> {
        let scope = format!("netns={}", host.path().display());
        let mut command = desk.command(binary()?);
        command.args(["up", "-o", "json", "--scope", &scope]).args(flags);
        Self::start_command(command, Process::start)
    }

    /// Starts an agent that sees of this host what is in `scope`, and of cgroups what a container's process sees: its own and those
    /// below.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn in_cgroup_namespace(cgroup: &Cgroup, scope: &str, flags: &[&str]) -> Result<Self> {
        let mut command = Command::new("unshare");
        cgroup.take_in(&mut command)?;
        command.arg("-C");
        cgroup::see_v2_alone(&mut command);
        command
            .arg(binary()?)
            .args(["up", "-o", "json", "--scope", scope])
            .args(flags);
        Self::start_command(command, Process::start)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Time from the start of the process to its attach report.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// How many lines of records there are so far.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.process.out().count()
    }

    /// Records so far.
    ///
    /// # Errors
    /// When a line is not a record.
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for line in self.process.out().since(read.len()) {
            read.push(Record::read(&line)?);
        }
        Ok(read.clone())
    }

    /// Flows so far.
    ///
    /// # Errors
    /// When a line is not a record, or the parts of a flow do not fit together.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        record::flows(&self.records()?)
    }

    /// Words on standard error so far.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        self.process.err().all()
    }

    /// Waits for a line of standard error that is what `wanted` looks for.
    ///
    /// # Errors
    /// When it does not come within `deadline`.
    pub fn wait_for_words(
        &mut self,
        deadline: Duration,
        what: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let lines = self.process.err().clone();
        self.process.wait_for_line(lines, deadline, what, |line| {
            wanted(line).then(|| line.to_owned())
        })
    }

    /// Waits until `count` flows of those that `wanted` asks for have ended; all of these.
    ///
    /// # Errors
    /// When they do not come within `deadline`: how many there are.
    pub fn wait_for_ended(
        &self,
        deadline: Duration,
        count: usize,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>> {
        let mut found = Vec::new();
        let mut lines = 0;
        let waited = wait::until(deadline, "ended flows", || {
            let there_are = self.process.out().count();
            if there_are > lines {
                lines = there_are;
                found = self.flows()?;
                found.retain(|flow| flow.ended() && wanted(flow));
            }
            Ok((found.len() >= count).then_some(()))
        });
        waited.with_context(|| format!("{} of {count} ended flows", found.len()))?;
        Ok(found)
    }

    /// Resident memory, in octets. Source: `/proc/PID/status`, VmRSS.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_octets(&self) -> Result<u64> {
        resident_octets(self.pid())
    }

    /// CPU time used so far, all threads.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        process::cpu_time(self.pid())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        self.process.is_running()
    }

    /// Ends it as Ctrl-C does, and waits.
    ///
    /// # Errors
    /// When it does not end in time, fails, or has told something that is not a record.
    pub fn interrupt(mut self) -> Result<Ended> {
        self.process.signal(Signal::SIGINT)?;
        let ended = self.wait()?;
        ensure!(
            ended.status.success(),
            "agentctl ended with {}: {}",
            ended.status,
            ended.words.join(" | ")
        );
        Ok(ended)
    }

    /// Ends it without a chance to clean up. What it was writing at that moment may be half a line.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn kill(mut self) -> Result<Ended> {
        self.process.signal(Signal::SIGKILL)?;
        let status = self.process.wait_end(END_WITHIN)?;
        let lines = self.process.out().all();
        let whole = |(index, line): (usize, &String)| match Record::read(line) {
            Err(_) if index + 1 == lines.len() => None,
            read => Some(read),
        };
        let records = lines.iter().enumerate().filter_map(whole);
        Ok(Ended {
            status,
            records: records.collect::<Result<_>>()?,
            words: self.words(),
        })
    }

    fn wait(&mut self) -> Result<Ended> {
        let status = self.process.wait_end(END_WITHIN)?;
        Ok(Ended {
            status,
            records: self.records()?,
            words: self.words(),
        })
    }
}

impl Ended {
    /// Flows of all it told.
    ///
    /// # Errors
    /// When the parts of a flow do not fit together.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        record::flows(&self.records)
    }

    /// A figure of law 2: records of the first collector that were `made`, `taken`, `waiting`, `evicted` or `dropped`.
    ///
    /// # Errors
    /// When the farewell does not tell it.
    pub fn law_2(&self, figure: &str) -> Result<u64> {
        number_after(&self.words, "law 2", figure).with_context(|| format!("no {figure} in {:?}", self.words))
    }

    /// The same of the collector with this name.
    ///
    /// # Errors
    /// When the farewell does not tell it.
    pub fn law_2_of(&self, collector: &str, figure: &str) -> Result<u64> {
        let law: Vec<String> = self
            .words
            .iter()
            .filter(|line| line.contains(&format!("table to {collector},")))
            .cloned()
            .collect();
        number_after(&law, "law 2", figure)
            .with_context(|| format!("no {figure} of {collector} in {:?}", self.words))
    }

    /// What the farewell says was left out for a reason (`filtered`, `sampled out`); zeros when it says nothing.
    #[must_use]
    pub fn left_out(&self, reason: &str) -> LeftOut {
        left_out(&self.words, reason)
    }

    /// IP octets of law 1 that are in records, left out or not.
    ///
    /// # Errors
    /// When the farewell does not tell it.
    pub fn reported_octets(&self) -> Result<u64> {
        number_after(&self.words, "IP octets:", "reported")
            .with_context(|| format!("no law 1 in {:?}", self.words))
    }

    /// What was lost at a drop point, in its units; 0 when the farewell does not name it.
    #[must_use]
    pub fn lost(&self, point: &str) -> u64 {
        number_after(&self.words, "lost:", point).unwrap_or(0)
    }

    /// Checks that the farewell has both laws and says that they hold.
    ///
    /// # Errors
    /// The laws, when it has not or does not.
    pub fn check_laws(&self) -> Result<()> {
        let laws: Vec<&String> = self.words.iter().filter(|line| line.contains("law ")).collect();
        ensure!(laws.len() >= 2, "a farewell without laws: {:?}", self.words);
        ensure!(laws.iter().all(|law| law.contains(" holds, ")), "{laws:?}");
        Ok(())
    }
}

/// What a policy left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the words that tell it")]
pub struct LeftOut {
    pub records: u64,
    pub octets: u64,
    pub packets: u64,
}

/// What `lines` of `up` or `loss` say was left out for a reason; zeros when they say nothing.
#[must_use]
pub fn left_out(lines: &[String], reason: &str) -> LeftOut {
    let mark = format!("left out, {reason}:");
    let number = |word: &str| number_after(lines, &mark, word).unwrap_or(0);
    LeftOut {
        records: number(&mark),
        octets: number(" with "),
        packets: number(" in "),
    }
}

/// The number after `word` on the first of `lines` that has `mark`; numbers are grouped by commas.
fn number_after(lines: &[String], mark: &str, word: &str) -> Option<u64> {
    lines.iter().find_map(|line| {
        let rest = &line[line.find(mark)?..];
        let rest = &rest[rest.find(word)? + word.len()..];
        let digits: String = rest
            .trim_start()
            .chars()
            .take_while(|c| c.is_ascii_digit() || *c == ',')
            .filter(char::is_ascii_digit)
            .collect();
        digits.parse().ok()
    })
}

/// Resident memory of a process, in octets.
///
/// # Errors
/// When it has ended.
pub fn resident_octets(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("no VmRSS")?
        .parse()?;
    Ok(kib * 1024)
}

/// A command that runs `agentctl`.
///
/// # Errors
/// When it is not built.
pub fn command() -> Result<Command> {
    Ok(Command::new(binary()?))
}

/// What `agentctl loss` says of a directory of state, whether something is lost or not.
///
/// # Errors
/// When it cannot be read, or a law does not hold.
pub fn loss(state: &Path) -> Result<String> {
    let output = command()?.args(["loss", "--state"]).arg(state).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        matches!(output.status.code(), Some(0 | 1)),
        "{}: {words}",
        output.status
    );
    ensure!(said.contains("holds") && !said.contains("BROKEN"), "{said}");
    Ok(said)
}

/// The built `agentctl`.
pub(crate) fn binary() -> Result<PathBuf> {
    let binary = std::env::var_os(BINARY_VARIABLE)
        .map_or_else(|| crate::process::built_folder().join("agentctl"), PathBuf::from);
    ensure!(
        binary.is_file(),
        "{} is not built: cargo build -p agentctl",
        binary.display()
    );
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_farewell() {
        let ended = Ended {
            status: ExitStatus::default(),
            records: Vec::new(),
            words: [
                "agentctl: law 1 holds, kernel to table, packets: observed 2 = reported 2 + held 0 + joined 0",
                "agentctl: law 2 holds, table to ntopng-1, records: made 1,012 = taken 1,000 + waiting 0 + evicted 0 + \
                 dropped 12",
                "agentctl: lost: SpoolDamaged 12 records (ntopng-1)",
                "agentctl: left out, sampled out: 2,000 records with 3,000,001 IP octets in 4,002 packets",
                "agentctl: law 1 holds, kernel to table, IP octets: observed 5 = reported 4 + held 1 + joined 0",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        assert_eq!(ended.law_2("made").expect("it is told"), 1012);
        let sampled = LeftOut {
            records: 2_000,
            octets: 3_000_001,
            packets: 4_002,
        };
        assert_eq!(
            (ended.left_out("sampled out"), ended.left_out("filtered")),
            (sampled, LeftOut::default())
        );
        assert_eq!(ended.reported_octets().expect("it is told"), 4);
        assert_eq!((ended.lost("SpoolDamaged"), ended.lost("FlowRingFull")), (12, 0));
        ended.check_laws().expect("both hold");
    }
}
