//! Promise: an operator sees in a minute who does how much on all hosts, and how well it goes: `agentctl top` and `/metrics`.
//!
//! Generators of known traffic on two hosts of a fleet, in cgroups as systemd and a container runtime name them, over a line
//! with a known delay; a third host answers without an agent.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cgroup::{self, Cgroup};
use integration::fleet::{Controller, Hub, Member};
use integration::need::{self, Need};
use integration::process::run;
use integration::scene::TOLD_WITHIN;
use integration::traffic::{self, Flow, Helper};
use integration::wait::{self, PATIENCE};
use integration::world::INTERFACE;
use serde_json::Value;

const POLICY: &str = "apiVersion: flowtilla/v1\nkind: Policy\nname: all\ncapture: {udp: false}\n";
/// What the line of the first host adds to each packet that leaves it.
const DELAY: Duration = Duration::from_millis(20);
/// Smoothed round-trip times are at least the delay, but for the clock's ticks; and far below this on any machine.
const RTT_MAX: Duration = Duration::from_secs(2);
/// Connections of the generator in the unit, and octets of the first of their requests and replies.
const CONNECTIONS: u64 = 20;
const PLAN: [&str; 6] = ["--count", "20", "--request", "5000", "--reply", "40000"];
/// Connects to a closed port.
const ATTEMPTS: u64 = 3;
/// A container id as runtimes make them, and what is shown of it.
const CONTAINER: &str = "5d1a1d1e0a7b4c9f8e2d3c4b5a69788796a5b4c3d2e1f0011223344556677889";
const CONTAINER_SHOWN: &str = "5d1a1d1e0a7b";
/// Least and most octets of headers in a packet: IPv4 and TCP, without and with all options.
const HEADERS: (u64, u64) = (40, 80);

#[test]
fn top_tells_who_did_how_much_on_which_host_and_how_well() -> Result<()> {
    let Some(scene) = Scene::build()? else {
        return Ok(());
    };
    let pid = std::process::id();
    let unit = Cgroup::make(&scene.root, &format!("top-unit-{pid}"), "shop.service")?;
    let failing = Cgroup::make(&scene.root, &format!("top-failing-{pid}"), "_failing.service")?;
    let contained = Cgroup::make(
        &scene.root,
        &format!("top-docker-{pid}"),
        &format!("docker-{CONTAINER}.scope"),
    )?;
    let delayed = scene.delay()?;

    let (server, to) = scene.serve(1)?;
    let flows = scene.run(&unit, &[&["connect", "--to", &to], &PLAN[..]].concat())?;
    let nobody = scene.closed_port()?.to_string();
    scene.run(
        &failing,
        &["attempt", "--to", &nobody, "--count", &ATTEMPTS.to_string()],
    )?;
    let once = scene.run(
        &contained,
        &["connect", "--to", &to, "--request", "900000", "--reply", "70000"],
    )?;
    server.finish(PATIENCE)?;

    let client = scene.row("processes", &[], "h0", |row| {
        row["process"]["unit"] == "shop.service"
            && row["total"]["flowsClient"] == CONNECTIONS
            && is_whole(row, &flows)
    })?;
    let program = client["process"]["program"].as_str().unwrap_or_default();
    ensure!(program.ends_with("/traffic"), "{client}");
    let (sent, received) = payload(&flows);
    is_about(&client, "Sent", sent)?;
    is_about(&client, "Received", received)?;
    ensure!(
        client["total"]["flowsServer"] == 0 && client["total"]["failed"] == 0,
        "{client}"
    );
    let rtt = Duration::from_micros(client["total"]["rttUs"].as_u64().context("a round-trip time")?);
    ensure!(rtt < RTT_MAX, "{rtt:?}");
    if delayed {
        ensure!(rtt >= DELAY * 9 / 10, "{rtt:?}");
    }
    // In the window there is no more than in all.
    for figure in [
        "flowsClient",
        "octetsSent",
        "octetsReceived",
        "retransmits",
        "failed",
    ] {
        let of = |which: &str| client[which][figure].as_u64();
        ensure!(
            of("window") <= of("total") && of("window").is_some(),
            "{figure}: {client}"
        );
    }

    // The other end of the same connections, on the other host: nothing is lost on the line.
    let both = [flows, once.clone()].concat();
    let server = scene.row("processes", &[], "h1", |row| {
        row["total"]["flowsServer"] == CONNECTIONS + 1 && is_whole_server(row, &both)
    })?;
    let (sent, received) = payload(&both);
    is_about(&server, "Received", sent)?;
    is_about(&server, "Sent", received)?;

    let failed = scene.row("processes", &["--sort", "failed", "-n", "1"], "h0", |row| {
        row["total"]["failed"] == ATTEMPTS
    })?;
    ensure!(failed["process"]["unit"] == "failing.service", "{failed}");

    let container = scene.row("containers", &["-l", "role=client"], "h0", |row| {
        is_whole(row, &once)
    })?;
    ensure!(container["container"]["id"] == CONTAINER, "{container}");
    is_about(&container, "Sent", once[0].sent)?;
    // Whose a container's users are, the host's list does not say.
    let user = scene.row("users", &["--sort", "flows"], "h0", |row| {
        row["total"]["flowsClient"] == CONNECTIONS + ATTEMPTS
    })?;
    ensure!(user["user"]["name"] == "root", "{user}");
    let busiest = scene.row("flows", &["-n", "1"], "h0", |row| is_whole(row, &once))?;
    let ends = |end: &str| {
        (
            busiest["flow"][end]["address"].clone(),
            busiest["flow"][end]["port"].clone(),
        )
    };
    ensure!(
        ends("client") == (Hub::address(0).to_string().into(), once[0].local.port().into()),
        "{busiest}"
    );
    ensure!(ends("server").0 == Hub::address(1).to_string(), "{busiest}");
    ensure!(
        busiest["flow"]["client"]["container"] == CONTAINER_SHOWN,
        "{busiest}"
    );

    let page = scene.metrics()?;
    let series = |name: &str| {
        let series = format!("flowtilla_agent_container_{name}_total{{container=\"{CONTAINER_SHOWN}\"}} ");
        page.lines()
            .find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok())
    };
    for (name, figure) in [
        ("sent_octets", "octetsSent"),
        ("received_octets", "octetsReceived"),
    ] {
        ensure!(
            series(name) == container["total"][figure].as_f64(),
            "{name}: {page}"
        );
    }
    ensure!(series("client_flows") == Some(1.0), "{page}");
    ensure!(
        series("rtt_seconds") > Some(0.0) && series("rtt_samples") >= Some(1.0),
        "{page}"
    );
    Ok(())
}

