//! Promise: on a host with systemd and cgroup2 alone, whose containerd has systemd make the cgroups of pods, an agent that was
//! deployed there as on any other tells each flow's pod and container, however briefly they lived.
//!
//! The agent is the hardened service, not root, let to the runtime's socket by its group; it has no scope, as on a host that has
//! its kernel to itself, so that flows of others arrive too and are left aside here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::hosts::{self, Site};
use integration::need;
use integration::pods::brief::{self, PODS, Ran};
use integration::pods::{self, CONTAINER, Class, NAMESPACE, OnSite, Pod, Running};
use integration::process::Process;
use integration::soak;
use integration::wait::{self, PATIENCE};
use integration::world::Alone;
use nix::sys::signal::Signal;

use super::{FLOW_WITHIN, Scene, element, told};

/// The group of the one host with pods.
const GROUP: &str = "hosts: [h0]\nruntimes: [containerd]";
/// Digits of a container's id that stand for a name that is not known.
const ID_SHOWN: usize = 12;
/// Where the pod that stays connects to.
const STAYS: u16 = 22_500;
/// Two builds of hosts, and tests beside that have the machine's one world before.
const VICTIM_READY_WITHIN: Duration = Duration::from_secs(3_600);
/// Has the test of killed runs be the run that is killed, and how its one line begins.
const VICTIM: &str = "FLOWTILLA_TEST_VICTIM";

#[test]
fn brief_pods_in_slices_of_systemd_go_by_their_names() -> Result<()> {
    if !can_contain() {
        return Ok(());
    }
    hosts::be_the_only_site();
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    OnSite::lay_out(&mut scene.site, 0)?;
    scene.boot(&[0])?;
    let runtime = OnSite::start(&scene.site, 0)?;
    let file = scene.file_of_pods()?;
    told(
        &scene.ctl(&["deploy", "-f", &file, "--wait=120s", "--yes"])?,
        0,
        &["h0: done: install"],
    )?;

    let hub = hub()?;
    let listener = scene
        .site
        .hub
        .enter(|| Ok(TcpListener::bind(SocketAddr::from((hub, STAYS)))?))?;
    let script = format!("sleep 1000 | nc {hub} {STAYS}");
    let (stays, running) = run_staying(&scene.site, &runtime, "stays-0", script)?;
    let (_stream, _) = listener.accept()?;

    let count = soak::count(PODS);
    let served = brief::serve(&scene.site.hub, hub, count)?;
    // Names that no two have: a collector is told no id beside them.
    let mut ran = brief::run(|| runtime.cri(), &served, count, 0..count / 2)?;
    runtime.restart()?;
    ran.extend(brief::run(|| runtime.cri(), &served, count, count / 2..count)?);
    let mut all = ran.clone();
    all.insert(STAYS.into(), (stays, running));
    let shown = scene.shown(&all)?;
    let nameless = ran
        .iter()
        .filter(|(port, (_, running))| shown[*port].contains(&running.container[..ID_SHOWN]))
        .count();
    println!("systemd's driver: {count} pods, {nameless} without their names");
    // Of few pods one is more than a thousandth.
    let least = usize::from(!soak::is_on());
    ensure!(
        nameless <= (count / 1_000).max(least),
        "{nameless} of {count} without their names"
    );
    Ok(())
}

