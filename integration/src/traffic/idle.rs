//! Open connections that do nothing, both ends in one process.

use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};

use super::server::wait_for_stdin_end;
use super::udp::raise_open_files;
use super::{Ready, Truth, tell};

/// Opens `connections` to a listener at `address` (port 0: any), says [`Truth::Ready`], and holds them until standard
/// input closes. Two sockets a connection.
///
/// # Errors
/// When the limit of open files, or of ports, is too low.
pub fn idle(address: SocketAddr, connections: usize) -> Result<()> {
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
    wait_for_stdin_end()
}
