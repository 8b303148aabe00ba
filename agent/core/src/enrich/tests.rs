use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::flow::record::{
    BootId, CollectorSet, Counting, EndReason, FlowRecord, Party, Protocol, RecordId, Traffic,
};
use crate::observe::{Cookie, Endpoint, NetNs};
use crate::owner::{Confidence, Runtime, Unknown};
use crate::time::WallTime;

const NOW: KernelTime = KernelTime(1_000_000_000);
const SESSION: u64 = 70;
const DOCKER: u64 = 71;
const ID: &str = "4f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";
const OTHER: Scope = Scope::Other(7);

#[test]
fn a_process_that_lived_5_ms_keeps_the_names_of_its_exec() {
    let mut host = Host::default();
    host.naming
        .learn(&exec(&process(10, 1000), 1, "/bin/bash", &["bash"]));
    let curl = process(11, 0).child_of(10);
    host.naming.learn(&fork(&process(10, 1000), 11));
    host.naming.learn(&exec(
        &curl,
        10,
        "/usr/bin/curl",
        &["curl", "-u", "me:QX7ZK4", "https://example.org"],
    ));

    let names = host.names(&curl);

    assert_eq!(names.executable.as_deref(), Some("/usr/bin/curl"));
    assert_eq!(
        names.command_line.as_deref(),
        Some("curl -u me:*** https://example.org")
    );
    assert_eq!(names.user.as_deref(), Some("root"));
    assert_eq!(names.group.as_deref(), Some("group0"));
    let parent = names.parent.as_ref().expect("bash was seen");
    assert_eq!(
        (parent.pid, parent.executable.as_str(), parent.uid),
        (10, "/bin/bash", Some(1000))
    );
    assert_eq!(parent.user.as_deref(), Some("user1000"));
    assert_eq!(names.container, None);
}

#[test]
fn a_cached_process_costs_no_ask_and_shares_its_names() {
    let mut host = Host::default();
    let curl = process(11, 0);
    host.naming.learn(&exec(&curl, 1, "/usr/bin/curl", &["curl"]));
    let once = host.names(&curl);
    let asks = host.naming.counts().asks;

    let again = host.names(&curl);

    assert!(Arc::ptr_eq(&once, &again));
    assert_eq!(host.naming.counts().asks, asks);
}

#[test]
fn the_executable_is_proc_s_and_the_arguments_are_exec_s() {
    let mut host = Host::default();
    let mysql = process(11, 0);
    host.naming.learn(&exec(
        &mysql,
        1,
        "./client",
        &["client", "--user=me", "--host=db"],
    ));
    host.live(
        &mysql,
        facts(
            Some("/opt/db/bin/client"),
            &mysql.comm,
            &["client", "xxxxxxxxx", "xxxxxxxxx"],
        ),
    );

    let names = host.names(&mysql);

    assert_eq!(names.executable.as_deref(), Some("/opt/db/bin/client"));
    assert_eq!(names.command_line.as_deref(), Some("client --user=me --host=db"));
}

#[test]
fn cut_arguments_are_completed_from_proc_only_of_the_same_program() {
    for (comm, line) in [("java", "java -jar app.jar"), ("other", "java -jar app.jar")] {
        let mut host = Host::default();
        let java = process(11, 0);
        let mut seen = exec(&java, 1, "/usr/bin/java", &["java", "-ja"]);
        if let NameObservation::Exec { cut, process, .. } = &mut seen {
            *cut = true;
            process.comm = comm.into();
        }
        host.naming.learn(&seen);
        host.live(
            &java,
            facts(Some("/jdk/java"), "java", &["java", "-jar", "app.jar"]),
        );
        assert_eq!(host.names(&java).command_line.as_deref(), Some(line));
    }
    let mut host = Host::default();
    let java = process(11, 0);
    let mut seen = exec(&java, 1, "/usr/bin/java", &["java", "--password", "QX"]);
    if let NameObservation::Exec { cut, .. } = &mut seen {
        *cut = true;
    }
    host.naming.learn(&seen);
    assert_eq!(
        host.names(&java).command_line.as_deref(),
        Some("java --password ***…"),
        "gone: what exec copied, and that it is cut"
    );
}

