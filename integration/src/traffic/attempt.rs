//! Connects that are meant to fail.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::server::canonical;
use super::{Attempt, Truth, tell};

/// Tries to connect `count` times, one after the other.
///
/// # Errors
/// When a connect succeeds.
pub fn attempt(to: SocketAddr, count: usize) -> Result<()> {
    for _ in 0..count {
        let (family, any): (_, SocketAddr) = match to.ip() {
            IpAddr::V4(_) => (AddressFamily::INET, "0.0.0.0:0".parse()?),
            IpAddr::V6(_) => (AddressFamily::INET6, "[::]:0".parse()?),
        };
        let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Bound before, because a socket whose connect failed has forgotten its port.
        rustix::net::bind(&socket, &any)?;
        let local_port = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?.port();
        let Err(error) = rustix::net::connect(&socket, &to) else {
            bail!("the connect to {to} was to fail, and succeeded");
        };
        let error = nix::errno::Errno::from_raw(error.raw_os_error());
        tell(&Truth::Attempt(Attempt {
            pid: std::process::id(),
            local_port,
            peer: canonical(to),
            error: format!("{error:?}"),
        }))?;
    }
    Ok(())
}
