//! Promise: a policy leaves out what it says, nothing else, and counts that exactly.
//!
//! What arrives is read at a real collector: libzmq's SUB, nDPI for the payloads.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flowtilla_agent::status::AgentStatus;
use flowtilla_agent_core::policy::Wanted;
use flowtilla_proto::wire;
use integration::cgroup::{self, Cgroup};
use integration::collector::ndpi::Elements;
use integration::collector::{self, Collector, Setup};
use integration::in_process;
use integration::need::{self, Need};
use integration::product::{self, Agent};
use integration::scene::{self, Background, TOLD_WITHIN};
use integration::traffic::{self, Flow, Helper};
use integration::wait::{self, PATIENCE};
use integration::world::{Family, Place, World};

/// Element numbers of ntopng's flow records. Source: ntopng `ZMQParserInterface.cpp`.
mod element {
    pub(super) const OCTETS_FORWARD: u32 = 1;
    pub(super) const PACKETS_FORWARD: u32 = 2;
    pub(super) const PORT_INITIATOR: u32 = 7;
    pub(super) const PORT_RESPONDER: u32 = 11;
    pub(super) const OCTETS_BACKWARD: u32 = 23;
    pub(super) const PACKETS_BACKWARD: u32 = 24;
    pub(super) const PID_INITIATOR: u32 = 57640;
}

const SETPRIV: Need = Need::Program("setpriv", "util-linux");
/// User `nobody` of Debian.
const NOBODY: &str = "65534";
/// Connections of each kind.
const EACH: usize = 5;
/// Where connections go that outlive an agent.
const STEADY_PORT: u16 = 7_443;
/// IPv4 and TCP headers, timestamps included.
const TCP_HEADERS: u64 = 52;
/// What a SYN has more.
const SYN_OPTIONS: u64 = 8;
/// IPv4 and UDP headers.
const DATAGRAM_HEADERS: u64 = 28;

/// Ports of initiator and responder.
type Ends = (u16, u16);

/// What tells the connections of a kind from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Plain,
    Address,
    Port,
    Process,
    User,
    Cgroup,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Plain,
        Self::Address,
        Self::Port,
        Self::Process,
        Self::User,
        Self::Cgroup,
    ];
}

#[test]
fn rules_choose_by_address_port_process_user_and_cgroup() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) || !need::met(&[SETPRIV]) {
        return Ok(());
    }
    let Some(root) = cgroup::root()? else {
        need::skip("no cgroup2 file system is mounted");
        return Ok(());
    };
    let world = World::build()?;
    let talk = Talk::prepare(&world, &root)?;
    let cgroup = talk.group.outer().strip_prefix(&root)?;
    let rules = [
        ("--exclude", Kind::Address, "cidr=fd77::/64".to_owned()),
        ("--include", Kind::Address, "cidr=fd77::2".to_owned()),
        ("--exclude", Kind::Port, format!("port={}", port(&talk.second)?)),
        (
            "--include",
            Kind::Port,
            format!("port={0}-{0}", port(&talk.second)?),
        ),
        ("--exclude", Kind::Process, "process=else*".to_owned()),
        (
            "--include",
            Kind::Process,
            format!("process={}", talk.elsewhere.display()),
        ),
        ("--exclude", Kind::User, "user=nobody".to_owned()),
        ("--include", Kind::User, format!("user={NOBODY}")),
        // Not the cgroup alone: its servers are on this host too, and would tell what it does (outside.rs).
        (
            "--exclude",
            Kind::Cgroup,
            format!("cgroup=/{},cidr=10.77.0.0/16", cgroup.display()),
        ),
        (
            "--include",
            Kind::Cgroup,
            format!("cgroup=/{}/inner,cidr=10.77.0.0/16", cgroup.display()),
        ),
    ];
    for (flag, kind, rule) in rules {
        follows(&world, &talk, flag, kind, &rule).with_context(|| format!("{flag} {rule}"))?;
    }
    talk.end()
}

