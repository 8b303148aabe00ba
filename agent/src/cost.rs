//! What this process costs, as the kernel says. What that means is decided in the core.

/// Resident memory of this process, in octets; `None`: /proc does not tell. Source: proc(5), `/proc/PID/status`.
pub(crate) fn resident_octets() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}
