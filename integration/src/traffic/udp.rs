//! UDP: exchanges, one reply a request, so that nothing is lost and both ends know it.
//!
//! A request's first four octets are the length of the reply wanted (u32 BE).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::server::canonical;
use super::steady::closed_with_stdin;
use super::{Flow, Ready, Truth, tell};

/// Longest wait for the reply on a local network; a datagram that takes longer is lost and fails the run.
const REPLY_WITHIN: Duration = Duration::from_secs(20);
/// Longest datagram here: fits an Ethernet frame.
const DATAGRAM_OCTETS_MAX: usize = 1_400;
/// Receive buffer of the server, in octets: 10,000 small datagrams at once.
const SERVER_BUFFER_OCTETS: usize = 16 << 20;

/// What a client does.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Where to send to.
    #[arg(long)]
    pub to: SocketAddr,
    /// Address and port of the one socket [default: any].
    #[arg(long)]
    pub from: Option<SocketAddr>,
    /// Sockets, all open at once.
    #[arg(long, default_value_t = 1)]
    pub sockets: usize,
    /// Exchanges in all, one socket after the other.
    #[arg(long, default_value_t = 1)]
    pub exchanges: usize,
    /// Goes on until standard input closes, however many exchanges that makes; says when the sockets are open.
    #[arg(long)]
    pub until_closed: bool,
    /// Pause after an exchange.
    #[arg(long, default_value_t = 0)]
    pub pause_us: u64,
    /// Connects the sockets.
    #[arg(long)]
    pub connected: bool,
    /// Octets of the first request; each further one has one more, modulo 97.
    #[arg(long, default_value_t = 64)]
    pub request: usize,
    /// Octets of the first reply; each further one has three more, modulo 101.
    #[arg(long, default_value_t = 128)]
    pub reply: usize,
}

/// Answers on one socket until standard input closes, then tells the truth of each peer.
///
/// # Errors
/// When the address cannot be had or the socket fails.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("bind {listen}"))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SERVER_BUFFER_OCTETS)
        .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SERVER_BUFFER_OCTETS))?;
    let address = socket.local_addr()?;
    tell(&Truth::Ready(Ready {
        pid: std::process::id(),
        address,
    }))?;
    let mut peers: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut buffer = [0; DATAGRAM_OCTETS_MAX];
    while wait_for_datagram(&socket)? {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        let reply = reply_wanted(&buffer[..length])?;
        let flow = peers
            .entry(peer)
            .or_insert_with(|| untouched(canonical(address), canonical(peer)));
        flow.received += length as u64;
        flow.datagrams_received += 1;
        flow.sent += socket.send_to(&buffer[..reply], peer)? as u64;
        flow.datagrams_sent += 1;
    }
    for flow in peers.into_values() {
        tell(&Truth::Datagrams(flow))?;
    }
    Ok(())
}

/// Runs the plan, then tells the truth of each socket.
///
/// # Errors
/// When a reply does not come or has another length than wanted.
pub fn exchange(plan: &Plan) -> Result<()> {
    raise_open_files()?;
    let any: SocketAddr = match plan.to.ip() {
        IpAddr::V4(_) => "0.0.0.0:0".parse()?,
        IpAddr::V6(_) => "[::]:0".parse()?,
    };
    let from = plan.from.unwrap_or(any);
    let closed = plan.until_closed.then(closed_with_stdin);
    let over = |index: usize| match &closed {
        Some(closed) => closed.load(Ordering::Relaxed),
        None => index >= plan.exchanges,
    };
    let mut sockets = Vec::new();
    for _ in 0..plan.sockets {
        let socket = UdpSocket::bind(from).with_context(|| format!("bind {from}"))?;
        socket.set_read_timeout(Some(REPLY_WITHIN))?;
        if plan.connected {
            socket.connect(plan.to)?;
        }
        let flow = untouched(canonical(socket.local_addr()?), canonical(plan.to));
        sockets.push((socket, flow));
    }
    if let (true, Some((_, first))) = (plan.until_closed, sockets.first()) {
        tell(&Truth::Ready(Ready {
            pid: first.pid,
            address: first.local,
        }))?;
    }
    let mut buffer = [0; DATAGRAM_OCTETS_MAX];
    for index in (0..).take_while(|&index| !over(index)) {
        let (socket, flow) = &mut sockets[index % plan.sockets];
        let request = plan.request + index % 97;
        let reply = plan.reply + index * 3 % 101;
        ensure!(
            request.max(reply) <= DATAGRAM_OCTETS_MAX,
            "datagrams have at most {DATAGRAM_OCTETS_MAX} octets"
        );
        buffer[..4].copy_from_slice(&u32::try_from(reply)?.to_be_bytes());
        let sent = if plan.connected {
            socket.send(&buffer[..request])?
        } else {
            socket.send_to(&buffer[..request], plan.to)?
        };
        let (received, _) = socket
            .recv_from(&mut buffer)
            .with_context(|| format!("reply of exchange {index}"))?;
        ensure!(
            received == reply,
            "a reply of {received} octets instead of {reply}"
        );
        flow.sent += sent as u64;
        flow.datagrams_sent += 1;
        flow.received += received as u64;
        flow.datagrams_received += 1;
        std::thread::sleep(Duration::from_micros(plan.pause_us));
    }
    for (_, flow) in sockets {
        tell(&Truth::Datagrams(flow))?;
    }
    Ok(())
}

/// Raises the limit of open files to what the system allows.
///
/// # Errors
/// When the system does not say.
pub fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

fn untouched(local: SocketAddr, peer: SocketAddr) -> Flow {
    Flow {
        pid: std::process::id(),
        user_pid: std::process::id(),
        local,
        peer,
        sent: 0,
        received: 0,
        datagrams_sent: 0,
        datagrams_received: 0,
        tag: String::new(),
    }
}

fn reply_wanted(request: &[u8]) -> Result<usize> {
    let head = request.first_chunk::<4>().context("a request too short")?;
    let reply = u32::from_be_bytes(*head) as usize;
    ensure!(
        reply <= DATAGRAM_OCTETS_MAX,
        "a reply of {reply} octets is wanted"
    );
    Ok(reply)
}

fn wait_for_datagram(socket: &UdpSocket) -> Result<bool> {
    let stdin = std::io::stdin();
    let mut either = [
        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
    ];
    poll(&mut either, PollTimeout::NONE).context("wait for a datagram")?;
    Ok(either[0].any().unwrap_or(false))
}
