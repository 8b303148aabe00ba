//! How many agents one controller holds: real mTLS streams from a process of their own, a policy pushed to all, a restart.
//!
//! `swarm AGENTS` starts itself as the controller, connects so many agents, pushes policies and prints: time until all are
//! connected, push until acked (p50, p99, last), CPU and memory of the controller, and the time until all are back after the
//! controller was restarted. Clients share the machine's cores; the figures say so. Run it in a release build.

use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use flowtilla_controller::clock::Clock;
use flowtilla_controller::enrolment::TokenOrder;
use flowtilla_controller::identities::Identities;
use flowtilla_controller::identity::ca::Origin;
use flowtilla_controller::run::{Controller, Options};
use flowtilla_controller::setup;
use flowtilla_grpc::channel::{Address, connect};
use flowtilla_grpc::fleet::fleet_client::FleetClient;
use flowtilla_grpc::session::session_client::SessionClient;
use flowtilla_grpc::trust;
use flowtilla_proto::spiffe::TrustDomain;
use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{ApplyRequest, Object, StatusRequest, object};
use flowtilla_proto::wire::session::{self as say, from_agent, to_agent::Body};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Pushes that are measured.
const ROUNDS: u64 = 5;
/// Handshakes at once from the clients' side.
const CONNECTING_MAX: usize = 64;
const PATIENCE: Duration = Duration::from_secs(180);

type Acked = mpsc::Sender<(u64, u64)>;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match &arguments[1..] {
        [mode, state] if mode == "serve" => runtime.block_on(serve(Path::new(state))),
        [agents] => runtime.block_on(measure(agents.parse().context("write how many agents")?)),
        _ => anyhow::bail!("write how many agents"),
    }
}

/// The controller's process: says where it listens, and ends when its input does.
async fn serve(state: &Path) -> anyhow::Result<()> {
    let options = Options::new(state.to_owned(), vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
    let controller = Controller::start(options).await?;
    println!("{}", controller.address());
    std::io::stdout().flush()?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    controller.stop().await?;
    Ok(())
}

struct Served {
    child: Child,
    address: Address,
}

impl Served {
    fn start(state: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(state)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("its output")?;
        std::io::BufReader::new(out).read_line(&mut line)?;
        let address = Address::parse(line.trim())?;
        Ok(Self { child, address })
    }

    /// CPU time in milliseconds and resident memory in KiB.
    fn cost(&self) -> anyhow::Result<(u64, u64)> {
        let of = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        let stat = of("stat")?;
        let after = stat.rsplit(')').next().context("stat")?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let status = of("status")?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .context("VmRSS")?;
        let kib = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
        Ok((ticks * 10, kib))
    }

    fn stop(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        self.child.wait()?;
        Ok(())
    }
}

fn identity(identities: &Identities, clock: &Clock, operator: &str) -> anyhow::Result<Arc<ClientConfig>> {
    let order = TokenOrder {
        operator: operator.to_owned(),
        ..TokenOrder::default()
    };
    let (token, _) = identities.create_token(&order, None, clock.now())?;
    let pair = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::new(Vec::<String>::new())?.serialize_request(&pair)?;
    let granted = identities.enrol(&token.expose(), csr.der(), "swarm", clock.now())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let key = CertifiedKey::from_der(granted.issued.chain.clone(), key, &trust::provider())?;
    let bundle: Vec<CertificateDer<'static>> = granted.bundle.into_iter().map(Into::into).collect();
    let shown = Arc::new(SingleCertAndKey::from(key));
    Ok(Arc::new(trust::with_bundle(&bundle, Some(shown))?))
}

async fn measure(agents: usize) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let state: PathBuf = directory.path().join("state");
    let clock = Clock::system();
    let options = Options::new(state.clone(), Vec::new());
    let domain = TrustDomain::parse("swarm.example").map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    let opened = setup::create(&state, &domain, &Origin::Own, options.renew_grace, clock.now())?;
    let mut members = Vec::new();
    for _ in 0..agents {
        members.push(identity(&opened.identities, &clock, "")?);
    }
    let admin = identity(&opened.identities, &clock, "admin")?;
    drop(opened);
    println!("{agents} identities");

    let served = Served::start(&state)?;
    let begin = clock.run_ms();
    let (idle, idle_kib) = served.cost()?;
    let (acked, mut acks) = mpsc::channel(agents * 2);
    let address = Arc::new(std::sync::Mutex::new(served.address.clone()));
    let gate = Arc::new(tokio::sync::Semaphore::new(CONNECTING_MAX));
    let live = Arc::new(AtomicUsize::new(0));
    for (n, tls) in members.into_iter().enumerate() {
        let agent = Agent {
            n: u32::try_from(n)? + 1,
            tls,
            address: Arc::clone(&address),
            gate: Arc::clone(&gate),
            acked: acked.clone(),
            live: Arc::clone(&live),
            clock: clock.clone(),
        };
        tokio::spawn(agent.run());
    }
    let mut fleet = FleetClient::new(connect(&served.address, Arc::clone(&admin)).await?);
    converged(&mut fleet, agents).await?;
    while acks.try_recv().is_ok() {}
    let (cpu, kib) = served.cost()?;
    println!(
        "all connected and converged after {} ms; {} us of CPU an agent; {} MiB, {} KiB a stream",
        clock.run_ms() - begin,
        (cpu - idle) * 1_000 / agents as u64,
        kib / 1_024,
        (kib - idle_kib) / agents as u64
    );
    for round in 1..=ROUNDS {
        push(&served, &mut fleet, &mut acks, round, agents, &clock).await?;
    }
    let (_, kib) = served.cost()?;
    println!(
        "{} MiB, {} KiB a stream, all in",
        kib / 1_024,
        kib / agents as u64
    );

    served.stop()?;
    let served = Served::start(&state)?;
    let begin = clock.run_ms();
    *address.lock().expect("an address") = served.address.clone();
    let mut fleet = FleetClient::new(connect(&served.address, admin).await?);
    converged(&mut fleet, agents).await?;
    println!("all back {} ms after a restart", clock.run_ms() - begin);
    served.stop()
}

