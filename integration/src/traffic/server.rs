//! TCP servers in the styles of the field.
//!
//! Each listens, says [`Truth::Ready`], serves until its standard input closes, and tells each connection's truth
//! before it closes it: a client that has seen the end of its stream may rely on the line being there.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::pattern::{self, Head};
use super::{Flow, Ready, Truth, tell};

/// Queue of connections not yet accepted. Large enough for every client here to connect at once.
const BACKLOG: i32 = 4_096;

/// How a server accepts and who talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// One thread a connection.
    Thread,
    /// One child a connection: the parent accepts, the child talks.
    Fork,
    /// Workers forked before; each accepts and talks.
    Prefork,
    /// Workers with a listener each, SO_REUSEPORT.
    Reuseport,
    /// Accepts without asking for the peer's address.
    Nameless,
    /// Accepts, then hands the socket to another program by fork and exec.
    Handover,
    /// Reads the request, then resets the connection.
    Reset,
}

/// Serves until standard input closes.
///
/// # Errors
/// When the address cannot be had, or a client does not keep to the pattern.
pub fn serve(listen: SocketAddr, style: Style, workers: usize) -> Result<()> {
    let listener = bind_at(listen, style == Style::Reuseport)?;
    let address = listener.local_addr()?;
    // Reuseport spreads over all that listen: this socket only holds the port.
    if style != Style::Reuseport {
        rustix::net::listen(&listener, BACKLOG)?;
    }
    let mut children = Vec::new();
    if matches!(style, Style::Prefork | Style::Reuseport) {
        for _ in 0..workers {
            children.push(fork_worker(&listener, address, style)?);
        }
    }
    tell(&Truth::Ready(Ready {
        pid: std::process::id(),
        address,
    }))?;
    let served = if children.is_empty() {
        accept_here(&listener, style)
    } else {
        wait_for_stdin_end()
    };
    for child in children {
        kill(child, Signal::SIGKILL).context("end a worker")?;
        nix::sys::wait::waitpid(child, None)?;
    }
    served
}

/// Talks on the accepted connection that is this process's standard input.
///
/// # Errors
/// When the client does not keep to the pattern.
pub fn talk_inherited(acceptor: u32) -> Result<()> {
    let socket = rustix::io::dup(std::io::stdin())?;
    talk(TcpStream::from(socket), acceptor, None)
}

fn bind_at(address: SocketAddr, shared: bool) -> Result<TcpListener> {
    let socket = rustix::net::socket_with(
        family(address),
        SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address).with_context(|| format!("bind {address}"))?;
    Ok(TcpListener::from(socket))
}

pub(super) fn family(address: SocketAddr) -> AddressFamily {
    match address.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}

/// Forks a worker and waits until it listens.
fn fork_worker(listener: &TcpListener, address: SocketAddr, style: Style) -> Result<Pid> {
    let (listens, tell_listens) = rustix::pipe::pipe()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(tell_listens);
            let told = rustix::io::read(&listens, &mut [0; 1])?;
            ensure!(told == 1, "a worker ended before it listened");
            Ok(child)
        }
        ForkResult::Child => {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            let own = match style {
                Style::Reuseport => bind_at(address, true)?,
                _ => listener.try_clone()?,
            };
            rustix::net::listen(&own, BACKLOG)?;
            rustix::io::write(&tell_listens, &[1])?;
            loop {
                let (stream, peer) = own.accept()?;
                talk(stream, std::process::id(), Some(peer))?;
            }
        }
    }
}

fn accept_here(listener: &TcpListener, style: Style) -> Result<()> {
    if style == Style::Fork {
        // SAFETY: ignoring a signal installs no handler; it lets the kernel reap the children.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    }
    let mut handed = Vec::new();
    while wait_for_connection(listener)? {
        if style == Style::Nameless {
            let socket = rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC)?;
            std::thread::spawn(move || talk_or_die(TcpStream::from(socket), None, false));
            continue;
        }
        let (stream, peer) = listener.accept()?;
        match style {
            Style::Fork => fork_handler(stream, peer)?,
            Style::Handover => handed.push(hand_over(stream)?),
            _ => {
                std::thread::spawn(move || talk_or_die(stream, Some(peer), style == Style::Reset));
            }
        }
    }
    for mut child in handed {
        child.wait()?;
    }
    Ok(())
}

fn fork_handler(stream: TcpStream, peer: SocketAddr) -> Result<()> {
    let acceptor = std::process::id();
    // SAFETY: this process has one thread in this style.
    if let ForkResult::Child = unsafe { fork() }? {
        let talked = talk(stream, acceptor, Some(peer));
        if let Err(error) = &talked {
            eprintln!("{error:#}");
        }
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { nix::libc::_exit(i32::from(talked.is_err())) };
    }
    Ok(())
}

fn hand_over(stream: TcpStream) -> Result<std::process::Child> {
    let me = std::env::current_exe()?;
    let child = Command::new(me)
        .args(["inherited", "--acceptor", &std::process::id().to_string()])
        .stdin(Stdio::from(OwnedFd::from(stream)))
        .spawn()?;
    Ok(child)
}

fn talk_or_die(stream: TcpStream, peer: Option<SocketAddr>, reset: bool) {
    let talked = if reset {
        read_and_reset(stream, peer)
    } else {
        talk(stream, std::process::id(), peer)
    };
    if let Err(error) = talked {
        eprintln!("{error:#}");
        // The harness must see that truth is missing.
        std::process::abort();
    }
}

/// Serves one request. `peer` is what accept said; without it the client's own word is taken.
fn talk(mut stream: TcpStream, acceptor: u32, peer: Option<SocketAddr>) -> Result<()> {
    let head = Head::read(&mut stream)?;
    pattern::read(&mut stream, pattern::HEAD_OCTETS, head.request)?;
    pattern::write(&mut stream, 0, head.reply)?;
    tell_accepted(&stream, acceptor, peer, head, head.reply)
}

fn read_and_reset(mut stream: TcpStream, peer: Option<SocketAddr>) -> Result<()> {
    let head = Head::read(&mut stream)?;
    pattern::read(&mut stream, pattern::HEAD_OCTETS, head.request)?;
    tell_accepted(&stream, std::process::id(), peer, head, 0)?;
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(())
}

fn tell_accepted(
    stream: &TcpStream,
    acceptor: u32,
    peer: Option<SocketAddr>,
    head: Head,
    sent: u64,
) -> Result<()> {
    if let Some(peer) = peer.filter(|peer| canonical(*peer) != head.client) {
        bail!("accept says that {peer} calls, the request says {}", head.client);
    }
    tell(&Truth::Stream(Flow {
        pid: acceptor,
        user_pid: std::process::id(),
        local: canonical(stream.local_addr()?),
        peer: head.client,
        sent,
        received: head.request,
        datagrams_sent: 0,
        datagrams_received: 0,
        tag: String::new(),
    }))
}

/// IPv4-mapped addresses as IPv4.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Waits for a connection; `false`: standard input closed.
pub(super) fn wait_for_connection(listener: &TcpListener) -> Result<bool> {
    loop {
        let stdin = std::io::stdin();
        let mut either = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut either, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for a connection"),
        }
        let [connection, input] = either.map(|fd| fd.any().unwrap_or(false));
        if connection {
            return Ok(true);
        }
        if input {
            return Ok(false);
        }
    }
}

/// Waits until standard input closes.
///
/// # Errors
/// When it cannot be read.
pub fn wait_for_stdin_end() -> Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