#[test]
fn the_newest_exec_counts() {
    let mut host = Host::default();
    let env = process(11, 0);
    host.naming
        .learn(&exec(&env, 1, "/usr/bin/env", &["env", "tool"]));
    assert_eq!(host.names(&env).executable.as_deref(), Some("/usr/bin/env"));
    host.naming.learn(&exec(&env, 1, "/usr/bin/tool", &["tool"]));

    assert_eq!(host.names(&env).executable.as_deref(), Some("/usr/bin/tool"));
}

#[test]
fn a_pid_that_comes_again_is_another_process() {
    let mut host = Host::default();
    let first = process(11, 0);
    let mut second = first;
    second.key.start = KernelTime(999);
    host.naming.learn(&exec(&first, 1, "/usr/bin/curl", &["curl"]));

    let names = host.names(&second);

    assert_eq!(names.executable, None);
    assert_eq!(names.command_line, None);
    assert_eq!(host.naming.counts().processes_gone, 2);
}

#[test]
fn a_forked_child_has_the_names_of_what_its_parent_ran_then() {
    let mut host = Host::default();
    let server = process(10, 0);
    host.naming
        .learn(&exec(&server, 1, "/usr/sbin/server", &["server", "-f"]));
    host.naming.learn(&fork(&server, 11));
    host.naming
        .learn(&exec(&server, 1, "/usr/sbin/upgrade", &["upgrade"]));
    let child = process(11, 0).child_of(10);

    let names = host.names(&child);

    assert_eq!(names.executable.as_deref(), Some("/usr/sbin/server"));
    assert_eq!(names.command_line.as_deref(), Some("server -f"));
    assert_eq!(
        names.parent.as_ref().map(|parent| parent.executable.as_str()),
        Some("/usr/sbin/server")
    );
}

#[test]
fn a_parent_older_than_the_agent_is_asked_for_when_it_forks() {
    let mut host = Host::default();
    let server = process(10, 0);
    host.live(&server, facts(Some("/usr/sbin/nginx"), "nginx", &["nginx", "-g"]));
    host.naming.learn(&fork(&server, 11));
    let child = process(11, 0).child_of(10);

    let names = host.names(&child);

    assert_eq!(names.executable.as_deref(), Some("/usr/sbin/nginx"));
    assert_eq!(
        names.parent.as_ref().map(|parent| parent.executable.as_str()),
        Some("/usr/sbin/nginx")
    );
}

#[test]
fn a_child_never_gets_what_its_parent_executed_later() {
    let mut host = Host::default();
    let shell = process(10, 0);
    host.naming.learn(&fork(&shell, 11));
    host.naming.learn(&exec(&shell, 1, "/usr/bin/later", &["later"]));
    let child = process(11, 0).child_of(10);

    let names = host.names(&child);

    assert_eq!((names.executable.as_deref(), names.parent.as_ref()), (None, None));
}

#[test]
fn a_process_older_than_the_agent_is_read() {
    let mut host = Host::default();
    let sshd = process(10, 0);
    let mut read = facts(Some("/usr/sbin/sshd"), "sshd", &["sshd: me [priv]"]);
    read.parent = Some(ParentFacts {
        pid: 1,
        executable: Some("/usr/lib/systemd/systemd".into()),
        comm: "systemd".into(),
        uid: 0,
        scope: Scope::Host,
    });
    host.live(&sshd, read);

    let names = host.names(&sshd);

    assert_eq!(names.executable.as_deref(), Some("/usr/sbin/sshd"));
    assert_eq!(names.command_line.as_deref(), Some("sshd: me [priv]"));
    let parent = names.parent.as_ref().expect("it was told");
    assert_eq!(parent.executable, "/usr/lib/systemd/systemd");
    assert_eq!(parent.user.as_deref(), Some("root"));
}