/// One run of an agent with one rule, which is about one kind.
fn follows(world: &World, talk: &Talk<'_>, flag: &str, kind: Kind, rule: &str) -> Result<()> {
    let collector = Collector::bind(Setup::default())?;
    let right = format!("netns={}", world.right.path().display());
    let flags = ["--scope", &right, "--ntopng", collector.endpoint(), flag, rule];
    let agent = Agent::watching(&world.left, &flags)?;
    let mut expected = BTreeSet::new();
    let mut all = BTreeSet::new();
    for one in Kind::ALL {
        let ends = talk.connect(one)?;
        ensure!(ends.len() == EACH, "{one:?}: {} connections", ends.len());
        if (one == kind) == (flag == "--include") {
            expected.extend(ends.iter().copied());
        }
        all.extend(ends);
    }
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    let records = all_of(&collector, ended.law_2("made")?)?;
    let arrived: BTreeSet<Ends> = records.iter().filter_map(ends_of).collect();
    ensure!(arrived == expected, "{arrived:?} arrived, not {expected:?}");
    let left_out = ended.left_out("filtered");
    ensure!(
        left_out.records >= (all.len() - expected.len()) as u64,
        "{left_out:?} of {} flows",
        all.len()
    );
    let (octets, _) = sums(&records);
    ensure!(
        octets + left_out.octets == ended.reported_octets()?,
        "{octets} octets arrived, {left_out:?}: {:?}",
        ended.words
    );
    // The view has what the collector has.
    let shown: BTreeSet<Ends> = ended
        .records
        .iter()
        .map(|record| (record.initiator.port, record.responder.port))
        .collect();
    ensure!(shown == expected, "{shown:?} were shown");
    Ok(())
}

#[test]
fn one_udp_flow_in_four_is_kept_and_the_rest_is_counted_to_the_octet() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let agent = Agent::watching(
        &world.left,
        &["--ntopng", collector.endpoint(), "--sample", "1/4"],
    )?;
    let told = scene::udp(
        &world,
        Place::Wire,
        Family::V4,
        &["--sockets", "2000", "--exchanges", "4000"],
    )?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    let records = all_of(&collector, ended.law_2("made")?)?;
    share_is_fair(&records, ended.flows()?.len(), &told.clients, 4)?;
    let (octets, packets) = sums(&records);
    let left_out = ended.left_out("sampled out");
    let datagrams = |flow: &Flow| flow.datagrams_sent + flow.datagrams_received;
    let truth_packets: u64 = told.clients.iter().map(datagrams).sum();
    let truth_octets: u64 = told
        .clients
        .iter()
        .map(|flow| flow.sent + flow.received + DATAGRAM_HEADERS * datagrams(flow))
        .sum();
    ensure!(
        (octets + left_out.octets, packets + left_out.packets) == (truth_octets, truth_packets),
        "{octets} octets in {packets} packets arrived, {left_out:?}; the generator: {truth_octets} in {truth_packets}"
    );
    Ok(())
}

#[test]
fn one_tcp_connection_in_four_is_kept_whole() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let right = format!("netns={}", world.right.path().display());
    let flags = [
        "--scope",
        &right,
        "--ntopng",
        collector.endpoint(),
        "--sample=1/4",
    ];
    let agent = Agent::watching(&world.left, &flags)?;
    let plan = ["--count", "3000", "--concurrent", "4"];
    let told = scene::tcp(&world, Place::Wire, Family::V4, "thread", &plan)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    let records = all_of(&collector, ended.law_2("made")?)?;
    share_is_fair(&records, ended.flows()?.len(), &told.clients, 4)?;
    let left_out = ended.left_out("sampled out");
    let (octets, _) = sums(&records);
    ensure!(
        octets + left_out.octets == ended.reported_octets()?,
        "{octets} octets arrived, {left_out:?}: {:?}",
        ended.words
    );
    // What is kept is whole: its payload is that of the generator.
    for flow in ended.flows()? {
        let payload = (
            flow.last().total.forward.payload,
            flow.last().total.backward.payload,
        );
        let port = flow.first().initiator.port;
        let mut there = told.clients.iter().filter(|client| client.local.port() == port);
        ensure!(
            there.any(|client| (client.sent, client.received) == payload),
            "{payload:?} at port {port}"
        );
    }
    Ok(())
}

#[test]
fn the_agents_own_export_connection_can_be_left_out() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    for excluded in [false, true] {
        let collector = Collector::bind(Setup {
            host: Some(&world.left),
            ..Setup::default()
        })?;
        let at = port(collector.endpoint())?;
        let rule = format!("--exclude=process=agentctl,port={at}");
        let mut flags = vec!["--ntopng", collector.endpoint()];
        flags.extend(excluded.then_some(rule.as_str()));
        let agent = Agent::watching_from(&world.left, &world.left, &flags)?;
        let own = |record: &Elements| record.number(element::PORT_RESPONDER) == Some(at.into());
        if !excluded {
            let flow = collector.wait_for_flow(TOLD_WITHIN, "the export connection itself", own)?;
            ensure!(
                flow.number(element::PID_INITIATOR) == Some(agent.pid().into()),
                "{flow:?}"
            );
            agent.interrupt()?.check_laws()?;
            continue;
        }
        // Older than these: its first record is due before theirs.
        let plan = ["--count", "20", "--concurrent", "4"];
        let told = scene::tcp(&world, Place::Wire, Family::V4, "thread", &plan)?;
        wait::until_true(TOLD_WITHIN, "records of other connections", || {
            collector
                .flows()
                .is_ok_and(|flows| flows.len() >= told.clients.len())
        })?;
        let ended = agent.interrupt()?;
        ended.check_laws()?;
        ensure!(ended.left_out("filtered").records > 0, "{:?}", ended.words);
        let records = all_of(&collector, ended.law_2("made")?)?;
        ensure!(!records.iter().any(own), "it is among {} records", records.len());
    }
    Ok(())
}

