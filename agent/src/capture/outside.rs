//! What the kernel side leaves out by itself: cgroups, and how much they did.
//!
//! In: ids of cgroups, and at which depths they lie. Out: the sums of what was left out. Decides nothing.

use std::ops::AddAssign;

use aya::maps::Array;
use flowtilla_abi as abi;

use super::{Capture, CaptureError, attach, batch};

/// What was left out in the kernel, as each socket saw it: what two sockets of this host sent each other is there twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOutSum {
    /// TCP connections that began.
    pub connections: u64,
    /// Packets of TCP connections that ended, and datagrams.
    pub packets: u64,
    /// Their IP octets.
    pub octets: u64,
}

impl AddAssign for LeftOutSum {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.packets += other.packets;
        self.octets += other.octets;
    }
}

impl From<&abi::LeftOutSum> for LeftOutSum {
    fn from(sum: &abi::LeftOutSum) -> Self {
        Self {
            connections: sum.connections,
            packets: sum.packets,
            octets: sum.octets,
        }
    }
}

impl Capture {
    /// Leaves a cgroup out, with all below it, once its depth is among [`Self::set_left_out_depths`].
    ///
    /// # Errors
    /// [`CaptureError::Call`].
    pub fn leave_out(&mut self, cgroup: u64) -> Result<(), CaptureError> {
        let sum = abi::LeftOutSum {
            connections: 0,
            packets: 0,
            octets: 0,
        };
        batch::put(
            attach::map_fd(&self.ebpf, MAP)?,
            &cgroup,
            &sum,
            "leaving a cgroup out",
        )
    }

    /// Leaves a cgroup out no longer; what it did meanwhile.
    ///
    /// # Errors
    /// [`CaptureError::Call`].
    pub fn take_back(&mut self, cgroup: u64) -> Result<LeftOutSum, CaptureError> {
        let map = attach::map_fd(&self.ebpf, MAP)?;
        let taken = batch::take(map, &cgroup, "leaving a cgroup out no longer")?;
        Ok(taken.as_ref().map(LeftOutSum::from).unwrap_or_default())
    }

    /// Looks for left out cgroups at these depths below the root, bit by bit; 0: nowhere.
    ///
    /// # Errors
    /// [`CaptureError::Map`], [`CaptureError::Call`].
    pub fn set_left_out_depths(&mut self, depths: u32) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::Map { name: DEPTHS, source };
        let map = self.ebpf.map_mut(DEPTHS).ok_or(CaptureError::Call {
            what: "finding a variable of the capture object",
            source: std::io::Error::new(std::io::ErrorKind::NotFound, DEPTHS),
        })?;
        let mut variable = Array::<_, u32>::try_from(map).map_err(failed)?;
        variable.set(0, depths, 0).map_err(failed)
    }

    /// What all cgroups did that are left out, each since then.
    ///
    /// # Errors
    /// [`CaptureError::Call`].
    pub fn left_out(&self) -> Result<LeftOutSum, CaptureError> {
        let mut all = LeftOutSum::default();
        let map = attach::map_fd(&self.ebpf, MAP)?;
        batch::each(map, 0, |_: &u64, sum: &abi::LeftOutSum| {
            all += LeftOutSum::from(sum)
        })?;
        Ok(all)
    }
}

const MAP: &str = "left_out";
/// The section of `left_out_depths`, which is alone in it.
const DEPTHS: &str = ".data";