#[test]
fn a_process_that_changes_its_user_gets_that_name() {
    let mut host = Host::default();
    let mut worker = process(10, 0);
    host.naming
        .learn(&exec(&worker, 1, "/usr/sbin/nginx", &["nginx"]));
    assert_eq!(host.names(&worker).user.as_deref(), Some("root"));
    worker.uid = 33;

    assert_eq!(host.names(&worker).user.as_deref(), Some("user33"));
}

#[test]
fn a_container_s_users_are_its_own() {
    let mut host = Host::default();
    host.naming.learn(&NameObservation::Cgroup {
        id: DOCKER,
        path: format!("/docker/{ID}"),
    });
    let app = process(10, 1000).in_cgroup(DOCKER);
    let mut read = facts(Some("/app"), "app", &["/app"]);
    read.scope = OTHER;
    host.live(&app, read);

    let names = host.names(&app);

    assert_eq!(names.user.as_deref(), Some("other1000"));
    let container = names.container.as_ref().expect("the path names it");
    assert_eq!((container.id.as_str(), container.runtime), (ID, Runtime::Docker));

    // Gone before anyone looked: others of its cgroup are witnesses.
    let brief = process(11, 1000).in_cgroup(DOCKER);
    host.naming.learn(&exec(&brief, 10, "/bin/wget", &["wget"]));
    assert_eq!(host.names(&brief).user.as_deref(), Some("other1000"));
}

#[test]
fn a_container_s_name_comes_late_changes_and_is_told_from_then_on() {
    let mut host = Host::default();
    let path = format!("/docker/{ID}");
    host.naming.learn(&NameObservation::Cgroup { id: DOCKER, path });
    let web = process(11, 0).in_cgroup(DOCKER);
    host.naming.learn(&exec(&web, 1, "/bin/web", &["web"]));
    let named = |host: &mut Host, now: KernelTime| {
        let mut record = record(&web);
        let _ = host.naming.name(&mut record, now);
        for _ in 0..8 {
            host.settle();
            let _ = host.naming.name(&mut record, now);
        }
        let state = host.naming.name(&mut record, now);
        let names = record.responder.owner.names.expect("it has a process");
        (state, names.container.clone().expect("a container").name)
    };
    assert_eq!(
        named(&mut host, NOW),
        (NamingState::Complete, None),
        "nobody is asked"
    );

    host.naming.set_container_sockets(1);
    assert_eq!(named(&mut host, NOW).0, NamingState::Waiting);
    assert!(host.naming.poll_container_ask().is_some());
    let late = NOW.after(container::CONTAINER_WAIT);
    assert_eq!(
        named(&mut host, late),
        (NamingState::Complete, None),
        "it waited long enough"
    );

    let id = ContainerId::parse(ID).expect("an id");
    for name in ["web-1", "web-2"] {
        let facts = container::ContainerFacts::new(id, name, "img", []).expect("a name");
        host.naming.learn_container(ContainerNews::Known(facts));
        assert_eq!(named(&mut host, late), (NamingState::Complete, Some(name.into())));
    }
    host.naming.set_container_sockets(0);
    assert_eq!(named(&mut host, late), (NamingState::Complete, None));
}

#[test]
fn containers_of_records_that_wait_are_asked_for_together() {
    let mut host = Host::default();
    host.naming.set_container_sockets(1);
    for n in 0..3_u64 {
        let (id, path) = (DOCKER + n, format!("/docker/{n:064x}"));
        host.naming.learn(&NameObservation::Cgroup { id, path });
        let one = record(&process(11, 0).in_cgroup(id));
        host.naming.foresee_containers(&one, NOW);
    }
    let asked = std::iter::from_fn(|| host.naming.poll_container_ask()).count();
    assert_eq!(asked, 3);
}

