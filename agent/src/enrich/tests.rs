use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flowtilla_agent_core::enrich::{Naming, NamingOptions, NamingState, ProcessFacts, Scope};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, Counting, EndReason, FlowRecord, Party, Protocol, RecordId, Traffic,
};
use flowtilla_agent_core::observe::{Cookie, Endpoint, NameObservation, NetNs};
use flowtilla_agent_core::owner::{Confidence, Owner, Process, ProcessKey, Unknown};
use flowtilla_agent_core::time::{KernelTime, WallTime};

use super::*;

/// How long a test waits for a process to get somewhere.
const DEADLINE_MS: u64 = 10_000;

#[test]
fn our_own_process_is_read() {
    let mut lookups = Lookups::open().expect("there is /proc");
    let facts = facts(&mut lookups, key(std::process::id())).expect("we live");

    let exe = std::env::current_exe().expect("it has a path");
    assert_eq!(facts.executable.as_deref(), exe.to_str());
    assert_eq!(facts.arguments, std::env::args().collect::<Vec<_>>());
    assert_eq!(facts.uid, nix::unistd::getuid().as_raw());
    assert_eq!(facts.scope, Scope::Host);
    assert!(!facts.cut && !facts.comm.is_empty());
    let parent = facts.parent.expect("cargo started us");
    assert_eq!(parent.pid, std::os::unix::process::parent_id());
}

#[test]
fn a_child_is_read_while_it_lives_and_only_if_it_is_the_one() {
    let mut child = Running::start(Command::new("sleep").arg("600"));
    let key = key(child.0.id());
    let mut lookups = Lookups::open().expect("there is /proc");

    let found = facts(&mut lookups, key).expect("it lives");
    assert_eq!(&*found.comm, "sleep");
    assert_eq!(found.arguments, ["sleep", "600"]);
    let parent = found.parent.expect("we live");
    assert_eq!(parent.pid, std::process::id());
    assert_eq!(
        parent.executable.as_deref(),
        std::env::current_exe().expect("it has a path").to_str()
    );

    let ticks = |count: i64| ProcessKey {
        start: KernelTime(key.start.0.saturating_add_signed(count * 10_000_000)),
        ..key
    };
    assert!(facts(&mut lookups, ticks(1)).is_some(), "rounding");
    assert!(facts(&mut lookups, ticks(-1)).is_some(), "rounding");
    assert!(facts(&mut lookups, ticks(3)).is_none(), "another start");
    assert!(facts(&mut lookups, ticks(-3)).is_none(), "another start");

    child.0.kill().expect("it is ours");
    wait_until("the child is a zombie", || facts(&mut lookups, key).is_none());
    child.0.wait().expect("it is ours");
    assert!(facts(&mut lookups, key).is_none(), "gone");
}

#[test]
fn hostile_names_are_only_names() {
    let long = "x".repeat(100_000);
    let mut child = Command::new("sh");
    child
        .arg0("\u{1b}[2J) R 1 (\n")
        .args(["-c", "read x", "\n(", &long])
        .stdin(Stdio::piped());
    let child = Running::start(&mut child);
    let mut lookups = Lookups::open().expect("there is /proc");

    let found = facts(&mut lookups, key(child.0.id())).expect("it lives");

    assert!(found.cut);
    assert_eq!(found.arguments[0], "\u{1b}[2J) R 1 (\n");
    assert!(
        found
            .arguments
            .iter()
            .map(|argument| argument.len() + 1)
            .sum::<usize>()
            <= 4097
    );
}

#[test]
fn a_deleted_executable_keeps_its_path() {
    let folder = tempfile::tempdir().expect("there is room");
    let tool = folder.path().join("tool");
    fs::copy("/bin/sleep", &tool).expect("it is readable");
    let child = Running::start(Command::new(&tool).arg("600"));
    fs::remove_file(&tool).expect("it is ours");
    let mut lookups = Lookups::open().expect("there is /proc");

    let found = facts(&mut lookups, key(child.0.id())).expect("it lives");

    assert_eq!(found.executable.as_deref(), tool.to_str());
}

