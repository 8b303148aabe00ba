//! The use case of the field: root's curl fetches from a blacklisted address, and ntopng says who it was.

use std::io::Write;
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::collector::{self, Collector, Setup};
use integration::need::{self, Need};
use integration::netns::NetNs;
use integration::ntopng::{self, Ntopng};
use integration::product::Agent;
use integration::wait::{self, PATIENCE};
use integration::world::{BLACKLISTED_V4, World};

/// Port of the blacklisted host's web server.
const PORT: u16 = 8080;
/// Octets of the page.
const PAGE_OCTETS: usize = 20_000;
/// Longest time until ntopng shows a flow: its own sweeps, and the export before.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
const CURL: Need = Need::Program("curl", "curl");

/// Element numbers of ntopng's flow records. Source: ntopng `ZMQParserInterface.cpp`.
mod element {
    pub(super) const OCTETS_FORWARD: u32 = 1;
    pub(super) const ADDRESS_RESPONDER: u32 = 12;
    pub(super) const OCTETS_BACKWARD: u32 = 23;
    pub(super) const LATENCY_INITIATOR: u32 = 57595;
    pub(super) const LATENCY_RESPONDER: u32 = 57596;
    pub(super) const PID: u32 = 57640;
    pub(super) const NAME: u32 = 57641;
    pub(super) const USER: u32 = 57844;
    pub(super) const PARENT_PID: u32 = 57845;
    pub(super) const PARENT_NAME: u32 = 57846;
    pub(super) const UID: u32 = 57897;
}

#[test]
fn a_collector_learns_who_fetched_from_a_blacklisted_address() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) || !need::met(&[CURL]) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let agent = Agent::watching(&world.left, &["--ntopng", collector.endpoint()])?;
    let pid = fetch(&world)?;
    let flow = collector.wait_for_flow(SHOWN_WITHIN, "flow to the blacklisted address", |record| {
        record.text(element::ADDRESS_RESPONDER) == Some(BLACKLISTED_V4)
            && record.number(element::PID).is_some()
    })?;
    println!("{flow:?}");
    ensure!(flow.number(element::PID) == Some(pid.into()), "pid {pid}");
    ensure!(
        flow.text(element::NAME)
            .is_some_and(|name| name.ends_with("curl"))
    );
    ensure!(flow.number(element::UID) == Some(0) && flow.text(element::USER) == Some("root"));
    ensure!(flow.number(element::PARENT_PID) == Some(std::process::id().into()));
    ensure!(
        flow.text(element::PARENT_NAME)
            .is_some_and(|name| name.contains("use_case"))
    );
    ensure!(flow.number(element::OCTETS_FORWARD) > Some(100));
    let backward = || -> Result<u64> {
        let records = collector.flows()?;
        let of = records
            .iter()
            .filter(|record| record.text(element::ADDRESS_RESPONDER) == Some(BLACKLISTED_V4));
        Ok(of
            .filter_map(|record| record.number(element::OCTETS_BACKWARD))
            .sum())
    };
    wait::until_true(SHOWN_WITHIN, "octets of the page", || {
        backward().is_ok_and(|octets| octets > PAGE_OCTETS as u64)
    })?;
    let latencies =
        [element::LATENCY_INITIATOR, element::LATENCY_RESPONDER].map(|element| flow.decimal(element));
    ensure!(
        latencies.iter().flatten().any(|&ms| ms > 0.0),
        "no round-trip time: {latencies:?}"
    );
    agent.interrupt()?.check_laws()
}

#[test]
fn a_real_ntopng_shows_who_fetched_from_a_blacklisted_address() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[CURL]) {
        return Ok(());
    }
    let binary = match ntopng::find() {
        Ok(binary) => binary,
        Err(reason) => {
            need::skip(&reason);
            return Ok(());
        }
    };
    let world = World::build()?;
    let ntopng = Ntopng::start(&binary, &[])?;
    let agent = Agent::watching(&world.left, &["--ntopng", &ntopng.endpoint()])?;
    let pid = fetch(&world)?;
    let shown = wait::until(SHOWN_WITHIN, "flow in ntopng", || {
        let flows = ntopng.flows(&format!("&host={BLACKLISTED_V4}"))?;
        Ok(flows
            .into_iter()
            .find(|flow| flow["server"]["ip"] == BLACKLISTED_V4 && !flow["client"]["process"].is_null()))
    })?;
    println!("{shown}");
    let process = &shown["client"]["process"];
    ensure!(process["pid"] == pid, "pid {pid}: {shown}");
    let name = process["name"]
        .as_str()
        .context("the process has a name")?
        .to_owned();
    ensure!(name.ends_with("curl"), "{name}");
    wait::until(SHOWN_WITHIN, "octets in ntopng", || {
        let flows = ntopng.flows(&format!("&host={BLACKLISTED_V4}"))?;
        let octets = flows
            .iter()
            .filter_map(|flow| flow["bytes"]["total"].as_u64())
            .sum::<u64>();
        Ok((octets > PAGE_OCTETS as u64).then_some(()))
    })?;
    // Each filter finds it, and its opposite does not.
    for (filter, found) in [
        ("&username=root".to_owned(), true),
        ("&username=nobody".to_owned(), false),
        (format!("&pid_name={name}"), true),
        ("&pid_name=/usr/bin/wget".to_owned(), false),
    ] {
        let flows = ntopng.flows(&filter)?;
        let there = flows.iter().any(|flow| flow["server"]["ip"] == BLACKLISTED_V4);
        ensure!(
            there == found,
            "{filter}: {} flows, the wanted one: {there}",
            flows.len()
        );
    }
    let counters = ntopng.zmq_counters()?;
    println!("{counters}");
    ensure!(
        counters["zmq_msg_drops"] == 0 && counters["dropped_flows"] == 0,
        "{counters}"
    );
    ensure!(counters["events"].as_u64() > Some(0), "{counters}");
    agent.interrupt()?.check_laws()
}

/// Has root's curl fetch the page from the left host; curl's pid.
fn fetch(world: &World) -> Result<u32> {
    let page = Page::serve(&world.right)?;
    let url = format!("http://{BLACKLISTED_V4}:{PORT}/page");
    let mut curl = world.left.command("curl");
    curl.args([
        "-sS",
        "--noproxy",
        "*",
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
        &url,
    ])
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped());
    let child = curl.spawn().context("start curl")?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "curl: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.stdout == PAGE_OCTETS.to_string().as_bytes());
    page.end()?;
    Ok(pid)
}

/// A web server with one page, for one visitor.
struct Page(std::thread::JoinHandle<Result<()>>);

impl Page {
    fn serve(host: &NetNs) -> Result<Self> {
        let listener = host.enter(|| Ok(std::net::TcpListener::bind((BLACKLISTED_V4, PORT))?))?;
        Ok(Self(std::thread::spawn(move || {
            answer(&mut listener.accept()?.0)
        })))
    }

    fn end(self) -> Result<()> {
        wait::until_true(PATIENCE, "end of the page's visitor", || self.0.is_finished())?;
        self.0
            .join()
            .map_err(|_| anyhow::anyhow!("the web server panicked"))?
    }
}

fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut reader = std::io::BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut reader, &mut line)?;
        if line.trim().is_empty() {
            break;
        }
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {PAGE_OCTETS}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&vec![b'.'; PAGE_OCTETS])?;
    Ok(())
}
