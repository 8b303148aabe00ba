//! The maps of the loaded object, by their names.
//!
//! In: the object. Out: descriptors, rings, counters and what maps take. Loads and attaches nothing, and knows no program.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};

use super::CaptureError;

/// The descriptor of a map of the object.
pub(super) fn map_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, CaptureError> {
    ebpf.map(name)
        .and_then(map_data)
        .map(|data| data.fd().as_fd())
        .ok_or(CaptureError::Call {
            what: "finding a map of the capture object",
            source: std::io::Error::new(std::io::ErrorKind::NotFound, name),
        })
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// Takes a ring out of the object.
pub(super) fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, CaptureError> {
    let map = ebpf.take_map(name).ok_or(CaptureError::Call {
        what: "finding a ring of the capture object",
        source: std::io::Error::new(std::io::ErrorKind::NotFound, name),
    })?;
    RingBuf::try_from(map).map_err(|source| CaptureError::Map { name, source })
}

/// One counter of the kernel side, over all processors.
pub(super) fn counter(ebpf: &Ebpf, reason: u32) -> u64 {
    let Some(Ok(counters)) = ebpf.map("drops").map(PerCpuArray::<_, u64>::try_from) else {
        return 0;
    };
    counters.get(&reason, 0).map_or(0, |cpus| cpus.iter().sum())
}

/// Memory that all maps of the object take, in octets.
pub(super) fn map_octets(ebpf: &Ebpf) -> u64 {
    ebpf.maps()
        .filter_map(|(_, map)| map_data(map))
        .map(|data| fdinfo_number(data.fd().as_fd(), "memlock:"))
        .sum()
}

/// A number of `/proc/self/fdinfo/FD`; 0 when it is not there.
pub(super) fn fdinfo_number(fd: BorrowedFd<'_>, field: &str) -> u64 {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
        })
        .unwrap_or(0)
}
