//! Promise: what a policy leaves out as a whole is left out by the kernel; it is counted there, and a change takes it back.
//!
//! A cgroup of ours on the left host, and the product's agent in this process, whose status tells what the kernel did.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flowtilla_agent::capture::LeftOutSum;
use flowtilla_agent::run::{Agent as InProcess, Options};
use flowtilla_agent::status::AgentStatus;
use flowtilla_agent_core::flow::record::{FlowRecord, Party, Protocol};
use flowtilla_agent_core::owner::Confidence;
use flowtilla_agent_core::policy::Wanted;
use flowtilla_agent_core::session::ShortIds;
use flowtilla_proto::wire;
use integration::cgroup::{self, Cgroup};
use integration::need::{self, Need};
use integration::process::Process;
use integration::scene::{self, TOLD_WITHIN};
use integration::traffic::{self, Flow, Helper};
use integration::wait::{self, PATIENCE};
use integration::world::{Family, Place, RIGHT_V4, World};

/// Connections, and datagrams, that are compared to the octet.
const EACH: usize = 5;
/// IPv4 and TCP headers, timestamps included.
const TCP_HEADERS: u64 = 52;
/// What a SYN has more.
const SYN_OPTIONS: u64 = 8;
/// IPv4 and UDP headers.
const DATAGRAM_HEADERS: u64 = 28;

/// Sends each line of its input as a datagram, all from one socket.
const SENDER: &str = r#"exec 3<>"/dev/udp/$0/$1"; while read -r line; do printf %s "$line" >&3; done"#;

#[test]
fn the_kernel_leaves_a_cgroup_out_counts_it_and_takes_it_back() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[Need::Program("bash", "bash")]) {
        return Ok(());
    }
    let Some(root) = cgroup::root()? else {
        need::skip("no cgroup2 file system is mounted");
        return Ok(());
    };
    let world = World::build()?;
    let group = Cgroup::make(&root, &format!("outside-{}", std::process::id()), "inner")?;
    let scene = Scene::start(&world, &group)?;
    let rule = wire::FlowRule {
        cgroups: vec![format!("/{}", below(&root, group.outer())?)],
        ..wire::FlowRule::default()
    };
    let (all, without) = (wanted(&world, &[])?, wanted(&world, &[rule])?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (mut agent, mut records) = runtime.block_on(InProcess::start(Options {
        wanted: all.clone(),
        scopes: Vec::new(),
        source_id: None,
        short_ids: ShortIds::Own,
        view_records_max: 65_536,
        state: None,
    }))?;
    let status = agent.status();
    let sum = || status.borrow().left_out.sum;
    let until = |what: &str, holds: &dyn Fn(&AgentStatus) -> bool| {
        wait::until_true(TOLD_WITHIN, what, || holds(&status.borrow()))
    };
    let mut seen = Vec::new();
    let mut until_seen = |what: &str, holds: &dyn Fn(&FlowRecord) -> bool| {
        wait::until_true(TOLD_WITHIN, what, || {
            while let Ok(record) = records.try_recv() {
                seen.push(record);
            }
            seen.iter().any(|record| holds(record))
        })
        .map(|()| std::mem::take(&mut seen))
    };

    // Sockets that are older than the rule.
    let mut sender = scene.sender()?;
    sender.write_line("before")?;
    let (old, old_port) = scene.steady()?;
    until_seen("a flow of datagrams", &|record| scene.is_datagrams(record))?;
    until_seen("an older connection", &|record| port_of(record) == old_port)?;
    ensure!(sum() == LeftOutSum::default(), "{:?}", sum());

    runtime.block_on(agent.apply(&without))?;
    until("the cgroup, left out", &|status| status.left_out.cgroups == 1)?;
    // The older socket of datagrams is found by the next walk of the open files.
    wait::until_true(TOLD_WITHIN, "datagrams that are left out", || {
        sender.write_line("x").is_ok() && sum().packets > 0
    })?;
    (0..EACH).try_for_each(|_| sender.write_line("octets"))?;
    // One octet each, but for those of six: they are the last, so when each of them is counted, all are.
    let are_all = |sum: LeftOutSum| {
        let longer = 5 * EACH as u64;
        sum.connections == 0 && sum.octets == sum.packets * (DATAGRAM_HEADERS + 1) + longer
    };
    until("each datagram", &|status| are_all(status.left_out.sum)).with_context(|| format!("{:?}", sum()))?;
    let datagrams = sum();

    let clients = scene.connect()?;
    let payload: u64 = clients.iter().map(|flow| flow.sent + flow.received).sum();
    let told = |sum: LeftOutSum| {
        let headers = TCP_HEADERS * (sum.packets - datagrams.packets) + 2 * SYN_OPTIONS * EACH as u64;
        sum.connections == EACH as u64 && sum.octets - datagrams.octets == payload + headers
    };
    until("each connection, to the octet", &|status| {
        told(status.left_out.sum)
    })
    .with_context(|| format!("{:?} after {datagrams:?}; the clients' payload: {payload}", sum()))?;
    // One that begins while it is left out, and is there when it is not any more.
    let (hidden, hidden_port) = scene.steady()?;
    until("one more", &|status| {
        status.left_out.sum.connections == EACH as u64 + 1
    })?;
    let last_sum = sum();

    runtime.block_on(agent.apply(&all))?;
    until("nothing, left out", &|status| status.left_out.cgroups == 0)?;
    // What went on all the time goes on, what was opened meanwhile is found.
    let mut told = until_seen("the older connection again", &|record| {
        port_of(record) == old_port
    })?;
    // Who began a connection that is older than its sight is inferred from the ports: here they say nothing.
    let hidden_end = |party: &Party| {
        party.endpoint.port == hidden_port && party.owner.confidence == Confidence::Backfilled
    };
    told.extend(until_seen("the one that was hidden", &|record| {
        hidden_end(&record.initiator) || hidden_end(&record.responder)
    })?);
    sender.write_line("after")?;
    told.extend(until_seen("datagrams again", &|record| {
        scene.is_datagrams(record) && record.delta.forward.packets > 0
    })?);
    drop(sender);
    for helper in [old, hidden] {
        helper.finish(PATIENCE)?;
    }
    let last = runtime.block_on(agent.stop());
    while let Ok(record) = records.try_recv() {
        told.push(record);
    }
    let ports: BTreeSet<u16> = clients.iter().map(|flow| flow.local.port()).collect();
    let strange = told.iter().find(|record| ports.contains(&port_of(record)));
    ensure!(strange.is_none(), "left out, and there: {strange:?}");
    ensure!(
        last.record_law.missing() == 0 && last.kernel_law.holds() && last.left_out.sum == last_sum,
        "{last:?}"
    );
    scene.end()
}

