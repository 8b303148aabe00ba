//! Scenes that several promises are tested in: traffic of one kind at one place, and the flow that belongs to a truth.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::NetNs;
use crate::product::record::Flow as ProductFlow;
use crate::traffic::{self, Flow, Helper, Ready, Truth};
use crate::world::{Family, Place, World};

/// Longest time for the traffic of a scene itself, full counts on a busy machine included.
pub const TRAFFIC_WITHIN: Duration = Duration::from_secs(600);
/// Longest time for the flows of a scene to end and be told: the idle timeout of UDP and some.
pub const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// What both ends said.
///
/// Local ports come again within seconds, so that several flows may have the same ports: they are told apart by their
/// payload, which differs from one to the next.
#[derive(Clone, Debug)]
pub struct Told {
    /// Where the server was.
    pub server: SocketAddr,
    /// The server's pid.
    pub server_pid: u32,
    /// The clients' truths.
    pub clients: Vec<Flow>,
    /// The server's truths.
    pub servers: Vec<Flow>,
    /// Client port → indexes into `servers`.
    by_port: HashMap<u16, Vec<usize>>,
}

/// Starts a helper that serves with `command` (words before `--listen`) at a place.
///
/// # Errors
/// When it does not come up.
pub fn serve(
    world: &World,
    place: Place,
    family: Family,
    command: &[&str],
) -> Result<(Helper, Ready, String)> {
    let address = World::server_address(place, family);
    let listen = match family {
        Family::Mapped => "[::]:0".to_owned(),
        Family::V4 | Family::V6 => SocketAddr::new(address, 0).to_string(),
    };
    let host = world.server_side(place);
    let (server, ready) = Helper::serve(host, &[command, &["--listen", &listen]].concat())?;
    let to = SocketAddr::new(address, ready.address.port()).to_string();
    Ok((server, ready, to))
}

/// TCP connections to a server of `style`; `plan` is the clients' (words after `connect --to ADDRESS`).
///
/// # Errors
/// When the traffic itself fails.
pub fn tcp(world: &World, place: Place, family: Family, style: &str, plan: &[&str]) -> Result<Told> {
    let serving = serve(world, place, family, &["serve", "--style", style])?;
    converse(world, serving, "connect", plan)
}

/// UDP exchanges; `plan` is the clients' (words after `udp-exchange --to ADDRESS`).
///
/// # Errors
/// When the traffic itself fails.
pub fn udp(world: &World, place: Place, family: Family, plan: &[&str]) -> Result<Told> {
    let serving = serve(world, place, family, &["udp-serve"])?;
    converse(world, serving, "udp-exchange", plan)
}

fn converse(world: &World, serving: (Helper, Ready, String), command: &str, plan: &[&str]) -> Result<Told> {
    Background::start(&world.left, serving, command, plan)?.wait()
}

impl Told {
    /// Puts both ends together.
    ///
    /// # Errors
    /// When they contradict each other: the harness's own check. Names the first flow without a mirror.
    pub fn new(server: SocketAddr, server_pid: u32, clients: Vec<Flow>, servers: Vec<Flow>) -> Result<Self> {
        let mut by_port: HashMap<u16, Vec<usize>> = HashMap::new();
        for (index, flow) in servers.iter().enumerate() {
            by_port.entry(flow.peer.port()).or_default().push(index);
        }
        let told = Self {
            server: traffic::server::canonical(server),
            server_pid,
            clients,
            servers,
            by_port,
        };
        let (ours, theirs) = (told.clients.len(), told.servers.len());
        ensure!(
            ours == theirs,
            "{ours} flows at the clients, {theirs} at the server"
        );
        for client in &told.clients {
            let mirror = told.mirror(client)?;
            ensure!(
                (client.sent, client.received) == (mirror.received, mirror.sent),
                "{client:?} and {mirror:?}"
            );
        }
        Ok(told)
    }

    /// The server's truth of a client's flow.
    ///
    /// # Errors
    /// When it told none.
    pub fn mirror(&self, client: &Flow) -> Result<&Flow> {
        let indexes = self.by_port.get(&client.local.port());
        let candidates: Vec<&Flow> = indexes
            .into_iter()
            .flatten()
            .map(|&index| &self.servers[index])
            .collect();
        let exact = candidates
            .iter()
            .find(|server| (server.received, server.sent) == (client.sent, client.received));
        exact
            .or(candidates.first())
            .copied()
            .with_context(|| format!("no mirror of {client:?}"))
    }

