//! TCP clients.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::net::{SocketFlags, SocketType, sockopt};

use super::pattern::{self, HEAD_OCTETS, Head};
use super::server::{canonical, family, wait_for_stdin_end};
use super::steady::closed_with_stdin;
use super::{Flow, Truth, tell};

/// What a client does.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Where to connect to.
    #[arg(long)]
    pub to: SocketAddr,
    /// Address and port to connect from: one connection at a time [default: any].
    #[arg(long)]
    pub from: Option<SocketAddr>,
    /// Connections in all.
    #[arg(long, default_value_t = 1)]
    pub count: usize,
    /// Connections at once.
    #[arg(long, default_value_t = 1)]
    pub concurrent: usize,
    /// Octets of the first connection's request; each further one has one more, modulo 97.
    #[arg(long, default_value_t = 100)]
    pub request: u64,
    /// Octets of the first connection's reply; each further one has three more, modulo 101.
    #[arg(long, default_value_t = 200)]
    pub reply: u64,
    /// Goes on until standard input closes, however many connections that makes.
    #[arg(long)]
    pub until_closed: bool,
    /// Pause after a connection, of each of those at once.
    #[arg(long, default_value_t = 0)]
    pub pause_us: u64,
    /// Connects first, and talks only when standard input closes.
    #[arg(long)]
    pub hold: bool,
    /// The server resets instead of answering.
    #[arg(long)]
    pub expect_reset: bool,
    /// A word that stands in the truth, and on this command line.
    #[arg(long, default_value = "")]
    pub tag: String,
    /// Words that only stand on this command line.
    #[arg(last = true)]
    pub ignored: Vec<String>,
}

/// Runs the plan.
///
/// # Errors
/// When a connection fails or a server does not keep to the pattern.
pub fn connect(plan: &Plan) -> Result<()> {
    if plan.hold {
        return hold(plan);
    }
    let next = AtomicUsize::new(0);
    let closed = plan.until_closed.then(closed_with_stdin);
    let over = |index: usize| match &closed {
        Some(closed) => closed.load(Ordering::Relaxed),
        None => index >= plan.count,
    };
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if over(index) {
                return Ok(());
            }
            let stream = open(plan)?;
            talk(stream, plan, index).with_context(|| format!("connection {index}"))?;
            std::thread::sleep(Duration::from_micros(plan.pause_us));
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.concurrent).map(|_| scope.spawn(work)).collect();
        let mut result = Ok(());
        for thread in threads {
            result = result.and(
                thread
                    .join()
                    .map_err(|_| anyhow!("a client thread panicked"))
                    .flatten(),
            );
        }
        result
    })
}

fn hold(plan: &Plan) -> Result<()> {
    let streams = (0..plan.count).map(|_| open(plan)).collect::<Result<Vec<_>>>()?;
    let address = streams.first().context("nothing to hold")?.local_addr()?;
    tell(&Truth::Ready(super::Ready {
        pid: std::process::id(),
        address,
    }))?;
    wait_for_stdin_end()?;
    for (index, stream) in streams.into_iter().enumerate() {
        talk(stream, plan, index)?;
    }
    Ok(())
}

fn open(plan: &Plan) -> Result<TcpStream> {
    let stream = match plan.from {
        None => TcpStream::connect(plan.to).map_err(Into::into),
        Some(from) => connect_from(from, plan.to),
    };
    stream.with_context(|| format!("connect to {}", plan.to))
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = rustix::net::socket_with(family(from), SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The connection before may be in TIME_WAIT on the same port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &from).with_context(|| format!("bind {from}"))?;
    rustix::net::connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

fn talk(mut stream: TcpStream, plan: &Plan, index: usize) -> Result<()> {
    let index = index as u64;
    let local = canonical(stream.local_addr()?);
    let head = Head {
        request: plan.request.max(HEAD_OCTETS) + index % 97,
        reply: plan.reply + index * 3 % 101,
        client: local,
    };
    stream.write_all(&head.encode())?;
    pattern::write(&mut stream, HEAD_OCTETS, head.request)?;
    let received = if plan.expect_reset {
        let ended = pattern::read(&mut stream, 0, head.reply);
        ended.expect_err("a server that resets does not reply");
        0
    } else {
        pattern::read(&mut stream, 0, head.reply)?;
        pattern::read_end(&mut stream)?;
        head.reply
    };
    tell(&Truth::Stream(Flow {
        pid: std::process::id(),
        user_pid: std::process::id(),
        local,
        peer: canonical(plan.to),
        sent: head.request,
        received,
        datagrams_sent: 0,
        datagrams_received: 0,
        tag: plan.tag.clone(),
    }))
}
