//! Open connections that do nothing, or next to nothing, both ends in one process.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};

use super::steady::closed_with_stdin;
use super::udp::raise_open_files;
use super::{Ready, Truth, tell};

/// Shares in which connections chat.
const SHARES: usize = 20;
/// Longest time until the end of standard input is seen.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Opens `connections` to a listener at `address` (port 0: any), says [`Truth::Ready`], and holds them until standard
/// input closes. Two sockets a connection. `chat_every`: time between two octets that each connection sends, which
/// nobody reads.
///
/// # Errors
/// When the limit of open files, or of ports, is too low.
pub fn idle(address: SocketAddr, connections: usize, chat_every: Option<Duration>) -> Result<()> {
    raise_open_files()?;
    let listener = TcpListener::bind(address).with_context(|| format!("bind {address}"))?;
    let address = listener.local_addr()?;
    let mut held = Vec::with_capacity(2 * connections);
    for index in 0..connections {
        let stream = TcpStream::connect(address).with_context(|| format!("connection {index}"))?;
        held.push((stream, listener.accept()?));
    }
    tell(&Truth::Ready(Ready {
        pid: std::process::id(),
        address,
    }))?;
    let closed = closed_with_stdin();
    while !closed.load(Ordering::Relaxed) {
        // A share of them at a time, so that records come evenly.
        for some in held.chunks_mut(connections.div_ceil(SHARES).max(1)) {
            if chat_every.is_some() {
                some.iter_mut()
                    .try_for_each(|(stream, _)| stream.write_all(b"."))?;
            }
            std::thread::sleep(chat_every.unwrap_or(LOOK_EVERY) / SHARES as u32);
        }
    }
    Ok(())
}
