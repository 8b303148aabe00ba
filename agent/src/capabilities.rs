//! What the kernel lets this process do: the capabilities that capture needs, and which of them are missing.
//!
//! Source: capabilities(7); Linux `include/uapi/linux/capability.h`.

/// What is needed, and its number in the kernel's set.
///
/// `SYS_PTRACE` and `DAC_READ_SEARCH` are for other users' files in /proc.
pub const NEEDED: [(&str, u32); 5] = [
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// Holds what `PERFMON` and `BPF` hold, and more.
const SYS_ADMIN: u32 = 21;

/// A set of capabilities, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set(pub u64);

impl Set {
    /// The effective set of `/proc/PID/status`.
    #[must_use]
    pub fn effective(status: &str) -> Option<Self> {
        Self::read(status, "CapEff:")
    }

    /// The bounding set of `/proc/PID/status`: more than that no program gets from here, whoever runs it.
    #[must_use]
    pub fn bounding(status: &str) -> Option<Self> {
        Self::read(status, "CapBnd:")
    }

    fn read(status: &str, field: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(line.trim(), 16).ok().map(Self)
    }

    /// Names of those of [`NEEDED`] that are not in it.
    #[must_use]
    pub fn missing(self) -> Vec<&'static str> {
        let has = |number: u32| self.0 & (1 << number) != 0;
        NEEDED
            .iter()
            .filter(|(_, number)| !has(*number) && (*number < 38 || !has(SYS_ADMIN)))
            .map(|&(name, _)| name)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    #[test]
    fn the_sets_are_read() {
        let status = "CapPrm:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0000000000000004\n";
        assert_eq!(Set::effective(status), Some(Set(ALL)));
        assert_eq!(Set::bounding(status), Some(Set(4)));
        assert_eq!(Set::effective("Name: x\n"), None);
        assert_eq!(Set::effective("CapEff: zz\n"), None);
    }

    #[test]
    fn what_is_missing_has_its_name() {
        assert_eq!(Set(ALL).missing(), [""; 0]);
        assert_eq!(Set(ALL & !(3 << 38)).missing(), [""; 0], "SYS_ADMIN holds both");
        assert_eq!(Set(ALL & !(1 << 39) & !(1 << 21)).missing(), ["CAP_BPF"]);
        assert_eq!(Set(0).missing().len(), NEEDED.len());
    }
}