    /// Whether a flow of the product is of this scene.
    #[must_use]
    pub fn owns(&self, flow: &ProductFlow) -> bool {
        let record = flow.first();
        record.responder.port == self.server.port() && self.by_port.contains_key(&record.initiator.port)
    }

    /// The product's flow of a client's truth; of several with its ports the one with its payload.
    ///
    /// # Errors
    /// When there is none, or there are more flows with these ports than there were.
    pub fn find<'a>(&self, flows: &'a [ProductFlow], client: &Flow) -> Result<&'a ProductFlow> {
        let port = client.local.port();
        let candidates: Vec<&ProductFlow> = flows
            .iter()
            .filter(|flow| {
                flow.first().initiator.port == port && flow.first().responder.endpoint() == self.server
            })
            .collect();
        let there_were = self.by_port.get(&port).map_or(0, Vec::len);
        ensure!(
            candidates.len() <= there_were,
            "{} flows where there were {there_were}: {client:?}",
            candidates.len()
        );
        let exact = candidates.iter().find(|flow| {
            let total = flow.last().total;
            (total.forward.payload, total.backward.payload) == (client.sent, client.received)
        });
        exact
            .or(candidates.first())
            .copied()
            .with_context(|| format!("no flow of {client:?}"))
    }
}

/// Traffic that goes on until it is told to stop.
#[derive(Debug)]
pub struct Background {
    server: Helper,
    server_pid: u32,
    clients: Helper,
    to: String,
}

impl Background {
    /// Short TCP connections over the wire, one after the other; `plan` is more of the clients' words.
    ///
    /// # Errors
    /// When the server does not come up.
    pub fn short(world: &World, plan: &[&str]) -> Result<Self> {
        let serving = serve(world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
        Self::start(
            &world.left,
            serving,
            "connect",
            &[&["--until-closed"], plan].concat(),
        )
    }

    /// Long TCP connections over the wire, once all are open; `plan` is more of the client's words.
    ///
    /// # Errors
    /// When a connection cannot be opened.
    pub fn long(world: &World, plan: &[&str]) -> Result<Self> {
        let serving = serve(world, Place::Wire, Family::V4, &["echo"])?;
        Self::start(&world.left, serving, "steady", plan)?.ready()
    }

    /// Clients on `host` that talk with a server.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start(
        host: &NetNs,
        serving: (Helper, Ready, String),
        command: &str,
        plan: &[&str],
    ) -> Result<Self> {
        let (server, ready, to) = serving;
        let plan = [&[command, "--to", &to], plan].concat();
        Ok(Self {
            server,
            server_pid: ready.pid,
            clients: Helper::start(host, &plan)?,
            to,
        })
    }

    /// Waits until the clients are ready: those that tell.
    ///
    /// # Errors
    /// When they end before.
    pub fn ready(mut self) -> Result<Self> {
        self.clients.ready()?;
        Ok(self)
    }

    /// Port of its server.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.to
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or_default()
    }

    /// Lines that the clients told so far: connections that came to their end.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.clients.lines()
    }

    /// Brings it to an end; what both ends said.
    ///
    /// # Errors
    /// When the traffic itself failed.
    pub fn stop(self) -> Result<Told> {
        let clients = self.clients.finish(TRAFFIC_WITHIN)?;
        Self::told(&clients, self.server, self.server_pid, &self.to)
    }

    /// Waits until the clients end by themselves; what both ends said.
    ///
    /// # Errors
    /// When the traffic itself failed.
    pub fn wait(self) -> Result<Told> {
        let clients = self.clients.wait(TRAFFIC_WITHIN)?;
        Self::told(&clients, self.server, self.server_pid, &self.to)
    }

    fn told(clients: &[Truth], server: Helper, server_pid: u32, to: &str) -> Result<Told> {
        let servers = server.finish(TRAFFIC_WITHIN)?;
        Told::new(
            to.parse()?,
            server_pid,
            traffic::flows(clients),
            traffic::flows(&servers),
        )
    }
}

/// Failed connects to `to` from the left host.
///
/// # Errors
/// When one succeeds.
pub fn attempts(world: &World, to: IpAddr, port: u16, count: usize) -> Result<Vec<traffic::Attempt>> {
    let to = SocketAddr::new(to, port).to_string();
    let count = count.to_string();
    let plan = ["attempt", "--to", &to, "--count", &count];
    let told = traffic::run(&world.left, TRAFFIC_WITHIN, &plan)?;
    Ok(told
        .into_iter()
        .filter_map(|truth| match truth {
            Truth::Attempt(attempt) => Some(attempt),
            _ => None,
        })
        .collect())
}
