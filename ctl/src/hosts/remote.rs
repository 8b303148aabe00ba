//! What `remote.sh` holds, whatever happens to it: one deploy at a time, all of a transfer or none, a way back from every step.
//!
//! The script runs as it is sent to hosts, by the words that ssh would hand over, over places of its own: a mount namespace in which
//! `/etc`, `/usr/local`, `/run` and `/var/lib` are directories of the test. `/usr/local/sbin` is first on the script's path: there
//! stand a systemctl that only notes, and programs that count steps and kill everything at one of them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use super::program::digest;
use super::ssh::{SCRIPT, remote_command};

const PROGRAM: &str = "/usr/local/bin/flowtilla-agent";
const UNIT: &str = "/etc/systemd/system/flowtilla-agent.service";
const SETTINGS: &str = "/etc/flowtilla/agent.env";
const ACCESS: &str = "/etc/systemd/system/flowtilla-agent.service.d/runtimes.conf";
const MARK: &str = "/etc/flowtilla/on-trial";
/// Where the stubs are told what to do, and note what they did.
const STUBS: &str = "/run/stubs";

/// Has the places, then becomes what ssh's command is on a host.
const WITHIN: &str = r#"for place in etc usr/local run var/lib; do mount --bind "$0/$place" "/$place" || exit 99; done; eval "exec $1""#;
/// Counts, and kills the whole process group at one of the steps, as a power loss would; then does what it is called for.
const STEP: &str = r#"#!/bin/sh
if [ -e /run/stubs/fatal ]; then
    step=$(($(/bin/cat /run/stubs/steps) + 1))
    echo $step >/run/stubs/steps
    [ $step != "$(/bin/cat /run/stubs/fatal)" ] || kill -9 0
fi
"#;
const SYSTEMCTL: &str = r#"
[ ! -e /proc/$$/fd/9 ] || echo "$*" >>/run/stubs/leaks
case "$*" in
is-active*) echo active ;;
is-enabled*) echo enabled ;;
*NRestarts*) echo 0 ;;
restart*) if [ -e /run/stubs/hold ]; then
        : >/run/stubs/held
        while [ -e /run/stubs/hold ]; do /bin/sleep 0.02; done
    fi ;;
esac
"#;
/// Programs of the script that change something.
const STEPS: [&str; 6] = ["mv", "cp", "rm", "sync", "mkdir", "chmod"];
/// No run takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
/// More steps than any action has.
const STEPS_MAX: usize = 100;

/// Places of one host.
struct Host(TempDir);

/// What is to be there: program, unit, settings, access.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Files([Option<String>; 4]);

fn program(version: &str) -> String {
    format!("#!/bin/sh\n[ $1 != --version ] || echo flowtilla-agent {version}\n")
}

fn files(version: &str, access: Option<&str>) -> Files {
    Files([
        Some(program(version)),
        Some(format!("unit of {version}\n")),
        Some(format!("settings of {version}\n")),
        access.map(str::to_owned),
    ])
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
}

impl Host {
    /// `None`: there is no way to places of its own here.
    fn new() -> Option<Self> {
        let host = Self(tempfile::tempdir().expect("a directory"));
        for place in [
            "etc/systemd/system",
            "usr/local/bin",
            "usr/local/sbin",
            "run/stubs",
            "var/lib",
        ] {
            fs::create_dir_all(host.0.path().join(place)).expect("made");
        }
        host.put(
            "/etc/passwd",
            "root:x:0:0::/:/bin/sh\nflowtilla:x:4711:4711::/:/bin/sh\n",
        );
        host.put("/etc/group", "root:x:0:\nflowtilla:x:4711:\n");
        let stub = |name: &str, text: &str| executable(&host.at(&format!("/usr/local/sbin/{name}")), text);
        for name in STEPS {
            stub(name, &format!("{STEP}exec /bin/{name} \"$@\"\n"));
        }
        stub("systemctl", &format!("{STEP}{SYSTEMCTL}"));
        stub("sleep", "#!/bin/sh\n");
        stub("runuser", "#!/bin/sh\nshift 3\nexec \"$@\"\n");
        let ran = host.run(&["nothing"], b"");
        if said(&ran).contains("no such action") {
            return Some(host);
        }
        assert!(!rustix::process::geteuid().is_root(), "{}", said(&ran));
        println!("skipped: needs root, or namespaces for users");
        None
    }