/// The initiator's port.
fn port_of(record: &FlowRecord) -> u16 {
    record.initiator.endpoint.port
}

/// Servers on the right host; what is in the cgroup is on the left one.
struct Scene<'a> {
    world: &'a World,
    group: &'a Cgroup,
    server: Helper,
    to: String,
    echo: Helper,
    echo_to: String,
    sink: UdpSocket,
}

impl<'a> Scene<'a> {
    fn start(world: &'a World, group: &'a Cgroup) -> Result<Self> {
        let (server, _, to) = scene::serve(world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
        let (echo, _, echo_to) = scene::serve(world, Place::Wire, Family::V4, &["echo"])?;
        let sink = world.right.enter(|| Ok(UdpSocket::bind((RIGHT_V4, 0))?))?;
        Ok(Self {
            world,
            group,
            server,
            to,
            echo,
            echo_to,
            sink,
        })
    }

    fn taken_in(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = self.world.left.command(program);
        self.group.take_in(&mut command)?;
        Ok(command)
    }

    fn sender(&self) -> Result<Process> {
        let port = self.sink.local_addr()?.port().to_string();
        let mut command = self.taken_in("bash")?;
        command.args(["-c", SENDER, RIGHT_V4, &port]);
        Process::start(command)
    }

    /// A connection that stays, once it is open; its port.
    fn steady(&self) -> Result<(Helper, u16)> {
        let mut command = self.taken_in(traffic::binary())?;
        command.args(["steady", "--to", &self.echo_to, "--connections", "1"]);
        let mut helper = Helper::start_command(command)?;
        let port = helper.ready()?.address.port();
        Ok((helper, port))
    }

    /// Connections that are over.
    fn connect(&self) -> Result<Vec<Flow>> {
        let mut command = self.taken_in(traffic::binary())?;
        command.args(["connect", "--to", &self.to, "--count", &EACH.to_string()]);
        Ok(traffic::flows(&Helper::start_command(command)?.wait(PATIENCE)?))
    }

    fn is_datagrams(&self, record: &FlowRecord) -> bool {
        let port = self.sink.local_addr().map_or(0, |address| address.port());
        record.protocol == Protocol::Udp && record.responder.endpoint.port == port
    }

    fn end(self) -> Result<()> {
        for server in [self.server, self.echo] {
            server.finish(PATIENCE)?;
        }
        Ok(())
    }
}

/// The path of a cgroup below the root of the file system.
fn below<'a>(root: &Path, group: &'a Path) -> Result<&'a str> {
    let path = group.strip_prefix(root)?;
    path.to_str().context("a path of ours")
}

fn wanted(world: &World, exclude: &[wire::FlowRule]) -> Result<Wanted> {
    let scope = wire::scope::Part::Netns(world.left.path().to_string_lossy().into_owned());
    let policy = wire::Policy {
        capture: Some(wire::Capture {
            scopes: vec![wire::Scope { part: Some(scope) }],
            active_timeout_ms: Some(1_000),
            exclude: exclude.to_vec(),
            ..wire::Capture::default()
        }),
        ..wire::Policy::default()
    };
    Ok(Wanted::new(policy.try_into()?, Vec::new())?)
}
