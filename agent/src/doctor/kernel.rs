//! What the kernel has, and what it lets this process do: read from /proc and /sys, nothing tried.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, geteuid, getrlimit};

use super::Finding;
use crate::capabilities::Set;

/// Oldest kernel: the first with everything that the programs use.
const KERNEL_MIN: (u32, u32) = (5, 14);
/// The kernel's types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn examine() -> Vec<Finding> {
    let text = |path: &str| fs::read_to_string(path).ok();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mountinfo = text("/proc/self/mountinfo").unwrap_or_default();
    vec![
        kernel(&release),
        btf(Path::new(BTF)),
        capabilities(
            &text("/proc/self/status").unwrap_or_default(),
            geteuid().is_root(),
        ),
        cgroup2(&mountinfo),
        lockdown(text("/sys/kernel/security/lockdown").as_deref()),
        settings(|name| text(&format!("/proc/sys/{name}")).map(|value| value.trim().to_owned())),
        filesystems(&mountinfo),
        memlock(getrlimit(Resource::Memlock).current),
    ]
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|digits| digits.parse().ok());
    match next().zip(next()) {
        Some(version) if version >= KERNEL_MIN => Finding::ok("kernel", format!("Linux {release}")),
        _ => Finding::fail(
            "kernel",
            format!("Linux {release}: the agent needs 5.14 or later"),
            "boot a later kernel; Debian 11 has one in backports, RHEL 9 and Ubuntu 22.04 have one",
        ),
    }
}

fn btf(path: &Path) -> Finding {
    // Opened: a mount without it, or a kernel that keeps it from us, is what the agent would meet.
    match fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(file) => Finding::ok(
            "btf",
            format!("{} has {}", path.display(), super::octets(file.len())),
        ),
        Err(error) => Finding::fail(
            "btf",
            format!("{} cannot be read ({error})", path.display()),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y; in a container, mount the host's /sys",
        ),
    }
}

fn capabilities(status: &str, root: bool) -> Finding {
    let check = "capabilities";
    let effective = Set::effective(status).unwrap_or(Set(0));
    let bounding = Set::bounding(status).unwrap_or(Set(0));
    let (missing, unattainable) = (effective.missing(), bounding.missing());
    if !unattainable.is_empty() {
        return Finding::fail(
            check,
            format!(
                "{} not in the bounding set: no program gets them from here",
                list(&unattainable)
            ),
            "add them to what started this (docker run --cap-add, CapabilityBoundingSet= of a unit), or run the agent on the host \
             itself",
        );
    }
    if missing.is_empty() {
        return Finding::ok(
            check,
            "all five that are needed, in the effective and the bounding set",
        );
    }
    let what = format!("{} not in the effective set", list(&missing));
    match root {
        true => Finding::fail(
            check,
            what,
            "raise them: something has dropped them for this root",
        ),
        false => Finding::fail(
            check,
            what,
            "run this as root; the agent's unit gives them to its user",
        ),
    }
}

/// `A, B are`.
fn list(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", names.join(", "))
}

