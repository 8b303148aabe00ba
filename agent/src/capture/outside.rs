//! What the kernel side leaves out by itself: cgroups, and how much they did.
//!
//! In: ids of cgroups, and at which depths they lie. Out: the sums of what was left out. Decides nothing.

use aya::maps::Array;
use flowtilla_abi as abi;
use flowtilla_agent_core::loss::LeftOutSum;

use super::{Capture, CaptureError, batch, maps};

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
            maps::map_fd(&self.ebpf, MAP)?,
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
        let map = maps::map_fd(&self.ebpf, MAP)?;
        let taken = batch::take(map, &cgroup, "leaving a cgroup out no longer")?;
        Ok(taken.as_ref().map(sum).unwrap_or_default())
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
        let map = maps::map_fd(&self.ebpf, MAP)?;
        batch::each(map, 0, |_: &u64, one: &abi::LeftOutSum| all.plus(&sum(one)))?;
        Ok(all)
    }
}

fn sum(told: &abi::LeftOutSum) -> LeftOutSum {
    LeftOutSum {
        connections: told.connections,
        packets: told.packets,
        octets: told.octets,
    }
}

const MAP: &str = "left_out";
/// The section of `left_out_depths`, which is alone in it.
const DEPTHS: &str = ".data";
