//! The same with a real ntopng: what its hosts are said to have sent and received is what they did.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::need;
use integration::ntopng::{self, Ntopng};
use integration::product::{Agent, Ended};
use integration::scene;
use integration::traffic::{self, Helper};
use integration::wait::{self, PATIENCE};
use integration::wire::{self, WireCounter};
use integration::world::{Family, LEFT_V4, Place, RIGHT_V4, World};

use super::{Traffic, span};

/// Most that ntopng may be off, in parts per thousand of the wire: see the promise on truth.
const OCTETS_OFF_MAX_PER_MILLE: u64 = 5;
/// ntopng adds a flow to its hosts in its own sweeps.
const SHOWN_WITHIN: Duration = Duration::from_secs(120);
/// Segments that are sent again at least: over a second of silence.
const SENT_AGAIN_MIN: u64 = 3;

#[test]
fn ntopng_that_comes_late_and_hangs_shows_the_totals_of_the_traffic() -> Result<()> {
    let Some((binary, world)) = ready(ntopng::find())? else {
        return Ok(());
    };
    let [port] = ntopng::free_ports()?;
    let agent = Agent::watching(&world.left, &["--ntopng", &endpoint(port)])?;
    let wire = Wire::start(&world)?;
    let traffic = Traffic::start(&world)?;
    traffic.lasts(&agent, span(Duration::from_secs(60)))?;
    let ntopng = Ntopng::start_at(&binary, port, &[])?;
    traffic.goes_on(&agent)?;
    ntopng.freeze()?;
    traffic.lasts(&agent, span(Duration::from_secs(30)))?;
    ntopng.thaw()?;
    traffic.goes_on(&agent)?;
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    ensure!(ended.law_2("made")? == ended.law_2("taken")?, "{:?}", ended.words);
    shows(&ntopng, octets(&ended)?, wire.carried()?)
}

#[test]
fn ntopng_that_is_killed_shows_all_that_came_after() -> Result<()> {
    let Some((binary, world)) = ready(ntopng::find())? else {
        return Ok(());
    };
    let [port] = ntopng::free_ports()?;
    let ntopng = Ntopng::start_at(&binary, port, &[])?;
    let agent = Agent::watching(&world.left, &["--ntopng", &endpoint(port)])?;
    let wire = Wire::start(&world)?;
    let plan = ["--count", "100", "--concurrent", "4"];
    let before = scene::tcp(&world, Place::Wire, Family::V4, "thread", &plan)?;
    agent.wait_for_ended(scene::TOLD_WITHIN, before.clients.len(), |flow| before.owns(flow))?;
    ntopng.kill()?;
    let after = scene::tcp(&world, Place::Wire, Family::V4, "thread", &plan)?;
    let ntopng = Ntopng::start_at(&binary, port, &[])?;
    agent.wait_for_ended(scene::TOLD_WITHIN, after.clients.len(), |flow| after.owns(flow))?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    ensure!(ended.law_2("made")? == ended.law_2("taken")?, "{:?}", ended.words);
    // What it has forgotten with its death is sent again as far as it may not have been read: here all of it, since it
    // is fewer messages than its queue holds.
    shows(&ntopng, octets(&ended)?, wire.carried()?)
}

#[test]
fn ntopng_shows_at_a_flow_what_was_sent_again() -> Result<()> {
    shows_what_was_sent_again(ntopng::find(), &[])
}

#[test]
fn ntopng_5_2_shows_at_a_flow_what_was_sent_again() -> Result<()> {
    shows_what_was_sent_again(ntopng::find_52(), &["--encoding", "nestedJson"])
}

/// At the flow, that is: to hosts and to the interface ntopng adds it twice, whoever sends it (`encode/nested.rs`).
fn shows_what_was_sent_again(binary: Result<PathBuf, String>, flags: &[&str]) -> Result<()> {
    let Some((binary, world)) = ready(binary)? else {
        return Ok(());
    };
    let ntopng = Ntopng::start(&binary, &[])?;
    let (endpoint, timeout) = (ntopng.endpoint(), ["--active-timeout", "2s"]);
    let flags = [&["--ntopng", &endpoint][..], &timeout, flags].concat();
    let agent = Agent::watching(&world.left, &flags)?;
    let (echo, _, to) = scene::serve(&world, Place::Wire, Family::V4, &["echo"])?;
    let echo_port = to.parse::<SocketAddr>()?.port();
    let mut command = world.left.command(traffic::binary());
    command.args(["steady", "--to", &to, "--connections", "1"]);
    let mut steady = Helper::start_command(command)?;
    let port = steady.ready()?.address.port();
    let before = wire::sent_again(&world.left)?;
    wire::swallow(&world.right, echo_port)?;
    wait::until_true(PATIENCE, "segments that are sent again", || {
        wire::sent_again(&world.left).is_ok_and(|now| now >= before + SENT_AGAIN_MIN)
    })?;
    wire::let_through(&world.right)?;
    let mut last = None;
    let shown = wait::until(SHOWN_WITHIN, "what was sent again, in ntopng", || {
        let flows = agent.flows()?;
        let flow = flows.iter().find(|flow| flow.first().initiator.port == port);
        let parts = flow.iter().flat_map(|flow| &flow.parts);
        let told: u32 = parts
            .filter_map(|part| Some(part.tcp.as_ref()?.retransmits_forward))
            .sum();
        let shown = sent_again_shown(&ntopng, port)?;
        let kernel = wire::sent_again(&world.left)?;
        last = Some((shown, told, kernel));
        Ok((shown == Some((told.into(), 0)) && u64::from(told) == kernel).then_some(()))
    });
    shown.with_context(|| format!("(ntopng (of the client, of the server), records, kernel): {last:?}"))?;
    for helper in [steady, echo] {
        helper.finish(PATIENCE)?;
    }
    agent.interrupt()?.check_laws()
}

