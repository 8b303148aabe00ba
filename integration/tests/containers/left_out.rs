//! Promise: a policy leaves out containers by name, image and namespace, and the kernel does it by itself: those that are
//! there, those that come later, and none any more when the policy changes.

use anyhow::{Result, ensure};
use flowtilla_agent::status::AgentStatus;
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::policy::Wanted;
use flowtilla_proto::wire;
use integration::in_process;
use integration::need;
use integration::scene::TOLD_WITHIN;
use integration::wait;
use integration::world::World;

use super::{IMAGE, Kind, PORT, Runtime, needs, serve};

/// A container as a kubelet names those of Docker: its labels are believed then.
const IN_POD: &str = "k8s_web_web-0_shop_u-1_0";
/// Ports that are served, each for one connection.
const PORTS: usize = 8;

#[test]
fn the_kernel_leaves_out_containers_by_name_image_and_namespace() -> Result<()> {
    if !need::met(&needs(Kind::Docker)) {
        return Ok(());
    }
    let world = World::build()?;
    let docker = Runtime::start(Kind::Docker, &world)?;
    serve(&world, PORTS)?;
    let pod = |label: &str, value: &str| format!("--label=io.kubernetes.{label}={value}");
    let pod = [
        pod("pod.namespace", "shop"),
        pod("pod.name", "web-0"),
        pod("container.name", "web"),
    ];
    start(&docker, "loud-1", &[])?;
    start(&docker, "kept", &[])?;
    start(&docker, IN_POD, &pod)?;
    // Labels alone may be its image's.
    start(&docker, "claims", &pod)?;
    let rule = |set: fn(&mut wire::FlowRule) -> &mut Vec<String>, text: &str| {
        let mut rule = wire::FlowRule::default();
        set(&mut rule).push(text.into());
        rule
    };
    let loud = || rule(|rule| &mut rule.containers, "loud-*");
    let shop = rule(|rule| &mut rule.namespaces, "shop");
    let image = rule(|rule| &mut rule.images, "localhost/*:1");

    let (runtime, mut agent, mut records) = in_process::start(wanted(&world, &docker, &[loud(), shop])?)?;
    let status = agent.status();
    let until = |what: &str, holds: &dyn Fn(&AgentStatus) -> bool| {
        wait::until_true(TOLD_WITHIN, what, || holds(&status.borrow()))
    };
    let connections = || status.borrow().left_out.sum.connections;
    let mut seen: Vec<FlowRecord> = Vec::new();
    let mut until_seen = |name: &str, port: usize| {
        wait::until_true(TOLD_WITHIN, &format!("a flow of {name} to {port}"), || {
            while let Ok(record) = records.try_recv() {
                seen.push(FlowRecord::clone(&record));
            }
            let ours = |record: &FlowRecord| usize::from(record.responder.endpoint.port) == port;
            seen.iter()
                .any(|record| ours(record) && container_of(record) == Some(name))
        })
        .map(|()| seen.clone())
    };

    until("two containers, left out", &|status| status.left_out.cgroups == 2)?;
    let filtered = status.borrow().record_law.filtered.records;
    for (name, port) in [("loud-1", PORT), (IN_POD, PORT + 1), ("kept", PORT + 2)] {
        connect(&docker, name, port)?;
    }
    until("two connections, left out", &|status| {
        status.left_out.sum.connections == 2
    })?;
    until_seen("kept", PORT + 2)?;
    until("their octets", &|status| status.left_out.sum.octets > 0)?;
    // The table never saw them: nothing was left for the filter.
    ensure!(
        status.borrow().record_law.filtered.records == filtered,
        "{:?}",
        *status.borrow()
    );

    runtime.block_on(agent.apply(&wanted(&world, &docker, &[image])?))?;
    until("all of an image, left out", &|status| {
        status.left_out.cgroups == 4
    })?;
    connect(&docker, "kept", PORT + 3)?;
    until("one more", &|status| status.left_out.sum.connections == 3)?;

    runtime.block_on(agent.apply(&wanted(&world, &docker, &[])?))?;
    until("nothing, left out", &|status| status.left_out.cgroups == 0)?;
    connect(&docker, "loud-1", PORT + 4)?;
    until_seen("loud-1", PORT + 4)?;

    runtime.block_on(agent.apply(&wanted(&world, &docker, &[loud()])?))?;
    until("one container, left out", &|status| status.left_out.cgroups == 1)?;
    remove(&docker, "loud-1")?;
    until("none, because it ended", &|status| status.left_out.cgroups == 0)?;
    start(&docker, "loud-2", &[])?;
    until("one that came later", &|status| status.left_out.cgroups == 1)?;
    let before = connections();
    connect(&docker, "loud-2", PORT + 5)?;
    until("its connection", &|status| {
        status.left_out.sum.connections == before + 1
    })?;
    connect(&docker, "kept", PORT + 6)?;
    let told = until_seen("kept", PORT + 6)?;
    let strange = told.iter().find(|record| {
        let port = usize::from(record.responder.endpoint.port);
        [PORT, PORT + 1, PORT + 3, PORT + 5].contains(&port)
    });
    ensure!(strange.is_none(), "left out, and there: {strange:?}");

    let last = runtime.block_on(agent.stop());
    ensure!(
        last.record_law.missing() == 0 && last.kernel_law.holds() && last.left_out.cgroups == 0,
        "{last:?}"
    );
    for name in ["kept", IN_POD, "claims", "loud-2"] {
        remove(&docker, name)?;
    }
    Ok(())
}

/// A container that waits to be used.
fn start(docker: &Runtime<'_>, name: &str, flags: &[String]) -> Result<()> {
    let mut run = docker.tool();
    run.args(["run", "--detach", "--network", "host", "--name", name])
        .args(flags)
        .args([IMAGE, "/bin/sleep", "600"]);
    docker.finish(run).map(drop)
}

/// Connects once, from within a container.
fn connect(docker: &Runtime<'_>, name: &str, port: usize) -> Result<()> {
    let command = format!("echo {name} | nc -w 10 {} {port}", super::RIGHT_V4);
    let mut exec = docker.tool();
    exec.args(["exec", name, "/bin/sh", "-c", &command]);
    docker.finish(exec).map(drop)
}

fn remove(docker: &Runtime<'_>, name: &str) -> Result<()> {
    let mut remove = docker.tool();
    remove.args(["rm", "--force", name]);
    docker.finish(remove).map(drop)
}

fn container_of(record: &FlowRecord) -> Option<&str> {
    let names = record.initiator.owner.names.as_ref()?;
    names.container.as_ref()?.name.as_deref()
}

fn wanted(world: &World, docker: &Runtime<'_>, exclude: &[wire::FlowRule]) -> Result<Wanted> {
    let scope = wire::scope::Part::Netns(world.left.path().to_string_lossy().into_owned());
    let policy = wire::Policy {
        capture: Some(wire::Capture {
            scopes: vec![wire::Scope { part: Some(scope) }],
            exclude: exclude.to_vec(),
            ..wire::Capture::default()
        }),
        enrich: Some(wire::Enrich {
            containers: Some(wire::Containers {
                sockets: vec![docker.socket().display().to_string()],
                ..wire::Containers::default()
            }),
            ..wire::Enrich::default()
        }),
        ..wire::Policy::default()
    };
    Ok(Wanted::new(policy.try_into()?, Vec::new())?)
}
