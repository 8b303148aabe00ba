//! Promise: a flow of a pod carries namespace, pod and container as its runtime told them, however briefly it lived.
//!
//! Real pods of real containerds, by CRI: in networks of their own behind a bridge, and in the host's; on this machine's cgroups
//! and on cgroup2 alone, with the cgroupfs driver. `hosts/pods.rs` has those of systemd's driver.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cgroup::{self, Cgroup};
use integration::need::{self, Need};
use integration::pods::brief::{self, PODS, PORT};
use integration::pods::{CONTAINER, Cgroups, Class, Containerd, NAMESPACE, Pod, lacks_plugins};
use integration::process::Process;
use integration::product::Agent;
use integration::product::record::{self, Container, Record};
use integration::scene::TOLD_WITHIN;
use integration::wait::{self, PATIENCE, Stopwatch};
use integration::world::{Alone, RIGHT_V4, World};
use integration::{belongings, debian, netns, pods, soak};
use nix::sys::signal::Signal;

/// Containers of the measurement, and how long it lasts.
const AT_REST: usize = 200;
const REST_FOR: Duration = Duration::from_secs(60);
/// Names that are used, again and again: what had a name before is another pod.
const NAMES: usize = 8;
/// Two builds of a world and a runtime, and tests beside that have the machine's one world before: in a soak three of 200 pods.
const VICTIM_READY_WITHIN: Duration = Duration::from_secs(3_600);
/// Has the test of killed runs be the run that is killed, and how its one line begins.
const VICTIM: &str = "FLOWTILLA_TEST_VICTIM";

#[test]
fn brief_pods_of_containerd_1_6_go_by_their_names() -> Result<()> {
    brief_pods(None, Cgroups::AsHere)
}

#[test]
fn brief_pods_of_containerd_1_7_go_by_their_names() -> Result<()> {
    brief_pods(Some("trixie"), Cgroups::AsHere)
}

#[test]
fn brief_pods_of_a_containerd_that_tells_by_itself_go_by_their_names() -> Result<()> {
    brief_pods(Some("sid"), Cgroups::AsHere)
}

#[test]
fn brief_pods_on_cgroup2_alone_go_by_their_names() -> Result<()> {
    brief_pods(None, Cgroups::V2Alone)
}