#[test]
fn a_container_nobody_could_look_into_has_no_user_names() {
    let mut host = Host::default();
    host.naming.learn(&NameObservation::Cgroup {
        id: DOCKER,
        path: format!("/docker/{ID}"),
    });
    let brief = process(11, 1000).in_cgroup(DOCKER);
    host.naming.learn(&exec(&brief, 0, "/bin/wget", &["wget"]));

    let names = host.names(&brief);

    assert_eq!((names.user.as_ref(), names.group.as_ref()), (None, None));
    assert_eq!(host.naming.counts().user_absent, 1);
}

#[test]
fn a_path_that_may_be_cut_is_asked_for() {
    let mut host = Host::default();
    host.naming.learn(&NameObservation::Cgroup {
        id: 90,
        path: format!("/docker/{ID}/{}", "x".repeat(CGROUP_PATH_MAX)),
    });
    host.paths.insert(90, "/user.slice".into());
    let inner = process(10, 0).in_cgroup(90);

    assert_eq!(host.names(&inner).container, None);
    assert_eq!(host.asked(|ask| matches!(ask, Ask::Cgroup { id: 90, .. })), 1);
}

#[test]
fn what_is_absent_is_asked_for_once_and_counted() {
    let mut host = Host::default();
    let ghost = process(10, 4_000_000).in_cgroup(99);
    for _ in 0..3 {
        let names = host.names(&ghost);
        assert_eq!(*names, Names::default());
    }
    assert_eq!(host.asked(|ask| matches!(ask, Ask::Process(_))), 1);
    assert_eq!(host.asked(|ask| matches!(ask, Ask::Cgroup { .. })), 1);
    let counts = host.naming.counts();
    assert_eq!(
        (
            counts.described,
            counts.executable_absent,
            counts.user_absent,
            counts.cgroup_absent
        ),
        (1, 1, 1, 1)
    );
}

#[test]
fn a_user_s_name_is_asked_for_again_when_it_is_old() {
    let mut host = Host::default();
    host.names(&process(10, 1000));
    host.names(&process(11, 1000));
    let user = |ask: &Ask| matches!(ask, Ask::User { uid: 1000, .. });
    assert_eq!(host.asked(user), 1);

    host.now = NOW.after(USER_FRESH);
    assert_eq!(host.names(&process(12, 1000)).user.as_deref(), Some("user1000"));
    assert_eq!(host.asked(user), 2);
}

#[test]
fn after_a_loss_a_process_is_read_again_and_doubt_means_no_name() {
    let mut host = Host::default();
    let shell = process(10, 0);
    host.naming.learn(&exec(&shell, 1, "/bin/bash", &["bash"]));
    let mut child = process(11, 0).child_of(10);
    host.naming.learn(&fork(&shell, 11));
    assert_eq!(host.names(&child).executable.as_deref(), Some("/bin/bash"));
    host.naming.lost_events();

    // The same command name as its program had: no sign of another exec.
    assert_eq!(host.names(&child).executable.as_deref(), Some("/bin/bash"));
    host.naming.lost_events();

    child.comm = "curl".into();
    assert_eq!(host.names(&child).executable, None);
    assert_eq!(host.naming.counts().doubtful, 1);
    host.naming.lost_events();

    host.live(&child, facts(Some("/usr/bin/curl"), "curl", &["curl"]));
    assert_eq!(host.names(&child).executable.as_deref(), Some("/usr/bin/curl"));
}

#[test]
fn a_record_waits_until_its_asks_are_answered() {
    let mut naming = Naming::new(NamingOptions::default());
    let mut record = record(&process(10, 0));

    assert_eq!(naming.name(&mut record, NOW), NamingState::Waiting);
    assert_eq!(naming.name(&mut record, NOW), NamingState::Waiting);
    assert!(matches!(naming.poll_ask(), Some(Ask::Process(_))));
    assert!(matches!(naming.poll_ask(), Some(Ask::Cgroup { id: SESSION, .. })));
    assert_eq!(naming.poll_ask(), None);
}

