//! Loads the kernel object, attaches each program by itself, and tells what this kernel refuses.
//!
//! The table [`PROGRAMS`] is the list of hooks: what each is for, and what is missing without it.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, Iter,
    ProgramError, RawTracePoint,
};
use aya::{Btf, Ebpf, EbpfLoader};
use flowtilla_abi::{SCOPES_MAX, drop_reason};
use flowtilla_agent_core::loss::{DropPoint, Drops};
use flowtilla_agent_core::policy::CapturePlan;
use flowtilla_grpc::causes;

use super::{Capture, CaptureError, ScopeSet, maps, walk};
use crate::clock;
use crate::status::{AttachReport, ProgramStatus};

/// The compiled kernel programs, as checked in. `ebpf/build.sh` makes them anew.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ebpf/obj/flowtilla.bpf.o"
));

#[derive(Clone, Copy)]
enum Kind {
    TpBtf(&'static str),
    Cgroup,
    Skb(CgroupSkbAttachType),
    Sock,
    /// Loaded, run by hand.
    Snap,
    Files,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Tcp,
    Udp,
    Both,
}

struct Hook {
    name: &'static str,
    hook: &'static str,
    kind: Kind,
    part: Part,
    mandatory: bool,
    without: &'static str,
}

const fn hook(
    name: &'static str,
    hook: &'static str,
    kind: Kind,
    part: Part,
    mandatory: bool,
    without: &'static str,
) -> Hook {
    Hook {
        name,
        hook,
        kind,
        part,
        mandatory,
        without,
    }
}

/// In the order of attaching: what catches ends comes before what finds beginnings.
const PROGRAMS: &[Hook] = &[
    hook(
        "tcp_destroy",
        "tp_btf/tcp_destroy_sock",
        Kind::TpBtf("tcp_destroy_sock"),
        Part::Tcp,
        true,
        "entries of ended connections would stay until the map is full, and then no TCP flow is seen",
    ),
    hook(
        "tcp_state",
        "tp_btf/inet_sock_set_state",
        Kind::TpBtf("inet_sock_set_state"),
        Part::Tcp,
        true,
        "no TCP flow is seen",
    ),
    hook(
        "accept_peer4",
        "cgroup/getpeername4",
        Kind::Cgroup,
        Part::Tcp,
        false,
        ACCEPT,
    ),
    hook(
        "accept_peer6",
        "cgroup/getpeername6",
        Kind::Cgroup,
        Part::Tcp,
        false,
        ACCEPT,
    ),
    hook(
        "tcp_snap",
        "raw_tp, run by the agent",
        Kind::Snap,
        Part::Tcp,
        false,
        "TCP connections are reported only when they end",
    ),
    hook(
        "udp_release",
        "cgroup/sock_release",
        Kind::Sock,
        Part::Udp,
        false,
        "UDP flows end by idle timeout only, and entries of closed sockets stay until the map is full",
    ),
    hook(
        "udp_create",
        "cgroup/sock_create",
        Kind::Sock,
        Part::Udp,
        false,
        "UDP flows have no owner",
    ),
    hook(
        "udp_out",
        "cgroup_skb/egress",
        Kind::Skb(CgroupSkbAttachType::Egress),
        Part::Udp,
        false,
        "no UDP sent is seen",
    ),
    hook(
        "udp_in",
        "cgroup_skb/ingress",
        Kind::Skb(CgroupSkbAttachType::Ingress),
        Part::Udp,
        false,
        "no UDP received is seen",
    ),
    hook(
        "name_exec",
        "tp_btf/sched_process_exec",
        Kind::TpBtf("sched_process_exec"),
        Part::Both,
        false,
        "processes that end at once have no path and no command line",
    ),
    hook(
        "name_fork",
        "tp_btf/sched_process_fork",
        Kind::TpBtf("sched_process_fork"),
        Part::Both,
        false,
        "forked processes that end at once have no path and no command line",
    ),
    hook(
        "name_cgroup",
        "tp_btf/cgroup_mkdir",
        Kind::TpBtf("cgroup_mkdir"),
        Part::Both,
        false,
        "containers made after the start are known only while a process of theirs lives",
    ),
    hook(
        "name_cgroup_gone",
        "tp_btf/cgroup_rmdir",
        Kind::TpBtf("cgroup_rmdir"),
        Part::Both,
        false,
        "containers that are left out and have ended keep their place in the kernel's list",
    ),
    hook(
        "walk_files",
        "iter/task_file",
        Kind::Files,
        Part::Both,
        false,
        "sockets older than the agent are not seen",
    ),
];

const ACCEPT: &str = "accepted connections are attributed to the listening process";

/// Loads and attaches. See [`Capture::attach`].
pub(super) fn attach(
    plan: &CapturePlan,
    scopes: &ScopeSet,
    cgroup_root: &Path,
) -> Result<Capture, CaptureError> {
    let began = clock::instant();
    let btf = Btf::from_sys_fs().map_err(CaptureError::Btf)?;
    let cgroup = File::open(cgroup_root).map_err(|source| CaptureError::CgroupRoot {
        path: cgroup_root.display().to_string(),
        source,
    })?;
    let mut ebpf = load(plan, scopes, &btf)?;
    let mut report = AttachReport {
        kernel: kernel_release(),
        ..AttachReport::default()
    };
    for hook in PROGRAMS {
        let wanted = match hook.part {
            Part::Tcp => plan.tcp,
            Part::Udp => plan.udp,
            Part::Both => true,
        };
        if !wanted {
            continue;
        }
        let refused = attach_one(&mut ebpf, hook, &btf, &cgroup)
            .err()
            .map(|error| one_line(&error));
        if let (Some(why), true) = (&refused, hook.mandatory) {
            return Err(CaptureError::Mandatory {
                program: hook.name,
                why: why.clone(),
            });
        }
        report.programs.push(ProgramStatus {
            name: hook.name,
            hook: hook.hook,
            refused,
            without: hook.without,
            mandatory: hook.mandatory,
        });
    }
    let flows = maps::ring(&mut ebpf, "flow_events")?;
    let names = maps::ring(&mut ebpf, "name_events")?;
    if report
        .programs
        .iter()
        .any(|program| program.name == "walk_files" && program.refused.is_none())
    {
        walk_files(&mut ebpf)?;
        report.backfilled = walk::backfilled(&ebpf)?;
    }
    report.map_octets = maps::map_octets(&ebpf)
        + maps::fdinfo_number(flows.as_fd(), "memlock:")
        + maps::fdinfo_number(names.as_fd(), "memlock:");
    report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Capture {
        ebpf,
        flows,
        names,
        report,
        udp: plan.udp,
        decode_failed: 0,
        collected_full: 0,
    })
}