#[test]
fn what_a_killed_run_leaves_of_a_host_with_pods_the_next_one_sweeps_away() -> Result<()> {
    if !can_contain() || !need::met(&hosts::NEEDS) {
        return Ok(());
    }
    let image = match hosts::image()? {
        Ok(image) => image,
        Err(reason) => {
            need::skip(&reason);
            return Ok(());
        }
    };
    if std::env::var_os(VICTIM).is_some() {
        let mut site = Site::build(1, &image)?;
        OnSite::lay_out(&mut site, 0)?;
        site.boot_all()?;
        let runtime = OnSite::start(&site, 0)?;
        run_staying(&site, &runtime, "web-0", "exec sleep 1000000".to_owned())?;
        println!("{VICTIM}");
        // Whoever started it holds the other end.
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    let mut command = Command::new(std::env::current_exe()?);
    let this = "pods::what_a_killed_run_leaves_of_a_host_with_pods_the_next_one_sweeps_away";
    command.args(["--exact", this, "--nocapture"]).env(VICTIM, "1");
    let mut victim = Process::start(command)?;
    let out = victim.out().clone();
    victim.wait_for_line(out, VICTIM_READY_WITHIN, "a pod that runs", |line| {
        line.contains(VICTIM).then_some(())
    })?;
    // While it has the machine: whoever has it next sweeps.
    let left = hosts::left(victim.pid())?;
    ensure!(!left.is_empty(), "the run has nothing that it could leave");
    victim.signal(Signal::SIGKILL)?;
    victim.wait_end(PATIENCE)?;

    let _alone = Alone::wait()?;
    hosts::sweep()?;
    let left = hosts::left(victim.pid())?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Whether this machine has what pods need; notes the skip.
fn can_contain() -> bool {
    if let Some(reason) = pods::lacks_plugins() {
        need::skip(&reason);
        return false;
    }
    need::met(&[&pods::NEEDS[..], &pods::ON_SITE_NEEDS].concat())
}

fn hub() -> Result<Ipv4Addr> {
    match Site::hub_address() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(other) => bail!("{other} is no address of pods"),
    }
}

/// Runs a pod in its host's network that stays, and sees that its cgroup is where systemd puts it.
fn run_staying(site: &Site, runtime: &OnSite<'_>, name: &str, script: String) -> Result<(Pod, Running)> {
    let pod = Pod {
        name: name.to_owned(),
        uid: "11111111-2222-4333-8444-555555555555".to_owned(),
        class: Class::Burstable,
        on_host: true,
        script,
    };
    let running = runtime.cri()?.run_pod(&pod)?;
    let cgroup = site.cgroup(0).join(format!(
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod11111111_2222_4333_8444_555555555555.slice/\
         cri-containerd-{}.scope",
        running.container
    ));
    ensure!(cgroup.is_dir(), "no {}", cgroup.display());
    Ok((pod, running))
}

impl Scene {
    /// A file with the host, the collector and a policy for an agent that looks at all that it can see.
    fn file_of_pods(&self) -> Result<String> {
        let documents = format!(
            "apiVersion: flowtilla/v1\nkind: HostGroup\nname: web\nuser: op\n{GROUP}\n---\n\
             apiVersion: flowtilla/v1\nkind: Collector\nname: main\nendpoint: {}\n---\n\
             apiVersion: flowtilla/v1\nkind: Policy\nname: web\nexport: {{collectors: [main]}}\n\
             rollout: {{gates: {{lag: 3s, cpuPermille: 1000000, memoryOctets: 64GiB}}}}\n",
            self.collector.endpoint()
        );
        let file = self.folder.path().join("pods.yaml");
        std::fs::write(&file, documents)?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// Waits for a flow of each pod; what the collector has for its container, which is the right one.
    fn shown(&self, ran: &Ran) -> Result<BTreeMap<usize, BTreeSet<String>>> {
        let mut shown: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        let all = wait::until_true(FLOW_WITHIN, "a flow of each pod", || {
            shown = self.containers_by_port(ran).unwrap_or_default();
            shown.len() == ran.len()
        });
        all.with_context(|| format!("{} of {}: {shown:?}", shown.len(), ran.len()))?;
        for (port, (pod, running)) in ran {
            let name = format!("{NAMESPACE}/{}/{CONTAINER}", pod.name);
            let id = &running.container[..ID_SHOWN];
            let wrong = shown[port].iter().find(|told| **told != name && *told != id);
            ensure!(
                wrong.is_none(),
                "{pod:?} ({running:?}) to {port}: {:?}",
                shown[port]
            );
        }
        Ok(shown)
    }

    fn containers_by_port(&self, ran: &Ran) -> Result<BTreeMap<usize, BTreeSet<String>>> {
        let mut found: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for record in self.collector.flows()? {
            let port = record.number(element::PORTS[1]).map(usize::try_from);
            if let Some(Ok(port)) = port
                && ran.contains_key(&port)
            {
                let told = record.text(element::CONTAINER).unwrap_or_default();
                found.entry(port).or_default().insert(told.to_owned());
            }
        }
        Ok(found)
    }
}