#[test]
fn an_owner_without_a_process_needs_no_names() {
    let mut naming = Naming::new(NamingOptions::default());
    let mut record = record(&process(10, 0));
    record.responder.owner = Owner::unknown(Unknown::Kernel);

    assert_eq!(naming.name(&mut record, NOW), NamingState::Complete);
    assert_eq!(record.responder.owner.names, None);
}

#[test]
fn a_full_queue_of_asks_is_counted_and_tried_again() {
    let mut naming = Naming::new(NamingOptions::default());
    for pid in 1..=u32::try_from(ASKS_MAX).expect("it is small") {
        let _ = naming.name(&mut record(&process(pid, 0).in_cgroup(0)), NOW);
    }
    let mut late = record(&process(1_000_000, 0).in_cgroup(0));
    assert_eq!(naming.name(&mut late, NOW), NamingState::Waiting);
    assert_eq!(naming.counts().asks_refused, 1);
    assert!(naming.poll_ask().is_some());
    assert_eq!(naming.name(&mut late, NOW), NamingState::Waiting);
    assert_eq!(naming.counts().asks_refused, 1);
}

#[test]
fn caches_are_bounded() {
    let mut host = Host::with(NamingOptions {
        processes_max: 16,
        cgroups_max: 8,
        users_max: 8,
        ..NamingOptions::default()
    });
    for pid in 2..2000 {
        let child = process(pid, pid).in_cgroup(u64::from(pid)).child_of(pid - 1);
        host.naming.learn(&fork(&process(pid - 1, 0), pid));
        host.naming
            .learn(&exec(&child, pid - 1, "/bin/tool", &["tool", "x"]));
        let _ = host.naming.name(&mut record(&child), NOW);
        host.settle();
    }
    assert!(host.naming.processes.len() <= 16);
}

#[test]
fn an_answer_of_another_kind_is_nothing() {
    let mut naming = Naming::new(NamingOptions::default());
    let key = process(10, 0).key;
    naming.answer(Ask::Process(key), Answer::Name(Some("x".into())));
    naming.answer(
        Ask::User {
            scope: Scope::Host,
            uid: 0,
        },
        Answer::Path(None),
    );
    naming.answer(Ask::Cgroup { id: 1, process: key }, Answer::Process(None));
    assert_eq!(naming.counts().processes_gone, 1);
}

