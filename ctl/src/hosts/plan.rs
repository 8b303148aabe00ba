//! What is to be done for one host: decides, and does nothing.
//!
//! In: what the script's `probe` said ([`Found`]), what is to be there ([`Wanted`]), what the controller knows of the host's
//! agent, which has proven who it is, or has yet to ([`super::who`]). Out: a [`Plan`], or why there is none. The plan of a host that has everything is empty.

use std::collections::{BTreeMap, BTreeSet};

use flowtilla_proto::hosts::Runtime;
use flowtilla_proto::wire::fleet::Agent;

use super::program::{Glibc, Program, version_of};
use super::trouble::{Step, Trouble};
use super::who::{Shown, Unproven, Who};

/// How the answer begins; what a login shell says before it is not ours.
const BEGINS: &str = "flowtilla-probe";
/// From here on it is the agent's chain and its proof, PEM.
const CHAIN: &str = "svid";
/// Why there is no proof.
const UNPROVEN: &str = "unproven";
/// Oldest kernel, as in the README.
const KERNEL_MIN: (u32, u32) = (5, 14);
/// Oldest C library that an agent's program is built for.
const GLIBC_MIN: Glibc = Glibc(28);
/// Oldest systemd: the first that takes everything in the unit that hardens it. Half of the hosts in the world have 247.
const SYSTEMD_MIN: u32 = 247;

/// What is on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    machine: String,
    kernel: String,
    glibc: Option<Glibc>,
    systemd: Option<u32>,
    btf: bool,
    cgroup2: bool,
    /// Version of the Debian package that has brought the agent; empty: none has.
    pub(crate) package: String,
    /// SHA-256 of the files; empty: there is none.
    program: String,
    unit: String,
    settings: String,
    access: String,
    /// Of the program; empty: it says none.
    version: String,
    /// The program has not proven itself: whoever brought it did not come to the end.
    trial: bool,
    /// What runs is another program than the one that is there.
    stale: bool,
    /// Of the groups that may be wanted, those that there are.
    groups: BTreeSet<String>,
    /// SHA-256 of the agent's chain, and of nothing when it has none.
    chain: String,
    active: bool,
    enabled: bool,
    reload: bool,
    /// What it shows of its agent.
    pub(super) shown: Shown,
    /// Who that is; [`Found::read`] does not know.
    pub(super) who: Who,
}

impl Found {
    /// Reads what `probe` said.
    ///
    /// # Errors
    ///
    /// It is no answer of the script.
    pub(crate) fn read(said: &str) -> Result<Self, Trouble> {
        let mut lines = said.lines().skip_while(|line| *line != BEGINS);
        if lines.next().is_none() {
            let why = "what came back is no answer of the script";
            return Err(Trouble::new(
                Step::Probe,
                why,
                "see that the user's login shell runs commands",
            ));
        }
        let mut values = BTreeMap::new();
        let mut chain = String::new();
        while let Some(line) = lines.next() {
            if line == CHAIN {
                chain = lines.by_ref().flat_map(|line| [line, "\n"]).collect();
            } else if let Some((key, value)) = line.split_once('=') {
                values.insert(key, value);
            }
        }
        let text = |key: &str| values.get(key).copied().unwrap_or_default().to_owned();
        let glibc = text("libc");
        let glibc = glibc.strip_prefix("glibc 2.").and_then(|minor| {
            let digits = minor.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok().map(Glibc)
        });
        Ok(Self {
            machine: text("arch"),
            kernel: text("kernel"),
            glibc,
            systemd: text("systemd").parse().ok(),
            btf: text("btf") == "yes",
            cgroup2: text("cgroup2") == "yes",
            package: text("package"),
            program: text("program"),
            unit: text("unit"),
            settings: text("settings"),
            access: text("access"),
            trial: text("trial") == "yes",
            stale: text("stale") == "yes",
            groups: (values.keys())
                .filter_map(|key| key.strip_prefix("group-"))
                .map(str::to_owned)
                .collect(),
            version: version_of(&text("version")),
            chain: text("chain"),
            active: text("active") == "active",
            enabled: text("enabled") == "enabled",
            reload: text("reload") == "yes",
            shown: Shown::read(values.get(UNPROVEN).copied(), &chain),
            who: Who::Nobody,
        })
    }
}

impl Found {
    /// Whether nothing of an agent is there.
    pub(crate) fn is_bare(&self) -> bool {
        [&self.program, &self.unit, &self.settings]
            .iter()
            .all(|digest| digest.is_empty())
            && !self.shown.is_agents()
    }

    /// Whether this program is there.
    pub(crate) fn has(&self, program: &Program) -> bool {
        self.program == program.digest
    }

    /// SHA-256 of the program that is there, hex; empty: there is none.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// Whether what runs is another program than the one that is there.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Whether the program that is there runs, and will after a boot.
    pub(crate) fn is_at_work(&self) -> bool {
        self.active && self.enabled && !self.stale
    }