    /// Where a path of the host is.
    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    fn has(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// Puts what is to be there in place, as if it had always been.
    fn settle(&self, files: &Files) {
        for (path, text) in [PROGRAM, UNIT, SETTINGS, ACCESS].into_iter().zip(&files.0) {
            match text {
                Some(text) => self.put(path, text),
                None => drop(fs::remove_file(self.at(path))),
            }
        }
        executable(&self.at(PROGRAM), files.0[0].as_deref().unwrap_or_default());
    }

    fn files(&self) -> Files {
        Files([PROGRAM, UNIT, SETTINGS, ACCESS].map(|path| self.text(path)))
    }

    /// Whether there is a program on trial, and a way back from it.
    fn on_trial(&self) -> bool {
        self.has(MARK) && self.has(&format!("{PROGRAM}.previous"))
    }

    fn begin_with(&self, script: &str, action: &[&str], payload: &[u8]) -> Child {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["--mount", "sh", "-c", WITHIN])
            .arg(self.0.path())
            .arg(remote_command(false, action))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("util-linux is there");
        let mut stdin = child.stdin.take().expect("piped");
        let _ = stdin
            .write_all(script.as_bytes())
            .and_then(|()| stdin.write_all(payload)); // It may have ended.
        child
    }

    fn begin(&self, action: &[&str], payload: &[u8]) -> Child {
        self.begin_with(SCRIPT, action, payload)
    }

    fn run(&self, action: &[&str], payload: &[u8]) -> Output {
        self.begin(action, payload).wait_with_output().expect("it ends")
    }

    /// Runs it, and sees it end well.
    fn must(&self, action: &[&str], payload: &[u8]) -> String {
        let ran = self.run(action, payload);
        assert_eq!(ran.status.code(), Some(0), "{action:?}: {}", said(&ran));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    /// Has everything end at this step of the next action.
    fn fatal(&self, step: usize) {
        self.put(&format!("{STUBS}/steps"), "0");
        self.put(&format!("{STUBS}/fatal"), &step.to_string());
    }

    fn mend(&self) {
        fs::remove_file(self.at(&format!("{STUBS}/fatal"))).expect("it was there");
    }
}

fn said(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr)
}