#[test]
fn top_prints_a_table_and_names_who_does_not_answer() -> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    let unit = Cgroup::make(
        &scene.root,
        &format!("top-table-{}", std::process::id()),
        "shop.service",
    )?;
    let (server, to) = scene.serve(1)?;
    scene.run(&unit, &[&["connect", "--to", &to], &PLAN[..]].concat())?;
    server.finish(PATIENCE)?;
    scene.row("processes", &[], "h0", |row| {
        row["process"]["unit"] == "shop.service"
    })?;
    // An agent has two seconds to answer: on a busy machine it may take more than one call.
    let output = wait::until(PATIENCE, "answers of both agents", || {
        let output = scene.controller.ctl(&["top", "processes", "--once"])?;
        let both = output.stderr.is_empty() && words(&output.stdout).contains("shop.service");
        Ok(both.then_some(output))
    })?;
    let table = words(&output.stdout);
    ensure!(output.status.success(), "{output:?}");
    let mut lines = table.lines();
    let first = lines.next().unwrap_or_default();
    ensure!(
        first.starts_with("processes by octets   2 agents   last "),
        "{table}"
    );
    let head = lines.next().unwrap_or_default();
    ensure!(head.contains("PROCESS") && head.contains("RUNS IN"), "{table}");
    ensure!(
        lines.any(|line| line.contains("traffic") && line.contains("shop.service")),
        "{table}"
    );
    ensure!(table.lines().all(|line| line.chars().count() <= 80), "{table}");

    // One that ends is not connected; the other answers all the same.
    let gone = scene.controller.agent("h1")?.context("an agent")?["id"].clone();
    let gone = gone.as_str().context("an id")?.to_owned();
    scene.members[1].stop()?;
    let alone = format!("agentctl: {gone}: it is not connected\n");
    let output = wait::until(PATIENCE, "an answer without the agent that has gone", || {
        let output = scene.controller.ctl(&["top", "users", "--once"])?;
        Ok((words(&output.stderr) == alone).then_some(output))
    })?;
    ensure!(output.status.success(), "somebody has answered: {output:?}");
    ensure!(
        words(&output.stdout).starts_with("users by octets   1 of 2 agents   "),
        "{output:?}"
    );
    let output = scene.controller.ctl(&["top", "users", "--agent", &gone])?;
    ensure!(
        output.status.code() == Some(1),
        "who was named has not: {output:?}"
    );
    let output = scene.controller.ctl(&["top", "users", "-l", "role=nobody"])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(
        words(&output.stderr).contains("no agent has these labels"),
        "{output:?}"
    );
    Ok(())
}

/// Two hosts with agents, h0 with the label `role=client`, and one without.
struct Scene {
    members: [Member; 2],
    controller: Controller,
    metrics: SocketAddr,
    root: std::path::PathBuf,
    /// Declared last: its namespaces go last.
    hub: Hub,
}