#[test]
fn a_script_s_executable_is_its_interpreter() {
    let folder = tempfile::tempdir().expect("there is room");
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\nread x\n").expect("it is ours");
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(&script, mode).expect("it is ours");
    let child = Running::start(Command::new(&script).stdin(Stdio::piped()));
    let mut lookups = Lookups::open().expect("there is /proc");

    let found = facts(&mut lookups, key(child.0.id())).expect("it lives");

    let shell = fs::canonicalize("/bin/sh").expect("there is a shell");
    assert_eq!(found.executable.as_deref(), shell.to_str());
    assert_eq!(found.arguments, ["/bin/sh", script.to_str().expect("plain")]);
}

#[test]
fn what_is_not_there_is_nothing() {
    let mut lookups = Lookups::open().expect("there is /proc");
    for pid in [0, 4_194_304, u32::MAX] {
        let key = ProcessKey {
            pid,
            start: KernelTime(0),
        };
        assert!(facts(&mut lookups, key).is_none());
        assert_eq!(
            lookups.answer(&Ask::Cgroup { id: 77, process: key }),
            Answer::Path(None)
        );
    }
}

#[test]
fn the_host_s_users_and_groups_have_names() {
    let mut lookups = Lookups::open().expect("there is /proc");
    let scope = Scope::Host;
    let name = |name: &str| Answer::Name(Some(name.into()));
    assert_eq!(lookups.answer(&Ask::User { scope, uid: 0 }), name("root"));
    assert_eq!(lookups.answer(&Ask::Group { scope, gid: 0 }), name("root"));
    for scope in [Scope::Other(1), Scope::Unreadable] {
        assert_eq!(lookups.answer(&Ask::User { scope, uid: 0 }), Answer::Name(None));
        assert_eq!(lookups.answer(&Ask::Group { scope, gid: 0 }), Answer::Name(None));
    }
    let scope = Scope::Host;
    let uid = 3_999_999_999;
    assert_eq!(lookups.answer(&Ask::User { scope, uid }), Answer::Name(None));
}

/// Other lists of users, by a mount namespace in a user namespace of our own.
struct Elsewhere(tempfile::TempDir);

impl Elsewhere {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("there is room"))
    }

    /// Runs `prepare` with the folder as `$D` in namespaces of its own and waits for input there; `None`: not allowed.
    fn run(&self, prepare: &str) -> Option<Running> {
        let script = format!("{prepare} && touch $D/ready && read x");
        let mut command = Command::new("unshare");
        command
            .args(["-Urm", "sh", "-c", &script])
            .env("D", self.0.path())
            .stdin(Stdio::piped());
        let mut child = Running(command.spawn().ok()?);
        let ready = self.0.path().join("ready");
        wait_until("the namespaces are ready", || {
            ready.exists() || child.0.try_wait().is_ok_and(|ended| ended.is_some())
        });
        if !ready.exists() {
            println!("skipped: no user namespaces here");
            return None;
        }
        fs::remove_file(ready).expect("it is ours");
        Some(child)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).expect("it is ours");
    }
}