#[test]
fn what_was_left_out_is_summed_over_runs_a_kill_included() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().to_string_lossy().into_owned();
    let (server, _, to) = scene::serve(&world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
    let rule = format!("port={}", port(&to)?);
    let endpoint = collector.endpoint();
    let flags = ["--ntopng", endpoint, "--state", &state, "--exclude", &rule];
    let plan = ["connect", "--to", &to, "--count", "20"];
    let told = || -> Result<product::LeftOut> {
        let lines: Vec<String> = product::loss(folder.path())?.lines().map(str::to_owned).collect();
        Ok(product::left_out(&lines, "filtered"))
    };

    let agent = Agent::watching(&world.left, &flags)?;
    traffic::run(&world.left, PATIENCE, &plan)?;
    wait::until_true(TOLD_WITHIN, "what was left out, on disk", || {
        told().is_ok_and(|left_out| left_out.records >= 20)
    })?;
    agent.kill()?;
    let killed = told()?;

    let agent = Agent::watching(&world.left, &flags)?;
    traffic::run(&world.left, PATIENCE, &plan)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    server.finish(PATIENCE)?;
    let (last, all) = (ended.left_out("filtered"), told()?);
    ensure!(last.records >= 20, "{last:?}");
    let sum = (
        killed.records + last.records,
        killed.octets + last.octets,
        killed.packets + last.packets,
    );
    ensure!(
        sum == (all.records, all.octets, all.packets),
        "{killed:?} and {last:?} are not {all:?}"
    );
    ensure!(product::loss(folder.path())?.contains("law 3 holds"));
    Ok(())
}

#[test]
fn a_connection_that_one_run_leaves_out_and_the_next_keeps_is_told_once() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().to_string_lossy().into_owned();
    let rule = |port: u16| format!("--exclude=port={port}");
    let flags = [
        "--ntopng",
        collector.endpoint(),
        "--state",
        &state,
        "--active-timeout=1s",
    ];
    // The first agent sees the connections begin.
    let first = Agent::watching(&world.left, &[&flags[..], &[&rule(STEADY_PORT)]].concat())?;
    let to = format!("10.77.0.2:{STEADY_PORT}");
    let (server, _) = Helper::serve(&world.right, &["echo", "--listen", &to])?;
    let (clients, _) = Helper::serve(&world.left, &["steady", "--to", &to, "--connections", "4"])?;
    wait::until_true(TOLD_WITHIN, "what was left out, on disk", || {
        product::loss(folder.path()).is_ok_and(|said| {
            let lines: Vec<String> = said.lines().map(str::to_owned).collect();
            product::left_out(&lines, "filtered").records >= 8
        })
    })?;
    let first = first.interrupt()?;
    first.check_laws()?;
    ensure!(
        first.records.is_empty() && collector.flows()?.is_empty(),
        "left out, and there"
    );

    let second = Agent::watching(&world.left, &flags)?;
    wait::until_true(TOLD_WITHIN, "records of each connection", || {
        collector.flows().is_ok_and(|flows| flows.len() >= 12)
    })?;
    let clients = traffic::flows(&clients.finish(PATIENCE)?);
    server.finish(PATIENCE)?;
    let second = second.interrupt()?;
    second.check_laws()?;
    let records = all_of(&collector, second.law_2("made")?)?;
    let ((octets, packets), left_out) = (sums(&records), first.left_out("filtered"));
    ensure!(
        left_out.packets > 0 && packets > 0,
        "{left_out:?}, {packets} packets arrived"
    );
    // The generator's payload is what both runs have without the headers: no octet is missing, none is there twice.
    let headers = TCP_HEADERS * (left_out.packets + packets) + SYN_OPTIONS * 2 * clients.len() as u64;
    let payload = (left_out.octets + octets).saturating_sub(headers);
    let truth: u64 = clients.iter().map(|client| client.sent + client.received).sum();
    ensure!(
        payload == truth,
        "{payload} octets of payload, the generator's {truth}: {left_out:?}, {octets} octets in {packets} packets arrived"
    );
    Ok(())
}

