//! How a runtime that misbehaves is borne. What real ones say is tested end to end.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use flowtilla_agent_core::enrich::NamingOptions;
use flowtilla_agent_core::enrich::container::{ContainerId, RuntimeKind};
use flowtilla_proto::policy::Policy;
use flowtilla_proto::wire;

use super::*;

mod cri;

const LIST: &str = "/containers/json";
const ID: &str = "4f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";
/// For what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a runtime does with a request for a target.
type Behaviour = fn(target: &str, to: &mut UnixStream);

/// A socket in a directory of its own that behaves as it is told, from when it is made until the test ends.
struct Runtime {
    directory: tempfile::TempDir,
    name: &'static str,
}

impl Runtime {
    fn absent() -> Self {
        Self::absent_at("runtime.sock")
    }

    fn absent_at(name: &'static str) -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            name,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(self.name)
    }

    /// Serves until so many connections were served; then its socket goes.
    fn serve(&self, connections: usize, behaviour: Behaviour) {
        let path = self.path();
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || {
            let mut served = Vec::new();
            for stream in listener.incoming().take(connections).flatten() {
                served.push(std::thread::spawn(move || answer(stream, behaviour)));
            }
            drop(listener);
            let _ = std::fs::remove_file(path);
        });
    }

    fn sockets(&self) -> Vec<SocketPath> {
        let policy = wire::Policy {
            enrich: Some(wire::Enrich {
                containers: Some(wire::Containers {
                    names: None,
                    sockets: vec![self.path().display().to_string()],
                }),
                ..wire::Enrich::default()
            }),
            ..wire::Policy::default()
        };
        let policy = Policy::try_from(policy).expect("sound");
        policy.enrich.containers.sockets().to_vec()
    }
}

fn answer(mut stream: UnixStream, behaviour: Behaviour) {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&chunk[..count]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let target = request.split(' ').nth(1).unwrap_or_default();
    behaviour(target, &mut stream);
}

