//! Hosts on one switch, and traffic between them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};

use crate::netns::NetNs;
use crate::scene::{Background, Told};
use crate::traffic::{Helper, Ready};
use crate::world::{Alone, INTERFACE};

/// Hosts that are joined by a switch. Host `n` has the addresses `10.78.0.(n + 1)` and, for traffic that is to be told
/// from the rest by its addresses, `10.79.0.(n + 1)`.
#[derive(Debug)]
pub struct Hub {
    /// The hosts.
    pub hosts: Vec<NetNs>,
    _switch: NetNs,
    /// Declared last: released when all hosts are gone.
    _alone: Alone,
}

impl Hub {
    /// Builds so many hosts, once no other world is left.
    ///
    /// # Errors
    /// When not root or a tool is missing: ask [`need::met`](crate::need::met) before.
    pub fn build(count: u8) -> Result<Self> {
        let alone = Alone::wait()?;
        let switch = NetNs::create("switch")?;
        switch.run("ip", &["link", "add", "switch0", "type", "bridge"])?;
        switch.run("ip", &["link", "set", "switch0", "up"])?;
        let mut hosts = Vec::new();
        for n in 0..count {
            let host = NetNs::create(&format!("host{n}"))?;
            let path = switch.path();
            let name = path
                .file_name()
                .context("a namespace has a name")?
                .to_string_lossy();
            let port = format!("port{n}");
            host.run(
                "ip",
                &[
                    "link", "add", INTERFACE, "type", "veth", "peer", "name", &port, "netns", &name,
                ],
            )?;
            host.offload_off(INTERFACE)?;
            for address in [Self::address(n), Self::second_address(n)] {
                let address = format!("{address}/24");
                host.run("ip", &["addr", "add", &address, "dev", INTERFACE])?;
            }
            host.run("ip", &["link", "set", INTERFACE, "up"])?;
            switch.run("ip", &["link", "set", &port, "master", "switch0", "up"])?;
            hosts.push(host);
        }
        Ok(Self {
            hosts,
            _switch: switch,
            _alone: alone,
        })
    }

    /// Address of a host.
    #[must_use]
    pub fn address(n: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 78, 0, n + 1))
    }

    /// The other address of a host.
    #[must_use]
    pub fn second_address(n: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 79, 0, n + 1))
    }

    /// TCP connections from one host to another; `plan` is more of the clients' words.
    ///
    /// # Errors
    /// When the traffic itself fails.
    pub fn tcp(&self, from: u8, to: u8, plan: &[&str]) -> Result<Told> {
        self.tcp_to(from, to, SocketAddr::new(Self::address(to), 0), plan)
    }

    /// UDP exchanges from one host with another; `plan` is more of the clients' words.
    ///
    /// # Errors
    /// When the traffic itself fails.
    pub fn udp(&self, from: u8, to: u8, plan: &[&str]) -> Result<Told> {
        self.udp_to(from, to, SocketAddr::new(Self::address(to), 0), plan)
    }

    /// The same, to an address of the other host, and from the client's in the same network; port 0: any.
    ///
    /// # Errors
    /// When the traffic itself fails.
    pub fn tcp_to(&self, from: u8, to: u8, at: SocketAddr, plan: &[&str]) -> Result<Told> {
        let serving = self.serve(to, at, &["serve", "--style", "thread"])?;
        self.talk(from, serving, "connect", plan)
    }

    /// The same, to an address of the other host, and from the client's in the same network; port 0: any.
    ///
    /// # Errors
    /// When the traffic itself fails.
    pub fn udp_to(&self, from: u8, to: u8, at: SocketAddr, plan: &[&str]) -> Result<Told> {
        let serving = self.serve(to, at, &["udp-serve"])?;
        self.talk(from, serving, "udp-exchange", plan)
    }

    fn talk(&self, from: u8, serving: (Helper, Ready, String), command: &str, plan: &[&str]) -> Result<Told> {
        Background::start(&self.hosts[usize::from(from)], serving, command, plan)?.wait()
    }

    /// Long TCP connections to a server on a port of its own, once all are open; `plan` is more of the client's words.
    ///
    /// # Errors
    /// When a connection cannot be opened.
    pub fn long_tcp(&self, from: u8, (to, port): (u8, u16), plan: &[&str]) -> Result<Background> {
        let serving = self.serve(to, SocketAddr::new(Self::address(to), port), &["echo"])?;
        Background::start(&self.hosts[usize::from(from)], serving, "steady", plan)?.ready()
    }

    /// TCP connections that are open, and talk only when they are told to stop.
    ///
    /// # Errors
    /// When a connection cannot be opened.
    pub fn held_tcp(&self, from: u8, (to, port): (u8, u16), plan: &[&str]) -> Result<Background> {
        let serving = self.serve(
            to,
            SocketAddr::new(Self::address(to), port),
            &["serve", "--style", "thread"],
        )?;
        let plan = [&["--hold"], plan].concat();
        Background::start(&self.hosts[usize::from(from)], serving, "connect", &plan)?.ready()
    }

    /// UDP exchanges with a server on a port of its own, until they are told to stop.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub fn long_udp(&self, from: u8, (to, port): (u8, u16), plan: &[&str]) -> Result<Background> {
        let serving = self.serve(to, SocketAddr::new(Self::address(to), port), &["udp-serve"])?;
        let plan = [&["--until-closed"], plan].concat();
        Background::start(&self.hosts[usize::from(from)], serving, "udp-exchange", &plan)?.ready()
    }

    fn serve(&self, to: u8, at: SocketAddr, command: &[&str]) -> Result<(Helper, Ready, String)> {
        let (host, listen) = (&self.hosts[usize::from(to)], at.to_string());
        let (server, ready) = Helper::serve(host, &[command, &["--listen", &listen]].concat())?;
        let at = SocketAddr::new(at.ip(), ready.address.port()).to_string();
        Ok((server, ready, at))
    }
}