    /// SHA-256 of the agent's chain, hex; of nothing when it has none.
    pub(crate) fn chain(&self) -> &str {
        &self.chain
    }

    /// Version of the program that is there; empty: it says none.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }
}

/// What is to be on a host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) program: &'a Program,
    /// SHA-256.
    pub(crate) unit: &'a str,
    pub(crate) settings: &'a str,
    /// Empty: none is to be there.
    pub(crate) access: &'a str,
    pub(crate) labels: &'a BTreeMap<String, String>,
}

/// What becomes of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replace {
    Install,
    /// From this version.
    Upgrade(String),
}

/// What becomes of an agent's access to runtimes' sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Give,
    Take,
}

/// Why an agent gets an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enrol {
    /// It has none, or one that does not count.
    Anew,
    /// Its labels are others.
    Labels,
}

/// How the service is set going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Start,
    Restart,
}

impl Service {
    /// As systemctl has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restart => "restart",
        }
    }
}

/// What is to be done. [`Plan::default`]: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) program: Option<Replace>,
    pub(crate) unit: bool,
    pub(crate) settings: bool,
    /// Which runtimes' sockets it may use.
    pub(crate) access: Option<Access>,
    /// The program there is on trial: it is watched.
    pub(crate) trial: bool,
    pub(crate) enrol: Option<Enrol>,
    pub(crate) service: Option<Service>,
    /// The version there is newer than ours, and stays.
    pub(crate) newer: Option<String>,
}

/// Whether the agent can run there.
///
/// # Errors
///
/// The first thing that is lacking.
pub(crate) fn fits(found: &Found, program: &Program, runtimes: &BTreeSet<Runtime>) -> Result<(), Trouble> {
    let lacks = |why: String, remedy: &str| Err(Trouble::new(Step::Fit, why, remedy));
    let packaged = !found.package.is_empty(); // Its own program is there, and stays.
    if !packaged && found.machine != program.machine {
        let why = format!(
            "the host is {}, the agent's program is for {}",
            found.machine, program.machine
        );
        return lacks(why, "build it for that machine, and name it with --agent-binary");
    }
    match found.glibc {
        None => {
            let remedy = "take the host out of the group; the agent needs glibc";
            return lacks("the host has no glibc".to_owned(), remedy);
        }
        Some(has) if !packaged && has < program.glibc => {
            let why = format!(
                "the host has glibc {has}, the agent's program needs {}",
                program.glibc
            );
            return match has < GLIBC_MIN {
                true => lacks(
                    why,
                    "take the host out of the group; none is built for glibc before 2.28",
                ),
                false => lacks(
                    why,
                    "name the program that runs on glibc 2.28 and later with --agent-binary; `cargo run -p integration -- package` \
                     makes it",
                ),
            };
        }
        Some(_) => {}
    }
    if kernel(&found.kernel).is_none_or(|version| version < KERNEL_MIN) {
        let why = format!("the host's kernel is {}", found.kernel);
        return lacks(why, "the agent needs Linux 5.14 or later");
    }
    if !found.btf {
        let why = "the host's kernel has no /sys/kernel/btf/vmlinux".to_owned();
        return lacks(why, "boot a kernel with CONFIG_DEBUG_INFO_BTF");
    }
    if !found.cgroup2 {
        let why = "the host has no cgroup2 mount".to_owned();
        return lacks(
            why,
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
        );
    }
    if let Some(runtime) = runtimes
        .iter()
        .find(|runtime| !found.groups.contains(runtime.group()))
    {
        let why = format!("the host has no group {}", runtime.group());
        let remedy = format!(
            "install {0} there, or take {0} out of the group's runtimes",
            runtime.as_str()
        );
        return lacks(why, &remedy);
    }
    match found.systemd {
        None => lacks(
            "the host does not run systemd".to_owned(),
            "start flowtilla-agent there by other means",
        ),
        Some(version) if version < SYSTEMD_MIN => {
            let why = format!("the host has systemd {version}");
            lacks(why, "the agent's unit needs 247 or later")
        }
        Some(_) => Ok(()),
    }
}

fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What is to be done. `agent`: what the controller knows of the one that is there; `None`: there is none that counts.
pub(crate) fn plan(found: &Found, wanted: &Wanted<'_>, agent: Option<&Agent>) -> Plan {
    let packaged = !found.package.is_empty();
    let mut plan = Plan {
        unit: !packaged && found.unit != wanted.unit,
        settings: found.settings != wanted.settings,
        access: match (found.access == wanted.access, wanted.access.is_empty()) {
            (true, _) => None,
            (false, false) => Some(Access::Give),
            (false, true) => Some(Access::Take),
        },
        trial: found.trial,
        enrol: enrol(wanted, agent),
        ..Plan::default()
    };
    if packaged {
        // Program and unit are the package manager's.
    } else if found.program.is_empty() {
        plan.program = Some(Replace::Install);
    } else if found.program != wanted.program.digest {
        match (numbers(&found.version), numbers(&wanted.program.version)) {
            (Some(there), Some(ours)) if there > ours => plan.newer = Some(found.version.clone()),
            _ => plan.program = Some(Replace::Upgrade(found.version.clone())),
        }
    }
    let changed = plan.has_files() || plan.enrol.is_some() || found.reload || found.stale;
    plan.service = match (changed, found.active && found.enabled) {
        (true, _) => Some(Service::Restart),
        (false, false) => Some(Service::Start),
        (false, true) => None,
    };
    plan
}