#[test]
fn a_process_with_a_passwd_file_of_its_own_gets_its_names() {
    let elsewhere = Elsewhere::new();
    elsewhere.write("passwd", "boss:x:0:0::/:\n");
    elsewhere.write("group", "staff:x:0:\n");
    let bind = "mount --bind $D/passwd /etc/passwd && mount --bind $D/group /etc/group";
    let Some(child) = elsewhere.run(bind) else {
        return;
    };
    let mut lookups = Lookups::open().expect("there is /proc");

    let found = facts(&mut lookups, key(child.0.id())).expect("it lives");

    let Scope::Other(_) = found.scope else {
        panic!("{:?}", found.scope)
    };
    let (scope, uid, gid) = (found.scope, found.uid, nix::unistd::getgid().as_raw());
    assert_eq!(
        lookups.answer(&Ask::User { scope, uid }),
        Answer::Name(Some("boss".into()))
    );
    assert_eq!(
        lookups.answer(&Ask::Group { scope, gid }),
        Answer::Name(Some("staff".into()))
    );
    let again = facts(&mut lookups, key(child.0.id())).expect("it lives");
    assert_eq!(again.scope, scope, "read once");
    elsewhere.write("passwd", "chief:x:0:0::/:\n");
    let changed = facts(&mut lookups, key(child.0.id())).expect("it lives");
    assert_ne!(changed.scope, scope, "a changed file is another list");
    drop(child);
    let scope = changed.scope;
    assert_eq!(
        lookups.answer(&Ask::User { scope, uid }),
        Answer::Name(Some("chief".into())),
        "also when the process is gone"
    );
}

#[test]
fn the_same_passwd_file_in_another_mount_namespace_is_the_host_s() {
    let Some(child) = Elsewhere::new().run("true") else {
        return;
    };
    let mut lookups = Lookups::open().expect("there is /proc");
    let found = facts(&mut lookups, key(child.0.id())).expect("it lives");
    assert_eq!(found.scope, Scope::Host);
}

#[test]
fn passwd_files_that_are_none_are_not_touched() {
    let elsewhere = Elsewhere::new();
    elsewhere.write("big", &"x".repeat(2 << 20));
    for prepare in [
        // A way out of its root, by a link.
        "mount -t tmpfs t /etc && ln -s $D/big /etc/passwd",
        // A pipe that nobody writes to.
        "mount -t tmpfs t /etc && mkfifo /etc/passwd",
        "mount -t tmpfs t /etc && mkdir /etc/passwd",
        "mount -t tmpfs t /etc",
        "mount --bind $D/big /etc/passwd",
        // Not a local file system.
        "mount --bind /proc/self/status /etc/passwd",
    ] {
        let Some(child) = elsewhere.run(prepare) else {
            return;
        };
        let mut lookups = Lookups::open().expect("there is /proc");
        let found = facts(&mut lookups, key(child.0.id())).expect("it lives");
        assert_eq!(found.scope, Scope::Unreadable, "{prepare}");
    }
}

#[test]
fn the_cgroup2_tree_is_walked_and_agrees_with_proc() {
    let mut lookups = Lookups::open().expect("there is /proc");
    let Some(root) = lookups.cgroup2_root().map(Path::to_owned) else {
        println!("skipped: no cgroup2 mounted here");
        return;
    };
    let cgroups = lookups.existing_cgroups();
    assert_eq!(cgroups[0].1, "/");
    for (id, path) in &cgroups {
        let there = fs::metadata(root.join(path.trim_start_matches('/')));
        if let Ok(there) = there {
            assert_eq!(std::os::unix::fs::MetadataExt::ino(&there), *id, "{path}");
        }
    }

    let own = fs::read_to_string("/proc/self/cgroup").expect("it is ours");
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .expect("cgroup2 is there");
    let process = key(std::process::id());
    let Some((id, _)) = cgroups.iter().find(|(_, path)| path == own) else {
        println!("skipped: our own cgroup is outside of what is mounted");
        return;
    };
    assert_eq!(
        lookups.answer(&Ask::Cgroup { id: *id, process }),
        Answer::Path(Some(own.into()))
    );
    let id = u64::MAX;
    assert_eq!(
        lookups.answer(&Ask::Cgroup { id, process }),
        Answer::Path(None),
        "of another cgroup its path is not ours"
    );
}