async fn push(
    served: &Served,
    fleet: &mut FleetClient<Channel>,
    acks: &mut mpsc::Receiver<(u64, u64)>,
    round: u64,
    agents: usize,
    clock: &Clock,
) -> anyhow::Result<()> {
    let (before, _) = served.cost()?;
    let begin = clock.run_ms();
    let request = ApplyRequest {
        objects: objects(round),
        ..ApplyRequest::default()
    };
    let applied = fleet.apply(request).await?.into_inner();
    ensure!(
        applied.agents.len() == agents,
        "{} agents change",
        applied.agents.len()
    );
    let mut times = Vec::with_capacity(agents);
    while times.len() < agents {
        let (revision, at) = tokio::time::timeout(PATIENCE, acks.recv())
            .await?
            .context("an ack")?;
        if revision == applied.revision {
            times.push(at - begin);
        }
    }
    let answered = clock.run_ms() - begin;
    converged(fleet, agents).await?;
    times.sort_unstable();
    let at = |permille: usize| times[(times.len() * permille / 1_000).min(times.len() - 1)];
    println!(
        "push {round}: sent back by agents p50 {} ms, p99 {} ms, last {answered} ms; in force at the controller {} ms; \
         {} us of CPU an agent",
        at(500),
        at(990),
        clock.run_ms() - begin,
        (served.cost()?.0 - before) * 1_000 / agents as u64
    );
    Ok(())
}

async fn converged(fleet: &mut FleetClient<Channel>, agents: usize) -> anyhow::Result<()> {
    let reached = async {
        loop {
            let status = fleet.status(StatusRequest {}).await?.into_inner();
            if status.converged as usize == agents {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await?
}

/// A policy of about 4 KiB, another one each time.
fn objects(round: u64) -> Vec<Object> {
    let rule = |n: u64| wire::FlowRule {
        cidrs: (0..56).map(|host| format!("10.{round}.{n}.{host}/32")).collect(),
        ..wire::FlowRule::default()
    };
    let policy = wire::Policy {
        name: "all".into(),
        capture: Some(wire::Capture {
            exclude: (0..4).map(rule).collect(),
            ..wire::Capture::default()
        }),
        ..wire::Policy::default()
    };
    vec![Object {
        kind: Some(object::Kind::Policy(policy)),
    }]
}

struct Agent {
    n: u32,
    tls: Arc<ClientConfig>,
    address: Arc<std::sync::Mutex<Address>>,
    gate: Arc<tokio::sync::Semaphore>,
    acked: Acked,
    live: Arc<AtomicUsize>,
    clock: Clock,
}

impl Agent {
    async fn run(self) {
        let mut held = None;
        let mut random = fastrand::Rng::with_seed(self.n.into());
        loop {
            if let Err(error) = self.session(&mut held).await
                && self.live.load(Ordering::Relaxed) == 0
            {
                eprintln!("agent {}: {error:#}", self.n);
            }
            tokio::time::sleep(Duration::from_millis(random.u64(0..2_000))).await;
        }
    }

    async fn session(&self, held: &mut Option<say::Held>) -> anyhow::Result<()> {
        let permit = self.gate.acquire().await?;
        let address = self.address.lock().expect("an address").clone();
        let channel = connect(&address, Arc::clone(&self.tls)).await?;
        let (out, messages) = mpsc::channel(4);
        let say = |body| say::FromAgent { body: Some(body) };
        let hello = say::Hello {
            source_id: self.n,
            host_name: format!("host-{}", self.n),
            addresses: vec![(0x0a00_0000_u32 + self.n).to_be_bytes().to_vec()],
            held: held.clone(),
            ..say::Hello::default()
        };
        out.send(say(from_agent::Body::Hello(hello))).await?;
        let stream = ReceiverStream::new(messages);
        let mut told = SessionClient::new(channel).open(stream).await?.into_inner();
        drop(permit);
        let mut beats = tokio::time::interval(Duration::from_secs(10));
        loop {
            let message = tokio::select! {
                message = told.message() => message?.context("the end")?,
                _ = beats.tick() => {
                    let health = say::Health { uptime_ms: 1, capturing: true, ..say::Health::default() };
                    let beat = say::Heartbeat { held: held.clone(), health: Some(health), addresses: None };
                    out.send(say(from_agent::Body::Heartbeat(beat))).await?;
                    continue;
                }
            };
            match message.body {
                Some(Body::Welcome(_)) => {
                    self.live.fetch_add(1, Ordering::Relaxed);
                }
                Some(Body::Offer(offer)) => {
                    let assignment: say::Assignment = prost::Message::decode(&offer.content[..])?;
                    let mark = say::Held {
                        epoch: offer.epoch,
                        version: offer.version,
                        digest: offer.digest,
                    };
                    *held = Some(mark.clone());
                    let ack = say::Ack {
                        nonce: offer.nonce,
                        held: Some(mark),
                        effective: None,
                    };
                    out.send(say(from_agent::Body::Ack(ack))).await?;
                    let _ = self.acked.try_send((assignment.revision, self.clock.run_ms()));
                }
                Some(Body::Ended(ended)) => anyhow::bail!("ended: {}", ended.message),
                _ => {}
            }
        }
    }
}