#[test]
fn pods_older_than_an_agent_that_sees_its_own_cgroup_only_go_by_their_names() -> Result<()> {
    let Some(package) = runtime_of(None)? else {
        return Ok(());
    };
    let world = World::build()?;
    let mut runtime = Containerd::start(&world, package.as_deref(), Cgroups::AsHere)?;
    let at = SocketAddr::from((RIGHT_V4.parse::<Ipv4Addr>()?, u16::try_from(PORT)?));
    let listener = world.right.enter(|| Ok(TcpListener::bind(at)?))?;
    let pod = Pod {
        name: "web-0".to_owned(),
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        class: Class::Burstable,
        on_host: true,
        script: format!("sleep 1000 | nc {RIGHT_V4} {PORT}"),
    };
    let running = runtime.cri()?.run_pod(&pod)?;
    let (stream, _) = listener.accept()?;
    let root = cgroup::root()?.context("cgroup2 is mounted")?;
    let scope = format!("netns={}", world.left.path().display());
    let own = Cgroup::make(&root, &format!("agent-{}", std::process::id()), "inner")?;
    let socket = runtime.socket().display().to_string();
    let agent = Agent::in_cgroup_namespace(&own, &scope, &["--container-socket", &socket])?;
    // While it lives: what ended before anybody looked has no container any more.
    wait::until(TOLD_WITHIN, "the flow's first record", || {
        let records = agent.records()?;
        let is_its = |record: &Record| usize::from(record.responder.port) == PORT;
        Ok(records.iter().any(is_its).then_some(()))
    })?;
    drop(stream);
    let found = containers_by_port(&agent, 1)?;
    let wanted = Container {
        id: running.container,
        runtime: "kubernetes".to_owned(),
        name: Some(CONTAINER.to_owned()),
        pod: Some(record::Pod {
            namespace: NAMESPACE.to_owned(),
            name: pod.name,
        }),
    };
    ensure!(found[&PORT] == wanted, "{found:?}");
    agent.interrupt()?.check_laws()?;

    // A runtime that died keeps nobody from clearing what it has.
    let name = runtime.name();
    runtime.kill()?;
    ensure!(
        shims(&name)? > 0,
        "a pod lives on: {:?}",
        belongings::left(&name)?
    );
    drop(runtime);
    let left = belongings::left(&name)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn what_a_killed_run_leaves_the_next_one_sweeps_away() -> Result<()> {
    let this = "what_a_killed_run_leaves_the_next_one_sweeps_away";
    sweep_after_a_kill(this, Cgroups::AsHere)
}

#[test]
fn what_a_killed_run_leaves_on_cgroup2_alone_the_next_one_sweeps_away() -> Result<()> {
    let this = "what_a_killed_run_leaves_on_cgroup2_alone_the_next_one_sweeps_away";
    sweep_after_a_kill(this, Cgroups::V2Alone)
}

/// Kills the same test of this name while a pod runs, and sweeps.
fn sweep_after_a_kill(this: &str, cgroups: Cgroups) -> Result<()> {
    let Some(package) = runtime_of(None)? else {
        return Ok(());
    };
    if std::env::var_os(VICTIM).is_some() {
        return wait_to_be_killed(package.as_deref(), cgroups);
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", this, "--nocapture"]).env(VICTIM, "1");
    let mut victim = Process::start(command)?;
    let out = victim.out().clone();
    // Others may have the machine's one world before it.
    let name = victim.wait_for_line(out, VICTIM_READY_WITHIN, "a pod that runs", |line| {
        let (_, name) = line.split_once(VICTIM)?;
        Some(name.trim().to_owned())
    })?;
    ensure!(shims(&name)? > 0, "{:?}", belongings::left(&name)?);
    check_cgroups(&name, cgroups)?;
    victim.signal(Signal::SIGKILL)?;
    victim.wait_end(PATIENCE)?;

    let _alone = Alone::wait()?;
    belongings::sweep()?;
    netns::sweep()?;
    let left = belongings::left(&name)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Sees that the pod's cgroups are where the kubelet wants them, and in which hierarchies.
fn check_cgroups(name: &str, cgroups: Cgroups) -> Result<()> {
    let root = cgroup::root()?.context("cgroup2 is mounted")?;
    let pod = Path::new(name).join("kubepods/besteffort/pod00000000-0000-4000-8000-000000000000");
    ensure!(root.join(&pod).is_dir(), "no {}", root.join(&pod).display());
    // The memory of cgroup v1, where this machine has that.
    let memory = Path::new(cgroup::ROOT).join("memory");
    let wanted = memory.is_dir() && cgroups == Cgroups::AsHere;
    ensure!(
        memory.join(&pod).is_dir() == wanted,
        "{}",
        memory.join(&pod).display()
    );
    Ok(())
}

/// Runs a pod, says so, and waits for ever.
fn wait_to_be_killed(package: Option<&Path>, cgroups: Cgroups) -> Result<()> {
    let world = World::build()?;
    let runtime = Containerd::start(&world, package, cgroups)?;
    let pod = Pod {
        name: "web-0".to_owned(),
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        class: Class::BestEffort,
        on_host: false,
        script: "exec sleep 1000000".to_owned(),
    };
    runtime.cri()?.run_pod(&pod)?;
    println!("{VICTIM} {}", runtime.name());
    // Whoever started it holds the other end.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// How many shims a runtime has.
fn shims(name: &str) -> Result<usize> {
    let all = belongings::left(name)?;
    Ok(all.iter().filter(|it| it.contains("(containerd-shim")).count())
}

/// Package of a containerd, or the system's own; `None`: skipped.
fn runtime_of(suite: Option<&str>) -> Result<Option<Option<PathBuf>>> {
    let mut needs = [&need::WORLD[..], &pods::NEEDS].concat();
    if suite.is_none() {
        needs.push(Need::Program("containerd", "containerd"));
    }
    if !need::met(&needs) {
        return Ok(None);
    }
    if let Some(reason) = lacks_plugins() {
        need::skip(&reason);
        return Ok(None);
    }
    let Some(suite) = suite else { return Ok(Some(None)) };
    match debian::unpacked(suite, "containerd")? {
        Ok(package) => Ok(Some(Some(package))),
        Err(reason) => {
            need::skip(&reason);
            Ok(None)
        }
    }
}

/// Runs pods, half of them before the runtime is restarted, and compares.
fn brief_pods(suite: Option<&str>, cgroups: Cgroups) -> Result<()> {
    let Some(package) = runtime_of(suite)? else {
        return Ok(());
    };
    let world = World::build()?;
    let mut runtime = Containerd::start(&world, package.as_deref(), cgroups)?;
    let count = soak::count(PODS);
    let served = brief::serve(&world.right, RIGHT_V4.parse()?, count)?;
    let socket = runtime.socket().display().to_string();
    let scope = runtime.scope()?;
    let flags = ["--scope", &scope, "--container-socket", &socket];
    let agent = Agent::start_beside(&runtime, &flags)?;
    let mut wanted = BTreeMap::new();
    let halves = [0..count / 2, count / 2..count];
    for (n, half) in halves.into_iter().enumerate() {
        if n > 0 {
            runtime.restart()?;
        }
        wanted.extend(brief::run(|| runtime.cri(), &served, NAMES, half)?);
    }
    let found = containers_by_port(&agent, count)?;
    let mut nameless = 0;
    for (port, (pod, running)) in &wanted {
        let told = found
            .get(port)
            .with_context(|| format!("no flow of {pod:?} to {port}"))?;
        ensure!(
            (&told.id, told.runtime.as_str()) == (&running.container, "kubernetes"),
            "{pod:?} ({running:?}) to {port}: {told:?}"
        );
        let Some(name) = &told.name else {
            nameless += 1;
            continue;
        };
        let told_pod = told
            .pod
            .as_ref()
            .map(|pod| (pod.namespace.as_str(), pod.name.as_str()));
        ensure!(
            name == CONTAINER && told_pod == Some((NAMESPACE, &pod.name)),
            "{pod:?} to {port}: {told:?}"
        );
    }
    println!("{suite:?}, {cgroups:?}: {count} pods, {nameless} without their names");
    // Of few pods one is more than a thousandth.
    let least = usize::from(!soak::is_on());
    ensure!(
        nameless <= (count / 1_000).max(least),
        "{nameless} of {count} without their names"
    );
    agent.interrupt()?.check_laws()
}

/// Prints what many containers at rest cost the agent, beside an agent that asks nobody.
#[test]
#[ignore = "a measurement, for a quiet machine"]
fn containers_at_rest() -> Result<()> {
    let Some(package) = runtime_of(None)? else {
        return Ok(());
    };
    let world = World::build()?;
    let runtime = Containerd::start(&world, package.as_deref(), Cgroups::AsHere)?;
    let cri = runtime.cri()?;
    let pod = Pod {
        name: "rest-0".to_owned(),
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        class: Class::BestEffort,
        on_host: false,
        script: "exec sleep 1000000".to_owned(),
    };
    let running = cri.run_pod(&pod)?;
    for n in 1..AT_REST {
        cri.run_container(&pod, &running.sandbox, &format!("rest-{n}"))?;
    }
    let socket = runtime.socket().display().to_string();
    let scope = runtime.scope()?;
    for flags in [&["--no-container-names"][..], &["--container-socket", &socket]] {
        let agent = Agent::start(&[&["--scope", &scope], flags].concat())?;
        let (before, watch) = (agent.cpu_time()?, Stopwatch::start());
        wait::throughout(REST_FOR, "rest", || true)?;
        let cpu = (agent.cpu_time()? - before).as_secs_f64();
        let share = 100.0 * cpu / watch.elapsed().as_secs_f64();
        println!("{flags:?}: {AT_REST} containers at rest: {share:.3} % of a core");
        agent.interrupt()?;
    }
    Ok(())
}

/// Waits for the flows of pods to end; which container was behind each.
fn containers_by_port(agent: &Agent, count: usize) -> Result<BTreeMap<usize, Container>> {
    let ours = |port: u16| brief::is_port(port.into());
    let flows = agent.wait_for_ended(TOLD_WITHIN, count, |flow| ours(flow.first().responder.port))?;
    let mut found = BTreeMap::new();
    for flow in &flows {
        // Every record of a flow, not only the last, says the same.
        for record in &flow.parts {
            let end = &record.initiator;
            let container = end.names.as_ref().and_then(|names| names.container.clone());
            let told = container.with_context(|| format!("no container: {end:?}"))?;
            let before = found.insert(usize::from(record.responder.port), told.clone());
            ensure!(
                before.as_ref().is_none_or(|before| *before == told),
                "{before:?}, then {told:?}"
            );
        }
    }
    Ok(found)
}