fn load(plan: &CapturePlan, scopes: &ScopeSet, btf: &Btf) -> Result<Ebpf, CaptureError> {
    let max_flows = plan.max_flows;
    let mut cgroup_ids = [0_u64; SCOPES_MAX];
    let mut cgroup_levels = [0_u32; SCOPES_MAX];
    let mut netns = [0_u32; SCOPES_MAX];
    for (index, &(id, level)) in scopes.cgroups.iter().take(SCOPES_MAX).enumerate() {
        (cgroup_ids[index], cgroup_levels[index]) = (id, level);
    }
    for (index, &inode) in scopes.netns.iter().take(SCOPES_MAX).enumerate() {
        netns[index] = inode;
    }
    let count = |n: usize| u32::try_from(n.min(SCOPES_MAX)).unwrap_or(0);
    let (cgroup_count, netns_count) = (count(scopes.cgroups.len()), count(scopes.netns.len()));
    EbpfLoader::new()
        .btf(Some(btf))
        .override_global("scope_cgroups", &cgroup_count, true)
        .override_global("scope_cgroup_id", cgroup_ids.as_slice(), true)
        .override_global("scope_cgroup_level", cgroup_levels.as_slice(), true)
        .override_global("scope_netnses", &netns_count, true)
        .override_global("scope_netns", netns.as_slice(), true)
        .map_max_entries("tcp_sockets", if plan.tcp { max_flows } else { 1 })
        .map_max_entries("udp_peers", if plan.udp { max_flows } else { 1 })
        .map_max_entries("udp_sockets", if plan.udp { (max_flows / 4).max(1) } else { 1 })
        .load(OBJECT)
        .map_err(CaptureError::Load)
}