#[test]
fn a_change_at_run_time_is_seen_in_what_arrives_and_detaches_nothing() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let traffic = Background::long(&world, &["--connections", "4"])?;
    let rule = wire::FlowRule {
        ports: vec![traffic.port().to_string()],
        ..wire::FlowRule::default()
    };
    let wanted = |exclude: &[wire::FlowRule], memory| wanted(&world, &collector, exclude, memory);
    let (runtime, mut agent, mut shown) = in_process::start(wanted(std::slice::from_ref(&rule), None)?)?;
    let status = agent.status();
    let filtered = |status: &AgentStatus| status.record_law.filtered.records;
    let until = |what: &str, holds: &dyn Fn(&AgentStatus) -> bool| {
        wait::until_true(TOLD_WITHIN, what, || holds(&status.borrow()))
    };
    let arrived = || -> Result<usize> { Ok(collector.flows()?.len()) };

    until("records left out", &|status| filtered(status) >= 8)?;
    ensure!(arrived()? == 0, "left out, and there");

    runtime.block_on(agent.apply(&wanted(&[], None)?))?;
    wait::until(TOLD_WITHIN, "records of each connection", || {
        let ends: BTreeSet<Ends> = collector.flows()?.iter().filter_map(ends_of).collect();
        Ok((ends.len() == 4 && arrived()? >= 8).then_some(()))
    })?;

    runtime.block_on(agent.apply(&wanted(&[rule], None)?))?;
    let before = filtered(&status.borrow());
    until("records left out again", &|status| filtered(status) >= before + 4)?;
    let made = status.borrow().records;
    let kept = all_of(&collector, made)?.len();
    until("more of them", &|status| filtered(status) >= before + 12)?;
    ensure!(arrived()? == kept, "{kept} were kept, and more came");

    // A process of tests has more than the least that may be allowed.
    runtime.block_on(agent.apply(&wanted(&[], Some(8 << 20))?))?;
    until(
        "a limit that is passed",
        &|status| matches!(status.over_limits.as_slice(), [over] if over.starts_with("limits.memoryOctets: ")),
    )?;
    runtime.block_on(agent.apply(&wanted(&[], None)?))?;
    until("no limit any more", &|status| status.over_limits.is_empty())?;

    traffic.stop()?;
    let last = runtime.block_on(agent.stop());
    let records = all_of(&collector, last.records)?;
    let (octets, packets) = sums(&records);
    let left_out = last.record_law.filtered;
    ensure!(
        last.record_law.missing() == 0 && last.kernel_law.holds(),
        "{last:?}"
    );
    ensure!(
        (octets + left_out.octets, packets + left_out.packets)
            == (last.kernel_law.reported_octets, last.kernel_law.reported_packets),
        "{octets} octets in {packets} packets arrived, {last:?}"
    );
    let mut flows = BTreeSet::new();
    while let Ok(record) = shown.try_recv() {
        flows.insert((record.id.cookie, record.id.stream));
    }
    ensure!(flows.len() == 4, "a flow was cut in two: {flows:?}");
    Ok(())
}

fn wanted(
    world: &World,
    collector: &Collector,
    exclude: &[wire::FlowRule],
    memory_octets: Option<u64>,
) -> Result<Wanted> {
    let scope = wire::scope::Part::Netns(world.left.path().to_string_lossy().into_owned());
    let policy = wire::Policy {
        capture: Some(wire::Capture {
            udp: Some(false),
            scopes: vec![wire::Scope { part: Some(scope) }],
            active_timeout_ms: Some(1_000),
            exclude: exclude.to_vec(),
            ..wire::Capture::default()
        }),
        export: Some(wire::Export {
            collectors: vec!["here".to_owned()],
            ..wire::Export::default()
        }),
        limits: Some(wire::Limits {
            cpu_permille: None,
            memory_octets,
        }),
        ..wire::Policy::default()
    };
    let here = wire::Collector {
        name: "here".to_owned(),
        endpoint: collector.endpoint().to_owned(),
        ..wire::Collector::default()
    };
    Ok(Wanted::new(policy.try_into()?, vec![here.try_into()?])?)
}

/// Servers on the right host, and clients of each kind on the left one.
struct Talk<'a> {
    world: &'a World,
    servers: Vec<Helper>,
    first: String,
    second: String,
    /// Over IPv6.
    third: String,
    /// Copies of the helper: under another name, and for other users.
    elsewhere: PathBuf,
    everyone: PathBuf,
    group: Cgroup,
    _folder: tempfile::TempDir,
}