/// An answer with a body; a client that left is no error.
fn say(to: &mut UnixStream, body: &str) {
    let _ = write!(
        to,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

/// Says nothing until the other side leaves.
fn hang(to: &mut UnixStream) {
    let _ = to.read(&mut [0]);
}

/// A runtime without containers that behaves, but for what it is asked about one.
fn sound(target: &str, to: &mut UnixStream) {
    match target.split('?').next() {
        Some("/version") => say(to, r#"{"Components":[{"Name":"Engine"}]}"#),
        Some(LIST) => say(to, "[]"),
        Some("/events") => hang(to),
        _ => say(
            to,
            &format!(r#"{{"Id":"{ID}","Name":"/asked","Config":{{"Image":"i","Labels":null}}}}"#),
        ),
    }
}

/// What comes until `wanted` has come.
async fn news(link: &mut Link, wanted: impl Fn(&ContainerNews) -> bool) -> Vec<ContainerNews> {
    let mut all = Vec::new();
    let whole = async {
        while let Some(news) = link.news.recv().await {
            let is_last = wanted(&news);
            all.push(news);
            if is_last {
                return;
            }
        }
    };
    let came = tokio::time::timeout(PATIENCE, whole).await;
    assert!(came.is_ok(), "only {all:?} came");
    all
}

fn name(news: &ContainerNews) -> Option<&str> {
    match news {
        ContainerNews::Known(facts) => Some(facts.name()),
        _ => None,
    }
}

fn start(runtime: &Runtime) -> (Containers, Link) {
    let (containers, link) = Containers::start(&runtime.sockets(), 7);
    (containers.expect("a task"), link.expect("a link"))
}

const TELLS: ContainerNews = ContainerNews::Stands(0, Teller::Tells(RuntimeKind::Docker));

#[tokio::test]
async fn an_unknown_container_is_asked_for() {
    let runtime = Runtime::absent();
    runtime.serve(usize::MAX, sound);
    let (_tasks, mut link) = start(&runtime);
    news(&mut link, |news| *news == TELLS).await;
    let id = ContainerId::parse(ID).expect("an id");
    for asked in [
        flowtilla_agent_core::owner::Runtime::Podman,
        flowtilla_agent_core::owner::Runtime::Docker,
    ] {
        link.asks
            .send(ContainerAsk { id, runtime: asked })
            .expect("a task listens");
    }
    let came = news(&mut link, |news| name(news) == Some("asked")).await;
    assert_eq!(came.len(), 1, "of podman's it knows nothing: {came:?}");
}

#[tokio::test]
async fn a_runtime_that_comes_late_and_is_lost_is_found_again() {
    let runtime = Runtime::absent();
    let (_tasks, mut link) = start(&runtime);
    news(&mut link, |news| *news == ContainerNews::Stands(0, Teller::Away)).await;
    // Version, events, list; then its socket goes, and with an ask so does its stream of events.
    runtime.serve(3, |target, to| match target.split('?').next() {
        Some("/events") => say(to, ""),
        _ => sound(target, to),
    });
    news(&mut link, |news| *news == TELLS).await;
    news(&mut link, |news| {
        *news == ContainerNews::Stands(0, Teller::Trying)
    })
    .await;
    // Its socket goes once the thread is done.
    while runtime.path().exists() {
        tokio::task::yield_now().await;
    }
    runtime.serve(usize::MAX, sound);
    news(&mut link, |news| *news == TELLS).await;
}

#[tokio::test]
async fn a_list_too_long_or_events_that_are_none_cost_only_themselves() {
    let runtime = Runtime::absent();
    runtime.serve(usize::MAX, |target, to| match target.split('?').next() {
        Some(LIST) => {
            let _ = write!(to, "HTTP/1.1 200 OK\r\n\r\n[");
            let chunk = vec![b' '; 1 << 16];
            while to.write_all(&chunk).is_ok() {}
        }
        Some("/events") => {
            let event = |id: &str, name: &str| {
                format!(r#"{{"Type":"container","Actor":{{"ID":"{id}","Attributes":{{"name":"{name}"}}}}}}"#)
            };
            let long = "x".repeat(2 * docker::http::EVENT_OCTETS_MAX);
            let body = [
                "no JSON".to_owned(),
                "{}".to_owned(),
                event("short", "a"),
                event(ID, &long),
                event(ID, ""),
                event(ID, "<b>\\u001b[2J</b>"),
            ];
            let _ = write!(to, "HTTP/1.1 200 OK\r\n\r\n{}\n", body.join("\n"));
            hang(to);
        }
        _ => sound(target, to),
    });
    let (_tasks, mut link) = start(&runtime);
    let came = news(&mut link, |news| name(news).is_some()).await;
    let named: Vec<&str> = came.iter().filter_map(name).collect();
    assert_eq!(named, ["‹b›\u{fffd}[2J‹/b›"]);
    assert!(came.contains(&TELLS), "{came:?}");
}

#[tokio::test]
async fn what_speaks_no_docker_is_away_and_holds_up_nobody() {
    for behaviour in [
        (|_, to| say(to, "hello")) as Behaviour,
        |_, to| {
            let _ = to.write_all(b"SSH-2.0-OpenSSH\r\n");
        },
        |_, to| {
            let _ = to.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        },
        |_, _| {},
        |_, to| hang(to),
    ] {
        let runtime = Runtime::absent();
        runtime.serve(usize::MAX, behaviour);
        let (_tasks, mut link) = start(&runtime);
        let mut naming = Naming::new(NamingOptions::default());
        naming.set_container_sockets(link.sockets());
        // At once, whatever it does.
        link.tell(&mut naming);
        link.ask(&mut naming);
        let came = news(&mut link, |news| matches!(news, ContainerNews::Stands(..))).await;
        assert_eq!(came, [ContainerNews::Stands(0, Teller::Away)]);
    }
}

#[tokio::test]
async fn one_that_hangs_at_an_ask_is_left_and_begun_anew() {
    let runtime = Runtime::absent();
    runtime.serve(usize::MAX, |target, to| match target {
        target if target.ends_with("/json") && target != LIST => hang(to),
        _ => sound(target, to),
    });
    let (_tasks, mut link) = start(&runtime);
    news(&mut link, |news| *news == TELLS).await;
    let id = ContainerId::parse(ID).expect("an id");
    let runtime = flowtilla_agent_core::owner::Runtime::Docker;
    link.asks
        .send(ContainerAsk { id, runtime })
        .expect("a task listens");
    news(&mut link, |news| {
        *news == ContainerNews::Stands(0, Teller::Trying)
    })
    .await;
    news(&mut link, |news| *news == TELLS).await;
}

#[test]
fn the_meter_takes_no_more_at_a_time_than_fits_the_channel() {
    let (send, news) = mpsc::channel(NEWS_MAX);
    let (asks, _) = broadcast::channel(ASKS_MAX);
    let mut link = Link {
        news,
        asks,
        sockets: 1,
    };
    let mut naming = Naming::new(NamingOptions::default());
    naming.set_container_sockets(1);
    for _ in 0..NEWS_MAX {
        send.try_send(ContainerNews::Stands(0, Teller::Away))
            .expect("room");
    }
    link.tell(&mut naming);
    assert!(link.news.try_recv().is_err());
}