fn cgroup2(mountinfo: &str) -> Finding {
    match points(mountinfo, "cgroup2").next() {
        Some(point) => Finding::ok("cgroup2", format!("mounted at {point}")),
        None => Finding::fail(
            "cgroup2",
            "no cgroup2 hierarchy is mounted",
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

/// Mount points of a type of file system.
fn points<'a>(mountinfo: &'a str, kind: &'a str) -> impl Iterator<Item = &'a str> {
    mountinfo.lines().filter_map(move |line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some(kind))
            .then(|| before.split(' ').nth(4))
            .flatten()
    })
}

/// `[none] integrity confidentiality`: the one in brackets counts.
fn lockdown(text: Option<&str>) -> Finding {
    let mode = text.and_then(|text| text.split_once('[')?.1.split(']').next());
    match mode {
        Some("confidentiality") => Finding::warn(
            "lockdown",
            "confidentiality: programs may not read the kernel's memory",
            "boot with lockdown=integrity, or without; see below what was refused",
        ),
        Some(mode) => Finding::ok("lockdown", mode),
        None => Finding::ok("lockdown", "this kernel has none, or does not show it"),
    }
}

/// `read`: a value of /proc/sys.
fn settings(read: impl Fn(&str) -> Option<String>) -> Finding {
    let check = "sysctl";
    if read("net/core/bpf_jit_enable").is_some_and(|value| value == "0") {
        let what = "net.core.bpf_jit_enable is 0: programs are interpreted, and cost many times more";
        return Finding::warn(check, what, "sysctl -w net.core.bpf_jit_enable=1");
    }
    if read("kernel/bpf_stats_enabled").is_some_and(|value| value != "0") {
        let what = "kernel.bpf_stats_enabled is on: each run of each program is timed, which costs more than a small program itself";
        return Finding::warn(check, what, "sysctl -w kernel.bpf_stats_enabled=0");
    }
    let shown = |name: &str| read(name).unwrap_or_else(|| "not there".to_owned());
    Finding::ok(
        check,
        format!(
            "kernel.unprivileged_bpf_disabled {}, kernel.perf_event_paranoid {}: neither binds who has the capabilities",
            shown("kernel/unprivileged_bpf_disabled"),
            shown("kernel/perf_event_paranoid")
        ),
    )
}

fn filesystems(mountinfo: &str) -> Finding {
    let shown = |name, kind| match points(mountinfo, kind).next() {
        Some(point) => format!("{name} at {point}"),
        None => format!("no {name}"),
    };
    Finding::ok(
        "filesystems",
        format!(
            "{}, {}: neither is needed",
            shown("tracefs", "tracefs"),
            shown("bpffs", "bpf")
        ),
    )
}

fn memlock(limit: Option<u64>) -> Finding {
    let shown = limit.map_or_else(|| "unlimited".to_owned(), super::octets);
    Finding::ok(
        "memlock",
        format!("{shown}: since Linux 5.11 maps do not count against it"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const MOUNTS: &str = "24 1 0:22 / /sys rw - sysfs sysfs rw\n30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_kernel_counts_by_its_first_two_numbers() {
        for (release, verdict) in [
            ("5.14.0-362.el9", Verdict::Ok),
            ("6.1.0-13-amd64", Verdict::Ok),
            ("10.0", Verdict::Ok),
            ("5.10.0-26-amd64", Verdict::Fail),
            ("4.19", Verdict::Fail),
            ("strange", Verdict::Fail),
        ] {
            assert_eq!(kernel(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn what_nobody_can_get_is_told_apart_from_what_this_process_lacks() {
        let all = "CapEff:\t1ffffffffff\nCapBnd:\t1ffffffffff\n";
        assert_eq!(capabilities(all, true).verdict, Verdict::Ok);
        let user = capabilities("CapEff:\t0\nCapBnd:\t1ffffffffff\n", false);
        assert!(user.remedy.expect("a remedy").contains("run this as root"));
        let contained = capabilities("CapEff:\ta80425fb\nCapBnd:\ta80425fb\n", true);
        assert_eq!(contained.verdict, Verdict::Fail);
        assert!(
            contained.what.contains("CAP_BPF are not in the bounding set"),
            "{}",
            contained.what
        );
        let one = capabilities("CapEff:\t1ffffffffff\nCapBnd:\t1fffffffffb\n", true);
        assert!(one.what.starts_with("CAP_DAC_READ_SEARCH is not"), "{}", one.what);
    }

    #[test]
    fn mounts_are_found_by_their_type() {
        assert_eq!(cgroup2(MOUNTS).what, "mounted at /sys/fs/cgroup");
        assert_eq!(cgroup2("").verdict, Verdict::Fail);
        assert_eq!(
            filesystems(MOUNTS).what,
            "no tracefs, no bpffs: neither is needed"
        );
    }

    #[test]
    fn lockdown_is_the_word_in_brackets() {
        assert_eq!(lockdown(Some("[none] integrity confidentiality\n")).what, "none");
        assert_eq!(
            lockdown(Some("none integrity [confidentiality]\n")).verdict,
            Verdict::Warn
        );
        assert_eq!(lockdown(None).verdict, Verdict::Ok);
    }

    #[test]
    fn settings_that_cost_are_told() {
        let with = |name: &'static str, value: &'static str| {
            settings(move |asked| (asked == name).then(|| value.to_owned())).verdict
        };
        assert_eq!(with("net/core/bpf_jit_enable", "0"), Verdict::Warn);
        assert_eq!(with("net/core/bpf_jit_enable", "1"), Verdict::Ok);
        assert_eq!(with("kernel/bpf_stats_enabled", "1"), Verdict::Warn);
        assert_eq!(with("kernel/unprivileged_bpf_disabled", "2"), Verdict::Ok);
    }
}