/// The action that brings these files, and what it reads.
fn install(files: &Files) -> (Vec<String>, Vec<u8>) {
    let [program, unit, settings, access] =
        files.0.each_ref().map(|text| text.as_deref().unwrap_or_default());
    let size = |text: &str| text.len().to_string();
    let words = [
        "install".to_owned(),
        size(unit),
        size(settings),
        match access {
            "" => "none".to_owned(),
            access => size(access),
        },
        digest(program.as_bytes()),
        "restart".to_owned(),
    ];
    (
        words.to_vec(),
        [unit, settings, access, program].concat().into_bytes(),
    )
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn wait(what: &str, is: impl Fn() -> bool) {
    let every = Duration::from_millis(10);
    for _ in 0..PATIENCE.as_millis() / every.as_millis() {
        if is() {
            return;
        }
        sleep(every);
    }
    panic!("{what}: not within {} s", PATIENCE.as_secs());
}

#[test]
fn a_program_on_trial_goes_back_with_unit_settings_and_access_as_they_were() {
    for (before, after) in [
        (None, Some("access of 2\n")),
        (Some("access of 1\n"), Some("access of 2\n")),
        (Some("access of 1\n"), None),
        (None, None),
    ] {
        let Some(host) = Host::new() else { return };
        let (old, new) = (files("1", before), files("2", after));
        host.settle(&old);
        let (action, payload) = install(&new);
        host.must(&words(&action), &payload);
        assert_eq!(host.files(), new);
        assert!(host.on_trial());
        // What an operator that was broken off does once more changes nothing of the way back.
        host.must(&words(&action), &payload);
        assert_eq!(host.must(&["revert"], b""), "reverted\n");
        assert_eq!(host.files(), old, "{before:?} {after:?}");
        assert!(!host.on_trial() && !host.has(MARK));
        assert_eq!(
            host.must(&["revert"], b""),
            "",
            "there is nothing to go back from"
        );
        assert_eq!(host.files(), old);

        host.must(&words(&action), &payload);
        host.must(&["keep"], b"");
        assert_eq!(host.must(&["revert"], b""), "");
        assert_eq!(host.files(), new, "what was kept stays");
        assert!(
            !host.has(&format!("{STUBS}/leaks")),
            "{:?}",
            host.text(&format!("{STUBS}/leaks"))
        );
    }
}

#[test]
fn a_mark_of_an_earlier_version_leads_back_to_program_unit_and_settings() {
    let Some(host) = Host::new() else { return };
    let (old, new) = (files("1", None), files("2", Some("access of 2\n")));
    host.settle(&new);
    for (path, text) in [PROGRAM, UNIT, SETTINGS].into_iter().zip(&old.0) {
        host.put(&format!("{path}.previous"), text.as_deref().expect("it is there"));
    }
    host.put(MARK, "");
    assert_eq!(host.must(&["revert"], b""), "reverted\n");
    let mut wanted = old;
    wanted.0[3] = new.0[3].clone(); // It says nothing of access.
    assert_eq!(host.files(), wanted);
}

#[test]
fn a_power_loss_at_any_step_of_an_install_leaves_one_program_or_the_other_and_the_way_on_and_back() {
    let (old, new) = (files("1", None), files("2", Some("access of 2\n")));
    let (action, payload) = install(&new);
    let action = words(&action);
    let mut seen = [0_usize; 2];
    for step in 1..=STEPS_MAX {
        let Some(host) = Host::new() else { return };
        host.settle(&old);
        host.fatal(step);
        let ran = host.run(&action, &payload);
        host.mend();
        if ran.status.success() {
            assert!(step > 20, "only {step} steps were seen");
            assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
            return;
        }
        assert_eq!(ran.status.code(), None, "step {step}: {}", said(&ran));
        let program = host.text(PROGRAM);
        let is_new = program == new.0[0];
        assert!(is_new || program == old.0[0], "step {step}: {program:?}");
        assert!(!is_new || host.on_trial(), "step {step}: nothing leads back");
        seen[usize::from(host.on_trial())] += 1;

        // Back, or on: whichever the next call wants.
        let left = tempfile::tempdir().expect("a directory");
        copy(host.0.path(), left.path());
        host.must(&["revert"], b"");
        assert_eq!(host.files(), old, "step {step}");
        let host = Host(left);
        host.must(&action, &payload);
        assert_eq!(host.files(), new, "step {step}");
        assert!(host.on_trial(), "step {step}");
        let previous = host.text(&format!("{PROGRAM}.previous"));
        assert_eq!(previous, old.0[0], "step {step}: what has proven itself is kept");
    }
    panic!("it takes more than {STEPS_MAX} steps");
}

#[test]
fn a_power_loss_at_any_step_of_the_way_back_leaves_the_way_back() {
    let (old, new) = (files("1", None), files("2", Some("access of 2\n")));
    let (action, payload) = install(&new);
    for step in 1..=STEPS_MAX {
        let Some(host) = Host::new() else { return };
        host.settle(&old);
        host.must(&words(&action), &payload);
        host.fatal(step);
        let ran = host.run(&["revert"], b"");
        host.mend();
        if ran.status.success() {
            assert!(step > 5, "only {step} steps were seen");
            return;
        }
        assert_eq!(ran.status.code(), None, "step {step}: {}", said(&ran));
        let program = host.text(PROGRAM);
        assert!(host.on_trial() || program == old.0[0], "step {step}: {program:?}");
        host.must(&["revert"], b"");
        assert_eq!(host.files(), old, "step {step}");
        // A mark that is left alone is no trial, and does not keep the next program from one.
        host.must(&words(&action), &payload);
        assert!(host.on_trial(), "step {step}");
        assert_eq!(host.text(&format!("{PROGRAM}.previous")), old.0[0], "step {step}");
    }
    panic!("it takes more than {STEPS_MAX} steps");
}

#[test]
fn of_a_transfer_that_is_cut_off_nothing_is_put_in_place() {
    let Some(host) = Host::new() else { return };
    let (old, new) = (
        files("1", Some("access of 1\n")),
        files("2", Some("access of 2\n")),
    );
    host.settle(&old);
    let (action, payload) = install(&new);
    for arrived in (0..payload.len()).step_by(3).chain([payload.len() - 1]) {
        let ran = host.run(&words(&action), &payload[..arrived]);
        let said = said(&ran);
        assert_eq!(ran.status.code(), Some(3), "{arrived} octets: {said}");
        assert!(
            said.contains("what arrived is cut off") || said.contains("is not the one that was sent"),
            "{arrived} octets: {said}"
        );
        assert_eq!(host.files(), old, "{arrived} octets");
        assert!(!host.on_trial(), "{arrived} octets");
    }
    // The script itself.
    for arrived in (0..SCRIPT.len()).step_by(997) {
        let child = host.begin_with(&SCRIPT[..arrived], &words(&action), b"");
        let ran = child.wait_with_output().expect("it ends");
        assert_eq!(
            host.files(),
            old,
            "{arrived} octets of the script: {}",
            said(&ran)
        );
    }
    host.must(&words(&action), &payload);
    assert_eq!(host.files(), new);
}

#[test]
fn of_two_deploys_the_second_waits_or_is_refused_and_a_dead_one_holds_up_nobody() {
    let Some(host) = Host::new() else { return };
    host.settle(&files("1", None));
    let stub = |name: &str| format!("{STUBS}/{name}");
    // As long as it takes, instead of 20 s; who waits says so first.
    let flock = host.at("/usr/local/sbin/flock");
    let waits = "#!/bin/sh\n: >/run/stubs/asks\nexec /usr/bin/flock -w 120 \"$3\"\n";
    executable(&flock, "#!/bin/sh\nexec /usr/bin/flock -n \"$3\"\n");

    let (action, payload) = install(&files("2", None));
    host.put(&stub("hold"), "");
    let first = host.begin(&words(&action), &payload);
    wait("a deploy that restarts the service", || host.has(&stub("held")));
    let refused = host.run(&["keep"], b"");
    assert_eq!(refused.status.code(), Some(75), "{}", said(&refused));
    assert!(
        said(&refused).contains("another deploy is at work here"),
        "{}",
        said(&refused)
    );
    assert!(host.on_trial(), "who is refused changes nothing");
    // Looking is free.
    assert!(host.must(&["probe", "0"], b"").contains("trial=yes"));

    executable(&flock, waits);
    let second = host.begin(&["keep"], b"");
    wait("a second one that asks for the lock", || host.has(&stub("asks")));
    assert!(
        host.on_trial(),
        "the second does nothing while the first is at work"
    );
    fs::remove_file(host.at(&stub("hold"))).expect("it was there");
    let first = first.wait_with_output().expect("it ends");
    assert!(first.status.success(), "{}", said(&first));
    let second = second.wait_with_output().expect("it ends");
    assert!(second.status.success(), "{}", said(&second));
    assert!(!host.has(MARK), "the second came after the first");

    // One that dies takes its lock along, whatever it has started lives on.
    fs::remove_file(host.at(&stub("held"))).expect("it was there");
    host.put(&stub("hold"), "");
    let (action, payload) = install(&files("3", None));
    let mut dies = host.begin(&words(&action), &payload);
    wait("a deploy that restarts the service", || host.has(&stub("held")));
    dies.kill().expect("it runs");
    dies.wait().expect("it ends");
    executable(&flock, "#!/bin/sh\nexec /usr/bin/flock -n \"$3\"\n");
    host.must(&["keep"], b"");
    fs::remove_file(host.at(&stub("hold"))).expect("it was there");
    assert!(!host.has(&stub("leaks")), "{:?}", host.text(&stub("leaks")));
}

#[test]
fn the_program_is_asked_who_its_agent_is_and_what_it_cannot_say_is_told() {
    let Some(host) = Host::new() else { return };
    host.settle(&files("1", None));
    host.put("/var/lib/flowtilla/identity/current/chain.pem", "the chain\n");
    let of = |text: &str| {
        executable(&host.at(PROGRAM), text);
        let challenge = b"remove\nop@h0\n0123";
        let said = host.must(&["probe", &challenge.len().to_string()], challenge);
        let at = said
            .find("unproven=")
            .or(said.find("svid\n"))
            .expect("what it shows");
        said[at..].to_owned()
    };
    assert_eq!(
        of("#!/bin/sh\n[ $1 != prove ] || { echo $*; cat; }\n"),
        "svid\nprove --state /var/lib/flowtilla\nremove\nop@h0\n0123\n"
    );
    assert_eq!(
        of("#!/bin/sh\n[ $1 != prove ] || { echo first >&2; echo no such command >&2; exit 2; }\n"),
        "unproven=2 no such command\nsvid\nthe chain\n"
    );
    fs::remove_file(host.at(PROGRAM)).expect("it was there");
    let said = host.must(&["probe", "0"], b"");
    assert!(
        said.contains("unproven=127 ") && said.ends_with("svid\nthe chain\n"),
        "{said}"
    );
}

#[test]
fn what_another_operator_has_enrolled_meanwhile_is_not_enrolled_again() {
    let Some(host) = Host::new() else { return };
    host.settle(&files("1", None));
    let (token, chain) = (
        "/var/lib/flowtilla/join-token",
        "/var/lib/flowtilla/identity/current/chain.pem",
    );
    let seen = || {
        let said = host.must(&["probe", "0"], b"");
        let digest = said.lines().find_map(|line| line.strip_prefix("chain="));
        digest.expect("it is told").to_owned()
    };
    let bare = seen();
    host.must(&["enrol", "5", &bare], b"first");
    assert_eq!(host.text(token).as_deref(), Some("first"));
    // It is used.
    fs::remove_file(host.at(token)).expect("it was there");
    host.put(chain, "of the first\n");
    let late = host.run(&["enrol", "6", &bare], b"second");
    assert_eq!(late.status.code(), Some(3), "{}", said(&late));
    assert!(
        said(&late).contains("another identity than a moment ago"),
        "{}",
        said(&late)
    );
    assert!(!host.has(token));
    // Who has looked again may.
    host.must(&["enrol", "6", &seen()], b"second");
    assert_eq!(host.text(token).as_deref(), Some("second"));
}

#[test]
fn the_program_is_asked_what_it_finds_and_how_it_ended_is_told() {
    let Some(host) = Host::new() else { return };
    host.settle(&files("1", None));
    let of = |text: &str| {
        executable(&host.at(PROGRAM), text);
        host.must(&["doctor"], b"")
    };
    assert_eq!(
        of("#!/bin/sh\necho \"{$*}\"; echo noise >&2; exit 1\n"),
        "flowtilla-doctor\n{doctor -o json}\n\nended=1 noise\n"
    );
    assert_eq!(
        of("#!/bin/sh\necho first >&2; echo 'no such command' >&2; exit 2\n"),
        "flowtilla-doctor\n\nended=2 no such command\n"
    );
    fs::remove_file(host.at(PROGRAM)).expect("it was there");
    assert_eq!(host.must(&["doctor"], b""), "flowtilla-doctor\n\nended= \n");
    assert!(!host.has(&format!("{STUBS}/leaks")));
}

/// Copies a directory with everything in it, links included.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(status.expect("coreutils are there").success());
}