impl<'a> Talk<'a> {
    fn prepare(world: &'a World, root: &std::path::Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut servers = Vec::new();
        let mut serve = |family| -> Result<String> {
            let (server, _, to) = scene::serve(world, Place::Wire, family, &["serve", "--style", "thread"])?;
            servers.push(server);
            Ok(to)
        };
        let (first, second, third) = (serve(Family::V4)?, serve(Family::V4)?, serve(Family::V6)?);
        Ok(Self {
            world,
            servers,
            first,
            second,
            third,
            elsewhere: traffic::copy_for_everyone(folder.path(), "elsewhere")?,
            everyone: traffic::copy_for_everyone(folder.path(), "traffic")?,
            group: Cgroup::make(root, &format!("policy-{}", std::process::id()), "inner")?,
            _folder: folder,
        })
    }

    /// Connections of one kind.
    fn connect(&self, kind: Kind) -> Result<Vec<Ends>> {
        let to = match kind {
            Kind::Port => &self.second,
            Kind::Address => &self.third,
            Kind::Plain | Kind::Process | Kind::User | Kind::Cgroup => &self.first,
        };
        let left = &self.world.left;
        let mut command: Command = match kind {
            Kind::Process => left.command(&self.elsewhere),
            // Only after the namespace is entered: that takes root.
            Kind::User => left.command("setpriv"),
            Kind::Plain | Kind::Address | Kind::Port | Kind::Cgroup => left.command(traffic::binary()),
        };
        if kind == Kind::User {
            command
                .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
                .arg(&self.everyone);
        }
        if kind == Kind::Cgroup {
            self.group.take_in(&mut command)?;
        }
        command.args(["connect", "--to", to, "--count", &EACH.to_string()]);
        let flows = traffic::flows(&Helper::start_command(command)?.wait(PATIENCE)?);
        Ok(flows
            .iter()
            .map(|flow| (flow.local.port(), flow.peer.port()))
            .collect())
    }

    fn end(self) -> Result<()> {
        self.servers
            .into_iter()
            .try_for_each(|server| server.finish(PATIENCE).map(drop))
    }
}

/// The `kept` share of the generator's flows is near to one in `one_in`, by six standard deviations of a fair draw, and
/// nothing else arrived.
fn share_is_fair(records: &[Elements], kept: usize, clients: &[Flow], one_in: u64) -> Result<()> {
    let ends = |flow: &Flow| (flow.local.port(), flow.peer.port());
    let there: BTreeSet<Ends> = clients.iter().map(ends).collect();
    let strange = records
        .iter()
        .filter_map(ends_of)
        .find(|ends| !there.contains(ends));
    ensure!(strange.is_none(), "a flow that never was: {strange:?}");
    let (n, share) = (clients.len() as f64, 1.0 / one_in as f64);
    let (off, spread) = (kept as f64 - n * share, 6.0 * (n * share * (1.0 - share)).sqrt());
    println!("{kept} of {} flows kept", clients.len());
    ensure!(off.abs() <= spread, "{kept} of {} flows are kept", clients.len());
    Ok(())
}

/// All `made` records, once the collector has read them; no more.
fn all_of(collector: &Collector, made: u64) -> Result<Vec<Elements>> {
    let made = usize::try_from(made)?;
    wait::until_true(PATIENCE, "all records that were taken", || {
        collector.flows().is_ok_and(|flows| flows.len() >= made)
    })?;
    let records = collector.flows()?;
    ensure!(records.len() == made, "{} records of {made}", records.len());
    Ok(records)
}

fn ends_of(record: &Elements) -> Option<Ends> {
    let port = |element| record.number(element).and_then(|port| u16::try_from(port).ok());
    Some((port(element::PORT_INITIATOR)?, port(element::PORT_RESPONDER)?))
}

/// IP octets and packets, both ways.
fn sums(records: &[Elements]) -> (u64, u64) {
    let sum = |elements: [u32; 2]| {
        records
            .iter()
            .flat_map(|record| elements.map(|element| record.number(element).unwrap_or(0)))
            .sum()
    };
    (
        sum([element::OCTETS_FORWARD, element::OCTETS_BACKWARD]),
        sum([element::PACKETS_FORWARD, element::PACKETS_BACKWARD]),
    )
}

/// Port of `ADDRESS:PORT`.
fn port(address: &str) -> Result<u16> {
    let port = address.rsplit(':').next().unwrap_or_default();
    port.parse().with_context(|| format!("the port of {address}"))
}
