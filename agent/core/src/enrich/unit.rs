//! The systemd unit of a cgroup2 path.
//!
//! In: a path below the cgroup2 root. Out: the unit's name as `systemctl` shows it, or `None`. The **last** component that is
//! the name of a service, a scope or a slice decides, so that folders which a service makes below its own (`/payload`)
//! belong to it, and a user's service is told rather than the manager that started it. systemd puts a `_` before a name
//! that the kernel could take for one of its own files: it is taken off. `\x2d` and the like stay: they are part of the name.
//!
//! Source: systemd, `src/basic/cgroup-util.c` (`cg_unescape`), `src/basic/unit-name.c` (`unit_name_is_valid`).

/// Longest name of a unit, in octets. Source: systemd, `UNIT_NAME_MAX`.
const UNIT_OCTETS_MAX: usize = 255;

/// What units end in that processes can run in.
const SUFFIXES: [&str; 3] = [".service", ".scope", ".slice"];

/// Finds the unit a cgroup belongs to. Where it is a container's, the container says more.
#[must_use]
pub fn unit(path: &str) -> Option<&str> {
    path.split('/').rev().find_map(|part| {
        let name = part.strip_prefix('_').unwrap_or(part);
        is_unit(name).then_some(name)
    })
}

fn is_unit(name: &str) -> bool {
    let stem = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || b":-_.\\@".contains(&c);
    name.len() <= UNIT_OCTETS_MAX
        && stem.is_some_and(|stem| !stem.is_empty() && !stem.starts_with('@') && stem.bytes().all(is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_service_scope_or_slice_is_the_unit() {
        for (path, name) in [
            ("/system.slice/ssh.service", Some("ssh.service")),
            ("/system.slice/web.service/payload/1", Some("web.service")),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                Some("getty@tty1.service"),
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                Some("session-3.scope"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/mail.service",
                Some("mail.service"),
            ),
            ("/init.scope", Some("init.scope")),
            ("/system.slice", Some("system.slice")),
            (
                "/system.slice/dev-disk-by\\x2duuid-1.service",
                Some("dev-disk-by\\x2duuid-1.service"),
            ),
            ("/system.slice/_cpu.shield.service", Some("cpu.shield.service")),
            ("/../system.slice/_memory.service", Some("memory.service")),
            ("/", None),
            ("", None),
            ("/docker/1234", None),
            ("/system.slice.d/x", None),
            ("/.service", None),
            ("/@1.service", None),
            ("/a b.service", None),
            ("/<script>.service", None),
            ("/\u{1b}[31m.service", None),
            ("/x.service.d", None),
            ("/x.timer", None),
        ] {
            assert_eq!(unit(path), name, "{path}");
        }
        let long = "x".repeat(UNIT_OCTETS_MAX - ".service".len());
        assert!(unit(&format!("/{long}.service")).is_some());
        assert_eq!(unit(&format!("/x{long}.service")), None);
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics_and_what_is_found_is_harmless(path in "(/|_|\\.|@|\\.service|\\.scope|a|\\PC|\\x1b){0,24}") {
            if let Some(unit) = unit(&path) {
                let plain = unit.bytes().all(|c| c.is_ascii_graphic() && !b"<>&\"'`".contains(&c));
                proptest::prop_assert!(plain && unit.len() <= UNIT_OCTETS_MAX, "{unit:?}");
            }
        }
    }
}