fn attach_one(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf, cgroup: &File) -> Result<(), ProgramError> {
    let program = ebpf.program_mut(hook.name).ok_or(ProgramError::NotLoaded)?;
    match hook.kind {
        Kind::TpBtf(tracepoint) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(tracepoint, btf)?;
            program.attach()?;
        }
        Kind::Cgroup => {
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load()?;
            program.attach(cgroup, CgroupAttachMode::Single)?;
        }
        Kind::Skb(direction) => {
            let program: &mut CgroupSkb = program.try_into()?;
            program.load()?;
            program.attach(cgroup, direction, CgroupAttachMode::Single)?;
        }
        Kind::Sock => {
            let program: &mut CgroupSock = program.try_into()?;
            program.load()?;
            program.attach(cgroup, CgroupAttachMode::Single)?;
        }
        Kind::Snap => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
        }
        Kind::Files => {
            let program: &mut Iter = program.try_into()?;
            program.load("task_file", btf)?;
        }
    }
    Ok(())
}

/// Runs the walk of open files once.
pub(super) fn walk_files(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    let failed = |error: ProgramError| CaptureError::Call {
        what: "walking the open files",
        source: std::io::Error::other(one_line(&error)),
    };
    let Some(program) = ebpf.program_mut("walk_files") else {
        return Ok(());
    };
    let program: &mut Iter = program.try_into().map_err(failed)?;
    if program.fd().is_err() {
        return Ok(());
    }
    let link = program
        .attach()
        .and_then(|id| program.take_link(id))
        .map_err(failed)?;
    let mut file = link.into_file().map_err(|error| CaptureError::Call {
        what: "walking the open files",
        source: std::io::Error::other(error),
    })?;
    let mut nothing = [0_u8; 64];
    loop {
        match file.read(&mut nothing) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(CaptureError::Call {
                    what: "walking the open files",
                    source,
                });
            }
        }
    }
}

/// Counters of the kernel side, and runs it skipped.
pub(super) fn kernel_drops(ebpf: &Ebpf) -> Drops {
    let mut drops = Drops::default();
    let total = |reason: u32| maps::counter(ebpf, reason);
    drops.set(DropPoint::SocketMapFull, total(drop_reason::SOCKETS_FULL));
    drops.set(DropPoint::FlowRingFull, total(drop_reason::FLOW_RING_FULL));
    drops.set(DropPoint::NameRingFull, total(drop_reason::NAME_RING_FULL));
    drops.set(DropPoint::PeerMapFull, total(drop_reason::PEERS_FULL_PACKETS));
    drops.set(DropPoint::UnknownSocket, total(drop_reason::UDP_NO_ENTRY));
    drops.set(DropPoint::PacketUnreadable, total(drop_reason::UDP_PARSE));
    drops.set(DropPoint::NoSourcePort, total(drop_reason::UDP_NO_PORT));
    let skipped = PROGRAMS
        .iter()
        .filter(|hook| !matches!(hook.kind, Kind::Snap | Kind::Files))
        .filter_map(|hook| {
            ebpf.program(hook.name)?
                .fd()
                .ok()
                .map(|fd| maps::fdinfo_number(fd.as_fd(), "recursion_misses:"))
        })
        .sum();
    drops.set(DropPoint::ProgramSkipped, skipped);
    drops
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// An error with its causes in one line; of a verifier's log only the last words.
fn one_line(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        let figures = ["processed ", "stack depth ", "verification time "];
        let words = log
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty() && !figures.iter().any(|figure| line.starts_with(figure)));
        return match words {
            Some(words) => format!("{io_error}: {words}"),
            None => io_error.to_string(),
        };
    }
    causes::chain(error)
}
