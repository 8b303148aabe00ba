//! What of the host is not the kernel: clock, room on disk, the service, the sockets of runtimes.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use flowtilla_proto::policy::{BUFFER_FREE_OCTETS_DEFAULT, Containers};
use nix::unistd::{Gid, Group, User, getgrouplist};

use super::{Finding, octets};

/// User of the agent's service.
const USER: &str = "flowtilla";
/// The service.
const SERVICE: &str = "flowtilla-agent";
/// Where programs of that name may be: what `agentctl deploy` brings, and what the package does.
const PROGRAMS: [&str; 2] = ["/usr/local/bin/flowtilla-agent", "/usr/bin/flowtilla-agent"];
/// Room for records below which one is told: the default of what may wait.
const ROOM: u64 = 1 << 30;

pub(super) fn examine(state: &Path) -> Vec<Finding> {
    let service = Service::ask();
    let mut findings = vec![clock(), room(state), service.finding()];
    findings.extend(runtimes(&service));
    findings
}

fn clock() -> Finding {
    // SAFETY: adjtimex(2) with `modes` 0 only fills in the structure, which is plain numbers.
    let status = unsafe {
        let mut state: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut state) >= 0).then_some(state.status)
    };
    match status {
        Some(status) if status & libc::STA_UNSYNC == 0 => Finding::ok("clock", "synchronised"),
        Some(_) => Finding::warn(
            "clock",
            "nothing keeps it synchronised: records carry its time, and identities last a day by it",
            "run chrony or systemd-timesyncd, on this host or on the one that it runs on",
        ),
        None => Finding::warn(
            "clock",
            "the kernel does not say whether it is synchronised",
            "see that it is right: identities last a day by it",
        ),
    }
}

fn room(state: &Path) -> Finding {
    let there = state
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"));
    let shown = state.display();
    match rustix::fs::statvfs(there) {
        Err(error) => Finding::warn("spool", format!("{shown}: {error}"), "name another directory"),
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let total = disk.f_blocks.saturating_mul(disk.f_frsize);
            let read_only = disk.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
            judge_room(&shown.to_string(), free, total, read_only)
        }
    }
}

fn judge_room(state: &str, free: u64, total: u64, read_only: bool) -> Finding {
    if read_only {
        let what = format!(
            "{state} is on a file system that takes no writes: records wait in memory only, 8 MiB of them"
        );
        return Finding::warn("spool", what, "mount it for writing, or keep the state elsewhere");
    }
    let room = free.saturating_sub(BUFFER_FREE_OCTETS_DEFAULT.max(total / 20));
    let what = format!(
        "room for {} of records at {state}, of {} free: a twentieth of the file system, and {}, stay free",
        octets(room),
        octets(free),
        octets(BUFFER_FREE_OCTETS_DEFAULT)
    );
    match room < ROOM {
        true => Finding::warn(
            "spool",
            what,
            "make room, or keep the state on another disk; the oldest records go first",
        ),
        false => Finding::ok("spool", what),
    }
}

/// What systemd says of the agent's service.
#[derive(Debug, Default)]
struct Service {
    load: String,
    active: String,
    unit: String,
    groups: String,
}

impl Service {
    fn ask() -> Self {
        let asked = Command::new("systemctl")
            .args([
                "show",
                "-p",
                "LoadState,ActiveState,FragmentPath,SupplementaryGroups",
                SERVICE,
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        Self::read(&said.unwrap_or_default())
    }

    fn read(said: &str) -> Self {
        let value = |key: &str| {
            let of_line = |line: &str| Some(line.split_once('=').filter(|(it, _)| *it == key)?.1.to_owned());
            said.lines().find_map(of_line).unwrap_or_default()
        };
        Self {
            load: value("LoadState"),
            active: value("ActiveState"),
            unit: value("FragmentPath"),
            groups: value("SupplementaryGroups"),
        }
    }

    fn finding(&self) -> Finding {
        let both = PROGRAMS.iter().all(|path| Path::new(path).is_file());
        match (self.load.as_str(), self.active.as_str()) {
            ("loaded", _) if both => Finding::warn(
                "service",
                format!(
                    "{} and {} are both there: the first one runs",
                    PROGRAMS[0], PROGRAMS[1]
                ),
                format!("remove the one that is not wanted, then: systemctl restart {SERVICE}"),
            ),
            ("loaded", "active") => Finding::ok("service", format!("{SERVICE} runs ({})", self.unit)),
            ("loaded", state) => Finding::warn(
                "service",
                format!("{SERVICE} is {state}"),
                format!("journalctl -u {SERVICE} says why; then: systemctl restart {SERVICE}"),
            ),
            ("masked", _) => Finding::warn(
                "service",
                format!("{SERVICE} is masked"),
                format!("systemctl unmask {SERVICE}"),
            ),
            _ => Finding::ok(
                "service",
                format!("no {SERVICE} on this host; agentctl up does without"),
            ),
        }
    }
}

/// Whose rights count at a socket.
#[derive(Debug)]
struct Person {
    name: String,
    uid: u32,
    groups: Vec<u32>,
}

impl Person {
    /// The agent's user, with the groups that its unit adds; whoever runs this when there is no such user.
    fn of(service: &Service) -> Self {
        let Some(user) = User::from_name(USER).ok().flatten() else {
            let uid = rustix::process::geteuid().as_raw();
            let groups = rustix::process::getgroups().unwrap_or_default();
            let own = rustix::process::getegid().as_raw();
            return Self {
                name: "this user".to_owned(),
                uid,
                groups: groups
                    .into_iter()
                    .map(|group| group.as_raw())
                    .chain([own])
                    .collect(),
            };
        };
        let name = std::ffi::CString::new(USER).expect("no NUL in it");
        let listed = getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid]);
        let added = service
            .groups
            .split_whitespace()
            .filter_map(|group| match group.parse() {
                Ok(number) => Some(Gid::from_raw(number)),
                Err(_) => Some(Group::from_name(group).ok()??.gid),
            });
        Self {
            name: format!("the agent's user {USER}"),
            uid: user.uid.as_raw(),
            groups: listed.into_iter().chain(added).map(Gid::as_raw).collect(),
        }
    }

