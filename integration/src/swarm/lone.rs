//! One session in a process of its own, as on an agent's host: what it costs when nothing is to be done.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flowtilla_grpc::channel::Address;
use flowtilla_proto::token::JoinToken;
use tokio::sync::mpsc;

use super::agent::Simulated;
use crate::fleet::binary;
use crate::process::{self, own_cpu_time, print_line};
use crate::wait::{self, PATIENCE, Stopwatch};

/// The program that has [`run`] as its command `lone`.
const PROGRAM: &str = "swarm";

/// The process.
#[derive(Debug)]
pub struct Process(process::Process);

impl Process {
    /// Starts it, and waits until its session is idle. It is watched for `span` from then on.
    ///
    /// # Errors
    /// When it is not built, or does not connect.
    pub fn start(controller: &Address, token: &JoinToken, span: Duration) -> Result<Self> {
        let mut command = Command::new(binary(PROGRAM)?);
        command
            .args(["lone", "--controller", &controller.to_string()])
            .args(["--span-s", &span.as_secs().to_string()]);
        let mut process = process::Process::start(command)?;
        // On its standard input, because others see arguments.
        process.write_line(&token.expose())?;
        let lines = process.out().clone();
        process.wait_for_line(lines, PATIENCE, "a lone agent that is connected", |line| {
            line.contains("connected").then_some(())
        })?;
        Ok(Self(process))
    }

    /// Share of a core that it took.
    ///
    /// # Errors
    /// When it ends in another way.
    pub fn finish(mut self, within: Duration) -> Result<f64> {
        let status = self.0.wait_end(within)?;
        ensure!(status.success(), "the lone agent ended with {status}");
        let last = self.0.out().all().pop().context("what it cost")?;
        Ok(last.parse()?)
    }
}

/// What the process does: connects with the token of its standard input, and prints what the session took in the span after.
///
/// # Errors
/// When it is refused.
pub fn run(controller: &Address, span: Duration) -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let token = JoinToken::parse(line.trim())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (told, _applied) = mpsc::channel(1);
    let watch = Stopwatch::start();
    let mut agent = runtime.block_on(Simulated::enrol(u32::MAX, token, controller.clone(), told, watch))?;
    runtime.block_on(agent.set_off(controller))?;
    wait::until_true(PATIENCE, "a session", || agent.is_connected())?;
    let connected = || agent.is_connected();
    wait::throughout(SETTLE, "a session that goes on", connected)?;
    print_line(&"connected")?;
    let (cpu, begin) = (own_cpu_time()?, watch.elapsed());
    // Not `wait`: its looks would count.
    std::thread::sleep(span);
    ensure!(agent.is_connected(), "the session has ended");
    let share = (own_cpu_time()? - cpu).as_secs_f64() / (watch.elapsed() - begin).as_secs_f64();
    println!("{share}");
    std::io::stdout().flush()?;
    runtime.block_on(super::agent::end(vec![agent]))
}

/// Pause after the session has begun: its first offer is behind it.
const SETTLE: Duration = Duration::from_secs(2);