impl Scene {
    /// `None`: the machine cannot.
    fn build() -> Result<Option<Self>> {
        if !need::met(&need::WORLD) {
            return Ok(None);
        }
        let Some(root) = cgroup::root()? else {
            need::skip("no cgroup2 file system is mounted");
            return Ok(None);
        };
        let hub = Hub::build(3)?;
        let controller = Controller::start()?;
        // Free a moment ago; a page that cannot be served ends the agent, and is seen.
        let metrics = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let served = ["--metrics", &metrics.to_string()];
        let members = [
            Member::join_with(&controller, &hub, 0, &["role=client"], &served)?,
            Member::join(&controller, &hub, 1, &["role=server"])?,
        ];
        controller.deploy_all(POLICY)?;
        Ok(Some(Self {
            members,
            controller,
            metrics,
            root,
            hub,
        }))
    }

    /// Delays what leaves the first host; whether this kernel can.
    fn delay(&self) -> Result<bool> {
        if let Some(why) = Need::Program("tc", "iproute2").lacks() {
            println!("no delay: {why}");
            return Ok(false);
        }
        let delay = format!("{}ms", DELAY.as_millis());
        let mut command = self.hub.hosts[0].command("tc");
        command.args(["qdisc", "add", "dev", INTERFACE, "root", "netem", "delay", &delay]);
        let delayed = run(&mut command);
        if let Err(error) = &delayed {
            println!("no delay: {error:#}");
        }
        Ok(delayed.is_ok())
    }

    fn serve(&self, host: u8) -> Result<(Helper, String)> {
        let listen = SocketAddr::new(Hub::address(host), 0).to_string();
        let words = ["serve", "--style", "thread", "--listen", &listen];
        let (server, ready) = Helper::serve(&self.hub.hosts[usize::from(host)], &words)?;
        let to = SocketAddr::new(Hub::address(host), ready.address.port());
        Ok((server, to.to_string()))
    }

    /// A port of the third host on which nobody listens.
    fn closed_port(&self) -> Result<SocketAddr> {
        self.hub.hosts[2].enter(|| {
            let listener = TcpListener::bind((Hub::address(2), 0))?;
            Ok(listener.local_addr()?)
        })
    }

    /// Runs a generator on the first host, in a cgroup; its flows.
    fn run(&self, group: &Cgroup, words: &[&str]) -> Result<Vec<Flow>> {
        let mut command = self.hub.hosts[0].command(traffic::binary());
        command.args(words);
        group.take_in(&mut command)?;
        Ok(traffic::flows(&Helper::start_command(command)?.wait(PATIENCE)?))
    }

    /// Waits until `top` shows such a row of this host.
    fn row(&self, view: &str, more: &[&str], host: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let id = self.controller.agent(host)?.context("an agent")?["id"].clone();
        let mut last = String::new();
        let found = wait::until(TOLD_WITHIN, "a row of top", || {
            last = self
                .controller
                .must(&[&["top", view, "-o", "json"], more].concat())?;
            let told: Value = serde_json::from_str(&last)?;
            let rows = told["rows"].as_array().context("rows")?;
            Ok(rows.iter().find(|row| row["agent"] == id && is_it(row)).cloned())
        });
        found.with_context(|| format!("{view} {more:?} of {host}: {last}"))
    }

    fn metrics(&self) -> Result<String> {
        let mut line = TcpStream::connect_timeout(&self.metrics, PATIENCE)?;
        line.set_read_timeout(Some(PATIENCE))?;
        line.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        line.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Payload octets that clients sent and received.
fn payload(flows: &[Flow]) -> (u64, u64) {
    flows.iter().fold((0, 0), |(sent, received), flow| {
        (sent + flow.sent, received + flow.received)
    })
}

/// Whether a row has all payload of these flows, as their client.
fn is_whole(row: &Value, flows: &[Flow]) -> bool {
    let (sent, received) = payload(flows);
    row["total"]["octetsSent"].as_u64() >= Some(sent)
        && row["total"]["octetsReceived"].as_u64() >= Some(received)
}

/// The same, as their server.
fn is_whole_server(row: &Value, flows: &[Flow]) -> bool {
    let (sent, received) = payload(flows);
    row["total"]["octetsReceived"].as_u64() >= Some(sent)
        && row["total"]["octetsSent"].as_u64() >= Some(received)
}

/// Whether IP octets one way are the payload and the headers of as many packets as are told.
fn is_about(row: &Value, way: &str, payload: u64) -> Result<()> {
    let of = |figure: &str| row["total"][format!("{figure}{way}")].as_u64();
    let (octets, packets) = (of("octets").context("octets")?, of("packets").context("packets")?);
    let headers = octets
        .checked_sub(payload)
        .with_context(|| format!("{way}: less than {payload}: {row}"))?;
    ensure!(
        (packets * HEADERS.0..=packets * HEADERS.1).contains(&headers),
        "{way}: {octets} octets and {packets} packets of {payload} octets of payload: {row}"
    );
    Ok(())
}

fn words(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}