fn enrol(wanted: &Wanted<'_>, agent: Option<&Agent>) -> Option<Enrol> {
    let Some(agent) = agent else {
        return Some(Enrol::Anew);
    };
    // What the host says of itself is no matter of the group.
    let own = agent.hello.as_ref().map(|hello| &hello.labels);
    let of_group = |(key, value): &(&String, &String)| {
        wanted.labels.contains_key(*key) || own.is_none_or(|own| own.get(*key) != Some(*value))
    };
    let same = agent.labels.iter().filter(of_group).eq(wanted.labels.iter());
    (!same).then_some(Enrol::Labels)
}

/// Whether the agent there may be dealt with as who it says to be. Another program may prove it yet, and only then is anything done to
/// the agent: that a host's program is older, is on trial and does not do, or is not there, must not keep it from the next.
///
/// # Errors
///
/// It says to be an agent and does not prove it.
pub(crate) fn believe(found: &Found, plan: &Plan) -> Result<(), Trouble> {
    let may_yet = match &found.who {
        Who::Claims(_, Unproven::Older | Unproven::Silent(_)) => {
            plan.is_upgrade() || plan.program == Some(Replace::Install)
        }
        Who::Claims(..) => false,
        Who::Proven(_) | Who::Nobody => true,
    };
    let Some(trouble) = found.who.trouble().filter(|_| !may_yet) else {
        return Ok(());
    };
    Err(match found.who {
        // Of a package the next program is not ours to bring.
        Who::Claims(_, Unproven::Older) if !found.package.is_empty() => {
            trouble.remedied("apt-get upgrade there brings one that can; then deploy again")
        }
        _ => trouble,
    })
}

/// `1.2.3` as numbers.
fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|number| number.parse().ok()).collect()
}

impl Plan {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        *self
            == Self {
                newer: self.newer.clone(),
                ..Self::default()
            }
    }

    /// Whether programs, who may come in, or what an agent may change: what a person wants to be asked about.
    pub(crate) fn is_weighty(&self) -> bool {
        self.program.is_some() || self.enrol.is_some() || self.access.is_some()
    }

    /// Whether an agent that the controller knows gets another program, or has one that has not proven itself: that is done in
    /// waves.
    pub(crate) fn is_upgrade(&self) -> bool {
        (self.trial || matches!(self.program, Some(Replace::Upgrade(_)))) && self.enrol != Some(Enrol::Anew)
    }

    /// Whether anything is put in place.
    pub(crate) fn has_files(&self) -> bool {
        self.program.is_some() || self.unit || self.settings || self.access.is_some()
    }

    /// Of it what an upgrade does.
    pub(crate) fn of_upgrade(self) -> Self {
        match self.is_upgrade() {
            true => Self { enrol: None, ..self },
            false => Self {
                newer: self.newer,
                ..Self::default()
            },
        }
    }

    /// What it does, as it is told: each an imperative, such as `install 0.1.0`. `version`: of our program.
    pub(crate) fn steps(&self, version: &str) -> Vec<String> {
        let mut steps = Vec::new();
        match &self.program {
            Some(Replace::Install) => steps.push(format!("install {version}")),
            Some(Replace::Upgrade(from)) if from == version => {
                steps.push(format!("upgrade {version} to another build of it"));
            }
            Some(Replace::Upgrade(from)) if from.is_empty() => steps.push(format!("upgrade to {version}")),
            Some(Replace::Upgrade(from)) => steps.push(format!("upgrade {from} to {version}")),
            None => {}
        }
        if self.trial && self.program.is_none() {
            steps.push(format!("watch {version}, which is on trial"));
        }
        match self.access {
            Some(Access::Give) => steps.push("let it use runtimes' sockets".to_owned()),
            Some(Access::Take) => steps.push("let it use no runtimes' sockets any more".to_owned()),
            None => {}
        }
        if self.program.is_none() && (self.unit || self.settings) {
            steps.push("change its settings".to_owned());
        }
        match self.enrol {
            Some(Enrol::Anew) => steps.push("enrol it".to_owned()),
            Some(Enrol::Labels) => steps.push("enrol it anew, with other labels".to_owned()),
            None => {}
        }
        match self.service {
            Some(Service::Start) => steps.push("start it".to_owned()),
            Some(Service::Restart) if steps.is_empty() => steps.push("restart it".to_owned()),
            _ => {}
        }
        steps
    }
}

#[cfg(test)]
mod tests;
