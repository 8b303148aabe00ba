//! Loads for the benchmark: a fixed number of operations, both ends on one CPU, and the CPU time they took.
//!
//! Two processes on one CPU: what a hook costs shows as CPU time whichever end it runs at, and nothing is hidden by a
//! second CPU. Time of the whole run counts, since both processes are new: their start is the same small share with
//! and without an agent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};

use super::udp::raise_open_files;
use super::{Truth, tell};
use crate::wait::Stopwatch;

/// Octets of a block of bulk transfer.
const BLOCK_OCTETS: usize = 65_536;
/// Octets of a small message.
const SMALL_OCTETS: usize = 64;
/// Sockets that play the many peers of one UDP socket.
pub const PEERS: usize = 10_000;
/// Longest silence before the receiving end gives up, so that no failure hangs the benchmark.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One TCP stream, blocks of 64 KiB.
    Bulk,
    /// TCP connections, 100 octets there and 200 back each.
    ConnectRequestClose,
    /// One TCP connection, 64 octets there and back.
    RequestResponse,
    /// UDP, 64 octets, one peer, one way.
    Udp,
    /// UDP, 64 octets, one socket receives from 10,000.
    UdpPeers,
    /// getppid, and a socketpair used and closed: system calls without network.
    Syscalls,
}

impl Kind {
    /// All of them, in the order of the benchmark's table.
    pub const ALL: [Self; 6] = [
        Self::Bulk,
        Self::ConnectRequestClose,
        Self::RequestResponse,
        Self::Udp,
        Self::UdpPeers,
        Self::Syscalls,
    ];
}

/// A load.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// What to do.
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// Operations.
    #[arg(long)]
    pub count: u64,
    /// CPU that both ends run on.
    #[arg(long, default_value_t = 0)]
    pub cpu: usize,
    /// Address of the receiving end.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub at: SocketAddr,
}

/// What a load took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Which.
    pub load: Kind,
    /// Operations done.
    pub count: u64,
    /// CPU time of both ends, in nanoseconds.
    pub cpu_ns: u64,
    /// Time, in nanoseconds.
    pub wall_ns: u64,
}

/// Runs a load and tells what it took.
///
/// # Errors
/// When an end fails, or the CPU does not exist.
pub fn run(plan: &Plan) -> Result<()> {
    raise_open_files()?;
    let mut cpus = CpuSet::new();
    cpus.set(plan.cpu).context("no such CPU")?;
    sched_setaffinity(Pid::this(), &cpus).context("run on one CPU")?;
    let watch = Stopwatch::start();
    match plan.kind {
        Kind::Bulk => tcp(plan, bulk_in, bulk_out)?,
        Kind::ConnectRequestClose => tcp(plan, crc_in, crc_out)?,
        Kind::RequestResponse => tcp(plan, rr_in, rr_out)?,
        Kind::Udp => udp(plan, 1)?,
        Kind::UdpPeers => udp(plan, PEERS)?,
        Kind::Syscalls => syscalls(plan.count)?,
    }
    let wall_ns = u64::try_from(watch.elapsed().as_nanos())?;
    tell(&Truth::Load(Cost {
        load: plan.kind,
        count: plan.count,
        cpu_ns: cpu_ns(UsageWho::RUSAGE_SELF)? + cpu_ns(UsageWho::RUSAGE_CHILDREN)?,
        wall_ns,
    }))
}

fn tcp(
    plan: &Plan,
    receiving: fn(&TcpListener, u64) -> Result<()>,
    sending: fn(SocketAddr, u64) -> Result<()>,
) -> Result<()> {
    let listener = TcpListener::bind(plan.at)?;
    let address = listener.local_addr()?;
    let child = in_child(|| receiving(&listener, plan.count))?;
    sending(address, plan.count)?;
    wait_for(child)
}

fn bulk_in(listener: &TcpListener, _count: u64) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut block = vec![0; BLOCK_OCTETS];
    while stream.read(&mut block)? > 0 {}
    Ok(())
}

fn bulk_out(address: SocketAddr, count: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    // BBR paces by timers and hides the cost of the path behind their noise; where cubic is missing, so be it.
    let _ = rustix::net::sockopt::set_tcp_congestion(&stream, "cubic");
    let block = vec![0; BLOCK_OCTETS];
    for _ in 0..count {
        stream.write_all(&block)?;
    }
    Ok(())
}

fn crc_in(listener: &TcpListener, count: u64) -> Result<()> {
    let mut buffer = [0; 200];
    for _ in 0..count {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut buffer[..100])?;
        stream.write_all(&buffer)?;
    }
    Ok(())
}

fn crc_out(address: SocketAddr, count: u64) -> Result<()> {
    let mut buffer = [0; 256];
    for _ in 0..count {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&buffer[..100])?;
        while stream.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

fn rr_in(listener: &TcpListener, count: u64) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; SMALL_OCTETS];
    for _ in 0..count {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
    }
    Ok(())
}

fn rr_out(address: SocketAddr, count: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; SMALL_OCTETS];
    for _ in 0..count {
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
    }
    Ok(())
}

/// One way, `peers` senders in turn. Both ends share a CPU, so the receiver may lose some: that is no matter here.
fn udp(plan: &Plan, peers: usize) -> Result<()> {
    let receiver = UdpSocket::bind(plan.at)?;
    receiver.set_read_timeout(Some(SILENCE_MAX))?;
    let address = receiver.local_addr()?;
    let child = in_child(|| {
        let mut buffer = [0; SMALL_OCTETS];
        // The first octet of the last datagrams is 1.
        while receiver.recv_from(&mut buffer)?.0 > 0 && buffer[0] == 0 {}
        Ok(())
    })?;
    let senders: Vec<UdpSocket> = (0..peers)
        .map(|_| UdpSocket::bind(SocketAddr::new(address.ip(), 0)))
        .collect::<std::io::Result<_>>()?;
    let mut datagram = [0; SMALL_OCTETS];
    for (_, sender) in (0..plan.count).zip(senders.iter().cycle()) {
        sender.send_to(&datagram, address)?;
    }
    datagram[0] = 1;
    let ended = crate::wait::until_true(SILENCE_MAX, "end of the receiver", || {
        let _ = senders[0].send_to(&datagram, address);
        nix::sys::wait::waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            != Ok(nix::sys::wait::WaitStatus::StillAlive)
    });
    ended.context("the receiver did not see the last datagram")
}

fn syscalls(count: u64) -> Result<()> {
    let octet = [1];
    let mut buffer = [0; 1];
    for round in 0..count {
        let _ = std::hint::black_box(nix::unistd::getppid());
        if round % 8 == 0 {
            let (left, right) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty())?;
            rustix::io::write(&left, &octet)?;
            rustix::io::read(&right, &mut buffer)?;
        }
    }
    Ok(())
}

fn in_child(work: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let worked = work();
            if let Err(error) = &worked {
                eprintln!("receiving end: {error:#}");
            }
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { nix::libc::_exit(i32::from(worked.is_err())) }
        }
    }
}

fn wait_for(child: Pid) -> Result<()> {
    let status = nix::sys::wait::waitpid(child, None)?;
    ensure!(
        matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)),
        "the receiving end ended with {status:?}"
    );
    Ok(())
}

fn cpu_ns(who: UsageWho) -> Result<u64> {
    let usage = getrusage(who)?;
    let us = |time: nix::sys::time::TimeVal| {
        u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0)
    };
    Ok((us(usage.user_time()) + us(usage.system_time())) * 1_000)
}