/// One thing that happens on the host, for the model below. `lost`: the event is.
#[derive(Clone, Debug)]
enum Step {
    Fork { who: usize, lost: bool },
    Exec { who: usize, what: u8, lost: bool },
    Exit { who: usize },
    Use { who: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..64_usize;
    let lost = || prop::bool::weighted(0.1);
    prop_oneof![
        2 => (who.clone(), lost()).prop_map(|(who, lost)| Step::Fork { who, lost }),
        2 => (who.clone(), 0..5_u8, lost()).prop_map(|(who, what, lost)| Step::Exec { who, what, lost }),
        1 => who.clone().prop_map(|who| Step::Exit { who }),
        3 => who.prop_map(|who| Step::Use { who }),
    ]
}

/// A process of the model.
struct Truth {
    process: Process,
    alive: bool,
    /// All it ever ran, newest last.
    ran: Vec<String>,
}

impl Truth {
    fn runs(&self) -> &String {
        self.ran.last().expect("it ran something from its start")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever processes do, whatever is lost, and however small the cache is: a name is the right one, or none.
    #[test]
    fn no_record_gets_the_names_of_another_process(
        steps in prop::collection::vec(step(), 1..120),
        processes_max in 1..40_usize,
        agent_starts_at in 0..60_usize,
    ) {
        let mut host = Host::with(NamingOptions { processes_max, ..NamingOptions::default() });
        let init = Process { comm: "tool9".into(), ..process(1, 0).child_of(0) };
        let mut truth = vec![Truth { process: init, alive: true, ran: vec!["/bin/tool9".into()] }];
        for (at, step) in steps.into_iter().enumerate() {
            let up = at >= agent_starts_at;
            let count = truth.len();
            match step {
                Step::Fork { who, lost } => {
                    let parent = &truth[who % count];
                    if !parent.alive { continue }
                    let pid = u32::try_from(count + 1).expect("it is small");
                    let comm = parent.process.comm;
                    let child = Process { comm, ..process(pid, 0).child_of(parent.process.key.pid) };
                    let seen = fork(&parent.process, pid);
                    let ran = vec![parent.runs().clone()];
                    truth.push(Truth { process: child, alive: true, ran });
                    host.tell(&seen, up, lost);
                }
                Step::Exec { who, what, lost } => {
                    let one = &mut truth[who % count];
                    if !one.alive { continue }
                    one.ran.push(format!("/bin/tool{what}"));
                    one.process.comm = format!("tool{what}").into();
                    let seen = exec(&one.process, one.process.parent_pid, one.runs(), &[one.runs()]);
                    host.tell(&seen, up, lost);
                }
                Step::Exit { who } => truth[who % count].alive = false,
                Step::Use { who } if up => {
                    host.live.clear();
                    for one in truth.iter().filter(|one| one.alive) {
                        host.live(&one.process, facts(Some(one.runs()), &one.process.comm, &[one.runs()]));
                    }
                    let one = &truth[who % count];
                    let Some(names) = host.try_names(&one.process) else { continue };
                    if let Some(executable) = &names.executable {
                        prop_assert_eq!(executable, one.runs());
                        prop_assert_eq!(names.command_line.as_ref(), Some(one.runs()));
                    } else {
                        prop_assert!(!one.alive, "a live process is named");
                    }
                    if let Some(parent) = &names.parent {
                        prop_assert_eq!(parent.pid, one.process.parent_pid);
                        let parents = truth.iter().find(|truth| truth.process.key.pid == parent.pid);
                        prop_assert!(parents.is_some_and(|truth| truth.ran.contains(&parent.executable)));
                    }
                }
                Step::Use { .. } => {}
            }
        }
    }
}

/// A made-up host that answers asks.
struct Host {
    naming: Naming,
    live: HashMap<ProcessKey, ProcessFacts>,
    paths: HashMap<u64, String>,
    asks: Vec<Ask>,
    now: KernelTime,
}

impl Default for Host {
    fn default() -> Self {
        Self::with(NamingOptions::default())
    }
}

impl Host {
    fn with(options: NamingOptions) -> Self {
        Self {
            naming: Naming::new(options),
            live: HashMap::new(),
            paths: HashMap::from([(SESSION, "/user.slice/session-1.scope".to_owned())]),
            asks: Vec::new(),
            now: NOW,
        }
    }

    fn live(&mut self, process: &Process, facts: ProcessFacts) {
        self.live.insert(process.key, facts);
    }

    fn tell(&mut self, seen: &NameObservation, up: bool, lost: bool) {
        match (up, lost) {
            (false, _) => {}
            (true, true) => self.naming.lost_events(),
            (true, false) => self.naming.learn(seen),
        }
    }

    fn settle(&mut self) {
        while let Some(ask) = self.naming.poll_ask() {
            let answer = match ask {
                Ask::Process(key) => Answer::Process(self.live.get(&key).cloned().map(Box::new)),
                Ask::User { scope, uid } => Answer::Name(match (scope, uid) {
                    (_, 4_000_000) => None,
                    (Scope::Host, 0) => Some("root".into()),
                    (Scope::Host, uid) => Some(format!("user{uid}")),
                    (_, uid) => Some(format!("other{uid}")),
                }),
                Ask::Group { gid, .. } => Answer::Name(Some(format!("group{gid}"))),
                Ask::Cgroup { id, .. } => Answer::Path(self.paths.get(&id).cloned()),
            };
            self.asks.push(ask);
            self.naming.answer(ask, answer);
        }
    }

    fn try_names(&mut self, process: &Process) -> Option<Arc<Names>> {
        let mut record = record(process);
        for _ in 0..8 {
            let state = self.naming.name(&mut record, self.now);
            let names = record.responder.owner.names.clone();
            if state == NamingState::Complete {
                return names;
            }
            self.settle();
        }
        None
    }

