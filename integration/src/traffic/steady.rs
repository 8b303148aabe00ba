//! Long-lived TCP connections with steady traffic: blocks of the pattern, each sent back by the server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::pattern;
use super::server::{canonical, wait_for_connection, wait_for_stdin_end};
use super::{Flow, Ready, Truth, tell};

/// Octets read by one system call of the server.
const READ_OCTETS: usize = 16_384;

/// What the client does.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Where to connect to.
    #[arg(long)]
    pub to: SocketAddr,
    /// Connections, all open until standard input closes.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Octets of a block.
    #[arg(long, default_value_t = 700)]
    pub block: u64,
    /// Pause between two blocks of a connection.
    #[arg(long, default_value_t = 20_000)]
    pub every_us: u64,
}

/// Sends back what comes, until standard input closes; tells each connection's truth at its end.
///
/// # Errors
/// When the address cannot be had.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("bind {listen}"))?;
    tell(&Truth::Ready(Ready {
        pid: std::process::id(),
        address: listener.local_addr()?,
    }))?;
    let mut threads = Vec::new();
    while wait_for_connection(&listener)? {
        let (stream, peer) = listener.accept()?;
        threads.push(std::thread::spawn(move || send_back(stream, peer)));
    }
    join(threads)
}

/// Talks on all connections until standard input closes, then tells their truths.
///
/// # Errors
/// When a connection fails or does not bring back what was sent.
pub fn run(plan: &Plan) -> Result<()> {
    let closed = closed_with_stdin();
    let mut threads = Vec::new();
    let mut first = None;
    for _ in 0..plan.connections {
        let stream = TcpStream::connect(plan.to).with_context(|| format!("connect to {}", plan.to))?;
        first = first.or(Some(stream.local_addr()?));
        let (plan, closed) = (plan.clone(), Arc::clone(&closed));
        threads.push(std::thread::spawn(move || talk(stream, &plan, &closed)));
    }
    tell(&Truth::Ready(Ready {
        pid: std::process::id(),
        address: first.context("no connections")?,
    }))?;
    join(threads)
}

/// A flag that is set when standard input closes.
pub(super) fn closed_with_stdin() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&closed);
    std::thread::spawn(move || {
        // Standard input that fails is closed as well.
        let _ = wait_for_stdin_end();
        theirs.store(true, Ordering::Relaxed);
    });
    closed
}

fn talk(mut stream: TcpStream, plan: &Plan, closed: &AtomicBool) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut octets = 0;
    while !closed.load(Ordering::Relaxed) {
        pattern::write(&mut stream, octets, octets + plan.block)?;
        pattern::read(&mut stream, octets, octets + plan.block)?;
        octets += plan.block;
        std::thread::sleep(Duration::from_micros(plan.every_us));
    }
    stream.shutdown(Shutdown::Write)?;
    pattern::read_end(&mut stream)?;
    tell_end(stream.local_addr()?, plan.to, octets)
}

fn send_back(mut stream: TcpStream, peer: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; READ_OCTETS];
    let mut octets = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return tell_end(stream.local_addr()?, peer, octets);
        }
        stream.write_all(&buffer[..length])?;
        octets += length as u64;
    }
}

fn tell_end(local: SocketAddr, peer: SocketAddr, octets: u64) -> Result<()> {
    tell(&Truth::Stream(Flow {
        pid: std::process::id(),
        user_pid: std::process::id(),
        local: canonical(local),
        peer: canonical(peer),
        sent: octets,
        received: octets,
        datagrams_sent: 0,
        datagrams_received: 0,
        tag: String::new(),
    }))
}

fn join(threads: Vec<std::thread::JoinHandle<Result<()>>>) -> Result<()> {
    threads.into_iter().try_for_each(|thread| {
        thread
            .join()
            .map_err(|_| anyhow!("a thread of steady traffic panicked"))?
    })
}
