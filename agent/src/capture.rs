//! Capture: the kernel programs on, what they show out, and off again.
//!
//! In: a [`CapturePlan`]. Out: [`Observation`]s and [`NameObservation`]s, drained on a timer and never waited for; losses
//! by reason. Decides nothing about flows. Invariant: nothing is pinned; every link ends with this value or process.

mod attach;
mod batch;
mod maps;
mod outside;
mod scope;
mod walk;

use std::time::Duration;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya::programs::TestRun as _;
use aya::programs::{RawTracePoint, RawTracePointRunOptions};
use flowtilla_abi as abi;
use flowtilla_agent_core::flow::Forget;
use flowtilla_agent_core::loss::{DropPoint, Drops};
use flowtilla_agent_core::observe::{self, Cookie, NameObservation, Observation};
use flowtilla_agent_core::policy::CapturePlan;

pub use attach::OBJECT;
pub use scope::{CgroupRoot, ScopeError, ScopeSet};

use crate::clock;
use crate::status::AttachReport;

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The kernel does not describe its types.
    #[error(
        "this kernel has no type information (/sys/kernel/btf/vmlinux): a kernel with CONFIG_DEBUG_INFO_BTF=y is needed"
    )]
    Btf(#[source] aya::BtfError),
    /// The object as a whole was refused.
    #[error(
        "the kernel refused the capture object: run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    )]
    Load(#[source] aya::EbpfError),
    /// A program without which there is no picture was refused.
    #[error("the kernel refused the program {program}: {why}")]
    Mandatory {
        /// Name of the program.
        program: &'static str,
        /// Why.
        why: String,
    },
    /// A map of the object is missing or has another type.
    #[error("map {name} of the capture object")]
    Map {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: aya::maps::MapError,
    },
    /// No cgroup2 hierarchy.
    #[error("no cgroup2 hierarchy at {path}: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)")]
    CgroupRoot {
        /// Where it was looked for.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A system call on a map or program.
    #[error("{what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The policy names a part of the host that is not there.
    #[error("the part of the host to observe")]
    Scope(#[from] ScopeError),
    /// The snap program.
    #[error("reading the counters of live sockets")]
    Snap(#[source] aya::programs::ProgramError),
}

/// The kernel side, attached.
pub struct Capture {
    ebpf: Ebpf,
    flows: RingBuf<MapData>,
    names: RingBuf<MapData>,
    report: AttachReport,
    udp: bool,
    decode_failed: u64,
    collected_full: u64,
}

impl Capture {
    /// Loads and attaches all that the plan wants, and finds the sockets that are older.
    ///
    /// # Errors
    /// Every variant but [`CaptureError::Snap`]. What is optional and refused is told in [`Self::report`].
    pub fn attach(plan: &CapturePlan, cgroup_root: &CgroupRoot) -> Result<Self, CaptureError> {
        let scopes = ScopeSet::resolve(&plan.scopes, cgroup_root)?;
        let attached = attach::attach(plan, &scopes, &cgroup_root.path);
        give_back();
        attached
    }

    /// What attached, what was refused, and what is missing because of it.
    #[must_use]
    pub fn report(&self) -> &AttachReport {
        &self.report
    }

    /// Takes every name event there is.
    pub fn drain_names(&mut self, mut each: impl FnMut(NameObservation)) {
        while let Some(item) = self.names.next() {
            match abi::decode(&item).ok().as_ref().and_then(observe::name_event) {
                Some(seen) => each(seen),
                None => self.decode_failed += 1,
            }
        }
    }

    /// Takes every socket event there is, at most [`DRAIN_MAX`]. The end of a UDP socket with earlier peers comes after
    /// what the peer map has of them.
    ///
    /// # Errors
    /// [`CaptureError::Call`] from reading the peer map; the ends are passed on all the same.
    pub fn drain_flows(&mut self, mut each: impl FnMut(Observation)) -> Result<usize, CaptureError> {
        let slept = clock::slept();
        let mut taken = 0;
        let mut ended: Vec<abi::UdpEvent> = Vec::new();
        while taken < DRAIN_MAX {
            let Some(item) = self.flows.next() else { break };
            taken += 1;
            match abi::decode(&item) {
                Ok(abi::Event::UdpEnded(event)) if event.entry.spilled != 0 => ended.push(*event),
                Ok(event) => match observe::flow_event(&event, slept) {
                    Some(seen) => each(seen),
                    None => self.decode_failed += 1,
                },
                Err(_) => self.decode_failed += 1,
            }
        }
        if ended.is_empty() {
            return Ok(taken);
        }
        let outcome = walk::udp_ended(&self.ebpf, &ended, &mut each);
        outcome.map(|()| taken)
    }

    /// Has the kernel read these TCP sockets; what it finds comes with the next [`Self::drain_flows`].
    ///
    /// # Errors
    /// [`CaptureError::Call`], [`CaptureError::Snap`].
    pub fn snap(&mut self, cookies: &[Cookie]) -> Result<(), CaptureError> {
        for piece in cookies.chunks(abi::SNAP_KEYS_MAX) {
            batch::write_due(maps::map_fd(&self.ebpf, "due")?, piece)?;
            let Some(Ok(program)) = self.ebpf.program("tcp_snap").map(<&RawTracePoint>::try_from) else {
                return Ok(());
            };
            let mut options = RawTracePointRunOptions::new();
            options.args[0] = piece.len() as u64;
            program.test_run(options).map_err(CaptureError::Snap)?;
        }
        Ok(())
    }

    /// Reads every UDP socket and peer.
    ///
    /// # Errors
    /// [`CaptureError::Call`].
    pub fn walk_udp(&mut self, each: impl FnMut(Observation)) -> Result<(), CaptureError> {
        if !self.udp {
            return Ok(());
        }
        walk::udp(&self.ebpf, each)
    }

    /// Takes the entries whose end found the ring full, and shows those that live. Costs a pass over the socket map, so
    /// only when that happened.
    ///
    /// # Errors
    /// [`CaptureError::Call`].
    pub fn collect_unsent(&mut self, full: u64, each: impl FnMut(Observation)) -> Result<(), CaptureError> {
        if full == self.collected_full {
            return Ok(());
        }
        walk::unsent(&self.ebpf, each)?;
        self.collected_full = full;
        Ok(())
    }

    /// Shows every live TCP socket that the kernel side knows, as if it had just been opened: after an attach that found
    /// more of them than the ring holds.
    ///
    /// # Errors
    /// [`CaptureError::Call`].
    pub fn list_tcp(&mut self, each: impl FnMut(Observation)) -> Result<(), CaptureError> {
        walk::tcp(&self.ebpf, each)
    }

    /// Finds the holders of sockets that nobody is named for, and sockets older than the agent.
    ///
    /// # Errors
    /// [`CaptureError::Call`].
    pub fn walk_files(&mut self) -> Result<(), CaptureError> {
        attach::walk_files(&mut self.ebpf)
    }

    /// Takes a peer whose flow is over out of the kernel's maps and shows it for the last time: its counters start from 0
    /// when it comes again. A peer that is not there is no error.
    ///
    /// # Errors
    /// [`CaptureError::Call`].
    pub fn forget_peer(
        &mut self,
        forget: &Forget,
        each: impl FnOnce(Observation),
    ) -> Result<(), CaptureError> {
        let cookie = forget.cookie;
        let taken = if forget.with_socket {
            batch::take_first_peer(maps::map_fd(&self.ebpf, "udp_sockets")?, cookie)?
        } else {
            batch::take_peer(maps::map_fd(&self.ebpf, "udp_peers")?, cookie, &forget.peer)?
        };
        if let Some(value) = taken {
            each(observe::udp_peer(
                cookie.0,
                clock::kernel_now().0,
                &value,
                clock::slept(),
            ));
        }
        Ok(())
    }

    /// Name events that found their ring full, since attach. Cheap: one look-up.
    #[must_use]
    pub fn names_lost(&self) -> u64 {
        maps::counter(&self.ebpf, abi::drop_reason::NAME_RING_FULL)
    }

    /// CPU time of the programs since attach; `None`: the kernel does not count it, and this does not switch that on.
    #[must_use]
    pub fn programs_time(&self) -> Option<Duration> {
        let counted = std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").ok()?;
        (counted.trim() != "0").then(|| {
            let programs = self.ebpf.programs();
            programs
                .filter_map(|(_, program)| Some(program.info().ok()?.run_time()))
                .sum()
        })
    }

    /// Losses on the kernel side and in decoding, since attach.
    #[must_use]
    pub fn drops(&self) -> Drops {
        let mut drops = attach::kernel_drops(&self.ebpf);
        drops.set(DropPoint::DecodeFailed, self.decode_failed);
        drops
    }
}

/// Gives memory that is free back to the system: the kernel's types, read for loading, are most of an idle agent's.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no preconditions; it locks the allocator as any allocation does.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Most socket events of one drain, so that the rest of the agent gets its turn.
///
/// About 40 ms of work; half of it doubles the turns of a storm, double it and a screen stutters.
pub const DRAIN_MAX: usize = 65_536;