/// Of the client of this port, and of its server, at the flow; `None`: ntopng has no such flow.
fn sent_again_shown(ntopng: &Ntopng, port: u16) -> Result<Option<(u64, u64)>> {
    let answer =
        ntopng.ask("/lua/rest/v2/get/flow/active.lua?ifid=0&perPage=100&currentPage=1&verbose=true")?;
    let flows = answer["rsp"]["data"].as_array().into_iter().flatten();
    let flow = flows.into_iter().find(|flow| flow["client"]["port"] == port);
    Ok(flow.and_then(|flow| {
        let both = &flow["tcp"]["retransmissions"];
        Some((both["cli2srv"].as_u64()?, both["srv2cli"].as_u64()?))
    }))
}

fn ready(binary: Result<PathBuf, String>) -> Result<Option<(PathBuf, World)>> {
    if !need::met(&need::WORLD) || !need::met(&[super::NFT]) {
        return Ok(None);
    }
    match binary {
        Ok(binary) => Ok(Some((binary, World::build()?))),
        Err(reason) => {
            need::skip(&reason);
            Ok(None)
        }
    }
}

fn endpoint(port: u16) -> String {
    format!("tcp://127.0.0.1:{port}")
}

/// Octets of all records, from the left host and to it.
fn octets(ended: &Ended) -> Result<(u64, u64)> {
    let of = |flow: &integration::product::record::Flow| flow.last().total;
    let flows = ended.flows()?;
    let left = flows.iter().filter(|flow| {
        let (from, to) = (flow.first().initiator.address, flow.first().responder.address);
        from.to_string() == LEFT_V4 && to.to_string() == RIGHT_V4
    });
    Ok(left.map(of).fold((0, 0), |sum, total| {
        (sum.0 + total.forward.octets, sum.1 + total.backward.octets)
    }))
}

/// What the wire carried between both hosts.
struct Wire<'a> {
    left: WireCounter<'a>,
    right: WireCounter<'a>,
}

impl<'a> Wire<'a> {
    fn start(world: &'a World) -> Result<Self> {
        Ok(Self {
            left: WireCounter::start(&world.left)?,
            right: WireCounter::start(&world.right)?,
        })
    }

    /// IP octets from the left host, and to it.
    fn carried(&self) -> Result<(u64, u64)> {
        Ok((self.right.read()?.tcp.octets, self.left.read()?.tcp.octets))
    }
}

/// Waits until both hosts have the totals of the records, and sees that these are what the wire carried.
fn shows(ntopng: &Ntopng, wanted: (u64, u64), carried: (u64, u64)) -> Result<()> {
    let mut left = (0, 0);
    let waited = wait::until(SHOWN_WITHIN, "totals in ntopng", || {
        left = ntopng.host_octets(LEFT_V4)?;
        Ok((left == wanted).then_some(()))
    });
    println!("ntopng says {left:?} of the left host, the records {wanted:?}, the wire {carried:?}");
    waited?;
    for (shown, carried) in [(left.0, carried.0), (left.1, carried.1)] {
        ensure!(
            shown.abs_diff(carried) * 1000 <= carried * OCTETS_OFF_MAX_PER_MILLE,
            "ntopng shows {shown} octets, the wire carried {carried}"
        );
    }
    let right = ntopng.host_octets(RIGHT_V4)?;
    ensure!(
        right == (left.1, left.0),
        "the right host {right:?}, the left {left:?}"
    );
    let counters = ntopng.zmq_counters()?;
    println!("{counters}");
    ensure!(
        counters["zmq_msg_drops"] == 0 && counters["dropped_flows"] == 0,
        "{counters}"
    );
    Ok(())
}