#[test]
fn mounts_are_read_with_their_escapes() {
    let line = r"41 31 0:38 / /mnt/a\040b\134\011 rw - cgroup2 cgroup2 rw";
    let all: Vec<_> = mounts(line).collect();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].root, all[0].kind), ("/", "cgroup2"));
    assert_eq!(unescaped(all[0].point), PathBuf::from("/mnt/a b\\\t"));
    for bad in [
        "",
        " - ",
        "1 2 3 - x",
        r"41 31 0:38 / /a\04 - x",
        r"1 2 3 / \777\ - x",
    ] {
        mounts(bad).for_each(|mount| drop(unescaped(mount.point)));
    }
}

#[test]
fn a_record_of_a_live_process_gets_its_names_from_the_host() {
    let child = Running::start(Command::new("sleep").args(["600"]));
    let mut lookups = Lookups::open().expect("there is /proc");
    let mut naming = Naming::new(NamingOptions::default());
    for (id, path) in lookups.existing_cgroups() {
        naming.learn(&NameObservation::Cgroup { id, path });
    }
    let mut record = record(Process {
        key: key(child.0.id()),
        parent_pid: std::process::id(),
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
        cgroup_id: 0,
        comm: "sleep".into(),
    });

    let mut rounds = 0;
    while naming.name(&mut record, KernelTime(0)) == NamingState::Waiting {
        rounds += 1;
        assert!(rounds <= 3, "process, user, parent's user");
        while let Some(ask) = naming.poll_ask() {
            let answer = lookups.answer(&ask);
            naming.answer(ask, answer);
        }
    }

    let names = record.initiator.owner.names.expect("it was named");
    let sleep = fs::canonicalize("/bin/sleep").expect("it is installed");
    assert_eq!(names.executable.as_deref(), sleep.to_str());
    assert_eq!(names.command_line.as_deref(), Some("sleep 600"));
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    assert_eq!(names.user, user.ok().flatten().map(|user| user.name));
    let parent = names.parent.as_ref().expect("we live");
    assert_eq!((parent.pid, &parent.user), (std::process::id(), &names.user));
}

pub(super) fn record(process: Process) -> FlowRecord {
    let party = |owner| Party {
        endpoint: Endpoint {
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            port: 1,
        },
        owner,
    };
    FlowRecord {
        id: RecordId {
            boot: BootId([0; 16]),
            cookie: Cookie(1),
            stream: 0,
            part: 1,
        },
        first: true,
        protocol: Protocol::Tcp,
        initiator: party(Owner {
            confidence: Confidence::Exact,
            process: Some(process),
            names: None,
        }),
        responder: party(Owner::unknown(Unknown::Remote)),
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(1),
        counting: Counting::Delta,
        delta: Traffic::default(),
        total: Traffic::default(),
        start: WallTime(0),
        delta_start: WallTime(0),
        end: WallTime(0),
        tcp: None,
        reason: EndReason::EndOfFlow,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

/// A child that does not outlive its test.
struct Running(Child);

impl Running {
    /// Starts it and waits until it has executed its program.
    fn start(command: &mut Command) -> Self {
        let child = Self(command.spawn().expect("it is installed"));
        // Within exec the arguments are not there yet.
        let arguments = format!("/proc/{}/cmdline", child.0.id());
        wait_until("it has its arguments", || {
            fs::read(&arguments).is_ok_and(|arguments| !arguments.is_empty())
        });
        child
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn facts(lookups: &mut Lookups, key: ProcessKey) -> Option<ProcessFacts> {
    match lookups.answer(&Ask::Process(key)) {
        Answer::Process(facts) => facts.map(|facts| *facts),
        other => panic!("{other:?} answers another ask"),
    }
}

/// What the kernel side would tell, in the precision of /proc.
fn key(pid: u32) -> ProcessKey {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let after = stat.rsplit_once(')').expect("the kernel wrote it").1;
    let ticks: u64 = after
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .expect("the kernel wrote it");
    ProcessKey {
        pid,
        start: KernelTime(ticks * 10_000_000),
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..DEADLINE_MS / 5 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("not within {DEADLINE_MS} ms: {what}");
}