    fn names(&mut self, process: &Process) -> Arc<Names> {
        self.try_names(process)
            .expect("naming ends when every ask is answered")
    }

    fn asked(&self, which: impl Fn(&Ask) -> bool) -> usize {
        self.asks.iter().filter(|ask| which(ask)).count()
    }
}

impl Process {
    fn child_of(self, pid: u32) -> Self {
        Self {
            parent_pid: pid,
            ..self
        }
    }

    fn in_cgroup(self, cgroup_id: u64) -> Self {
        Self { cgroup_id, ..self }
    }
}

/// A storm of processes that live 5 ms: each is named some hundred others later, when nothing of it is left to read.
/// The newest must stay, whatever was there before; the oldest can be read again if they live.
#[test]
fn a_storm_longer_than_the_memory_keeps_the_names_of_all_that_are_not_named_yet() {
    const STORM: u32 = 20_000;
    const BEHIND: u32 = 400;
    let mut naming = Naming::new(NamingOptions::default());
    let mut unnamed = Vec::new();
    for pid in 2..STORM {
        naming.learn(&exec(&process(pid, 0), 1, "/bin/storm", &["storm"]));
        let Some(earlier) = pid.checked_sub(BEHIND).filter(|&earlier| earlier >= 2) else {
            continue;
        };
        let mut told = record(&process(earlier, 0));
        let now = KernelTime(u64::from(pid) * 1_000);
        while naming.name(&mut told, now) == NamingState::Waiting {
            let Some(ask) = naming.poll_ask() else { break };
            let answer = match ask {
                Ask::Process(_) => Answer::Process(None),
                Ask::User { .. } | Ask::Group { .. } => Answer::Name(None),
                Ask::Cgroup { .. } => Answer::Path(None),
            };
            naming.answer(ask, answer);
        }
        let names = told.responder.owner.names.as_ref();
        if names.and_then(|names| names.executable.as_deref()) != Some("/bin/storm") {
            unnamed.push(earlier);
        }
    }
    assert!(
        unnamed.is_empty(),
        "{} unnamed, from {:?} to {:?}",
        unnamed.len(),
        unnamed.first(),
        unnamed.last()
    );
}

fn process(pid: u32, uid: u32) -> Process {
    Process {
        key: key(pid),
        parent_pid: 1,
        uid,
        gid: 0,
        cgroup_id: SESSION,
        comm: "comm".into(),
    }
}

fn key(pid: u32) -> ProcessKey {
    ProcessKey {
        pid,
        start: KernelTime(u64::from(pid) * 100),
    }
}

fn exec(process: &Process, parent: u32, path: &str, arguments: &[&str]) -> NameObservation {
    NameObservation::Exec {
        process: Process {
            parent_pid: parent,
            ..*process
        },
        parent_start: key(parent).start,
        path: Some(path.into()),
        arguments: arguments.iter().map(|&argument| argument.into()).collect(),
        cut: false,
    }
}

fn fork(parent: &Process, child: u32) -> NameObservation {
    NameObservation::Fork {
        parent: *parent,
        child: key(child),
    }
}

fn facts(executable: Option<&str>, comm: &str, arguments: &[&str]) -> ProcessFacts {
    ProcessFacts {
        executable: executable.map(str::to_owned),
        arguments: arguments.iter().map(|&argument| argument.into()).collect(),
        cut: false,
        comm: comm.into(),
        uid: 0,
        scope: Scope::Host,
        parent: None,
    }
}

/// A record whose responder is `process`, and whose initiator is elsewhere.
fn record(process: &Process) -> FlowRecord {
    let party = |owner| Party {
        endpoint: Endpoint {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
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
        initiator: party(Owner::unknown(Unknown::Remote)),
        responder: party(Owner {
            confidence: Confidence::Exact,
            process: Some(*process),
            names: None,
        }),
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