    /// Whether it may write there: the first of owner, group and others that it is decides.
    fn may_write(&self, uid: u32, gid: u32, mode: u32) -> bool {
        let bit = match (self.uid == uid, self.groups.contains(&gid)) {
            _ if self.uid == 0 => return true,
            (true, _) => 0o200,
            (false, true) => 0o020,
            (false, false) => 0o002,
        };
        mode & bit != 0
    }
}

fn runtimes(service: &Service) -> Vec<Finding> {
    let person = Person::of(service);
    let usual = Containers::default();
    let findings: Vec<Finding> = usual
        .sockets()
        .iter()
        .filter_map(|socket| runtime(socket.as_path(), &person))
        .collect();
    match findings.is_empty() {
        true => vec![Finding::ok(
            "runtimes",
            "no runtime of containers listens at a usual place: containers go by their ids",
        )],
        false => findings,
    }
}

/// `None`: there is no such socket.
fn runtime(socket: &Path, person: &Person) -> Option<Finding> {
    let file = fs::metadata(socket).ok()?;
    let shown = socket.display();
    if let Err(error) = UnixStream::connect(socket)
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        return Some(Finding::ok("runtimes", format!("nobody listens at {shown}")));
    }
    if person.may_write(file.uid(), file.gid(), file.permissions().mode()) {
        return Some(Finding::ok(
            "runtimes",
            format!("{} may ask {shown}", person.name),
        ));
    }
    let group = Group::from_gid(Gid::from_raw(file.gid())).ok().flatten();
    let group = group.map_or_else(|| file.gid().to_string(), |group| group.name);
    let what = format!(
        "{} may not ask {shown}: its containers go by their ids",
        person.name
    );
    let remedy = match file.permissions().mode() & 0o020 != 0 && file.gid() != 0 {
        true => format!(
            "systemctl edit {SERVICE}, write [Service] and SupplementaryGroups={group} below it, restart it; that group is as good \
             as root"
        ),
        false => format!(
            "give the socket a group of its own (SocketGroup= of its unit), and the service that group (systemctl edit {SERVICE}: \
             SupplementaryGroups=); or write enrich: {{containers: {{names: false}}}} into the policy"
        ),
    };
    Some(Finding::warn("runtimes", what, remedy))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn room_is_what_is_left_above_the_floor() {
        let judged = |free, total| judge_room("/s", free, total, false);
        assert_eq!(judged(100 << 30, 200 << 30).verdict, Verdict::Ok);
        let little = judged(10 << 30, 200 << 30);
        assert_eq!(little.verdict, Verdict::Warn);
        assert!(little.what.starts_with("room for 0 KiB"), "{}", little.what);
        assert!(judged(300 << 20, 1 << 30).what.starts_with("room for 44 MiB"));
        assert!(
            judge_room("/s", 1 << 40, 1 << 41, true)
                .what
                .contains("no writes")
        );
    }

    #[test]
    fn rights_at_a_socket_are_those_of_the_first_that_one_is() {
        let person = Person {
            name: "x".into(),
            uid: 10,
            groups: vec![20, 21],
        };
        assert!(person.may_write(10, 0, 0o600));
        assert!(person.may_write(0, 21, 0o660));
        assert!(!person.may_write(0, 0, 0o660));
        assert!(!person.may_write(10, 20, 0o060), "the owner's bits count alone");
        assert!(person.may_write(0, 0, 0o666));
    }

    #[test]
    fn a_socket_of_a_group_that_the_service_lacks_is_told_with_the_remedy() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("docker.sock");
        let person = Person {
            name: "the agent's user".into(),
            uid: u32::MAX - 1,
            groups: Vec::new(),
        };
        assert_eq!(runtime(&path, &person), None);
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        let found = runtime(&path, &person).expect("a socket");
        assert_eq!(found.verdict, Verdict::Warn);
        assert!(
            found
                .remedy
                .is_some_and(|text| text.contains("SupplementaryGroups="))
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("set");
        assert_eq!(runtime(&path, &person).expect("a socket").verdict, Verdict::Ok);
        drop(listener);
        let gone = runtime(&path, &person).expect("a socket");
        assert!(gone.what.starts_with("nobody listens"), "{}", gone.what);
    }

    #[test]
    fn a_service_that_does_not_run_is_told() {
        let said = |active: &str| {
            Service::read(&format!(
                "LoadState=loaded\nActiveState={active}\nFragmentPath=/u\nSupplementaryGroups=docker adm\n"
            ))
        };
        assert_eq!(said("active").finding().verdict, Verdict::Ok);
        assert_eq!(said("active").groups, "docker adm");
        assert_eq!(said("failed").finding().verdict, Verdict::Warn);
        assert_eq!(Service::default().finding().verdict, Verdict::Ok);
    }
}
