//! Promise: a controller whose process is killed at any moment of a push, a roll-out in waves or a roll-back comes back and the
//! fleet converges: no agent is between two policies, and no version goes back.
//!
//! The real program, killed by SIGKILL; agents are streams over real mutual TLS that judge, adopt, and answer. Moments are
//! random by seed, which is printed. `FLOWTILLA_SOAK=1` runs all cycles, else a tenth of them.

#[path = "killed/agent.rs"]
mod agent;
#[path = "killed/program.rs"]
mod program;

use std::sync::Arc;
use std::time::Duration;

use flowtilla_controller::clock::Clock;
use flowtilla_controller::identity::ca::Origin;
use flowtilla_controller::run::Options;
use flowtilla_controller::setup;
use flowtilla_grpc::channel::connect;
use flowtilla_grpc::fleet::fleet_client::FleetClient;
use flowtilla_proto::spiffe::TrustDomain;
use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{
    ApplyRequest, Object, RollbackRequest, RolloutState, RolloutsRequest, StatusRequest, object,
};
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use agent::{Agent, Host, REFUSED};
use program::{Program, identity};

const CYCLES: u64 = 120;
const AGENTS: u32 = 8;
/// Longest wait for the fleet to converge.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);
/// Latest second kill after a start, in milliseconds: while agents come back.
const AGAIN_MS: u64 = 400;
/// How long a wave is watched.
const SOAK_MS: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// To everybody at once.
    Push,
    Waves,
    /// One of the agents refuses: it goes back by itself.
    Refused,
    /// An operator goes back to a revision that was in force.
    RollBack,
}

const KINDS: [Kind; 4] = [Kind::Push, Kind::Waves, Kind::Refused, Kind::RollBack];

struct World {
    directory: TempDir,
    program: Option<Program>,
    admin: Arc<ClientConfig>,
    hosts: Vec<Arc<Host>>,
    clock: Clock,
    /// Revisions that were in force everywhere, with their flows.
    good: Vec<(u64, u64)>,
    kills: u64,
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("state");
        let clock = Clock::system();
        let grace = Options::new(state.clone(), Vec::new()).renew_grace;
        let domain = TrustDomain::parse("fleet.example").expect("a domain");
        let opened = setup::create(&state, &domain, &Origin::Own, grace, clock.now()).expect("a state");
        let admin = identity(&opened.identities, &clock, "admin");
        let identities: Vec<_> = (0..AGENTS)
            .map(|_| identity(&opened.identities, &clock, ""))
            .collect();
        drop(opened);
        let program = Program::start(&state, None);
        let mut hosts = Vec::new();
        for (n, tls) in (1..).zip(identities) {
            let host = Arc::new(Host::default());
            hosts.push(Arc::clone(&host));
            tokio::spawn(Agent::new(n, tls, program.address.clone(), host).run());
        }
        Self {
            directory,
            program: Some(program),
            admin,
            hosts,
            clock,
            good: Vec::new(),
            kills: 0,
        }
    }

    fn program(&self) -> &Program {
        self.program.as_ref().expect("it runs")
    }

    async fn operator(&self) -> FleetClient<Channel> {
        let channel = connect(&self.program().address, Arc::clone(&self.admin)).await;
        FleetClient::new(channel.expect("a channel"))
    }

    /// Asks for a change. Resolves to the revision, or to nothing when the controller did not say yes.
    async fn ask(&self, kind: Kind, flows: u64, back_to: u64) -> JoinHandle<Option<u64>> {
        let mut fleet = self.operator().await;
        tokio::spawn(async move {
            let answer = match kind {
                Kind::RollBack => {
                    let request = RollbackRequest {
                        revision: back_to,
                        ..RollbackRequest::default()
                    };
                    fleet.rollback(request).await
                }
                _ => {
                    let request = ApplyRequest {
                        objects: objects(kind, flows),
                        ..ApplyRequest::default()
                    };
                    fleet.apply(request).await
                }
            };
            answer.ok().map(|applied| applied.into_inner().revision)
        })
    }

    fn kill(&mut self) {
        self.kills += 1;
        let killed = self.program.take().expect("it runs");
        let address = killed.kill();
        let state = self.directory.path().join("state");
        self.program = Some(Program::start(&state, Some(&address)));
    }

    async fn is_settled(&self, fleet: &mut FleetClient<Channel>) -> bool {
        let status = fleet.status(StatusRequest {}).await.expect("status").into_inner();
        let rollouts = fleet.rollouts(RolloutsRequest { limit: 4 }).await;
        let rollouts = rollouts.expect("rollouts").into_inner().rollouts;
        let is_over = |state| {
            matches!(
                state,
                RolloutState::Done | RolloutState::RolledBack | RolloutState::Superseded
            )
        };
        status.connected == AGENTS
            && status.converged == AGENTS
            && rollouts.iter().all(|rollout| is_over(rollout.state()))
    }

    async fn converge(&self, what: &str) {
        let mut fleet = self.operator().await;
        let settled = async {
            while !self.is_settled(&mut fleet).await {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(PATIENCE, settled).await.is_err() {
            let status = fleet
                .status(StatusRequest {})
                .await
                .map(tonic::Response::into_inner);
            panic!("{what}: it does not converge: {status:?}");
        }
    }

    /// What all agents have in force.
    fn in_force(&self, what: &str) -> u64 {
        let mut flows = Vec::new();
        for host in &self.hosts {
            let at = host.state();
            assert_eq!(at.wrong, None, "{what}");
            flows.push(at.flows);
        }
        assert!(
            flows.iter().all(|&it| it == flows[0]),
            "{what}: agents have {flows:?}"
        );
        flows[0]
    }
}

/// A policy that says how many flows twice, so that a half of another one would show.
fn objects(kind: Kind, flows: u64) -> Vec<Object> {
    let waves: &[&str] = match kind {
        Kind::Push => &[],
        _ => &["1", "50%", "100%"],
    };
    let policy = wire::Policy {
        name: "all".into(),
        capture: Some(wire::Capture {
            max_flows: Some(flows),
            exclude: vec![wire::FlowRule {
                cidrs: vec![agent::marker(flows)],
                ..wire::FlowRule::default()
            }],
            ..wire::Capture::default()
        }),
        rollout: Some(wire::Rollout {
            waves: waves.iter().map(|&wave| wave.to_owned()).collect(),
            soak_ms: Some(SOAK_MS),
            ..wire::Rollout::default()
        }),
        ..wire::Policy::default()
    };
    let kind = Some(object::Kind::Policy(policy));
    vec![Object { kind }]
}

fn cycles() -> u64 {
    match std::env::var("FLOWTILLA_SOAK").is_ok_and(|value| value == "1") {
        true => CYCLES,
        false => CYCLES / 10,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_comes_back_and_the_fleet_converges() {
    let mut world = World::start().await;
    // How long each kind of change takes that nobody disturbs.
    let mut length_ms = [0; KINDS.len()];
    let mut flows = 0;
    for (n, kind) in KINDS.into_iter().enumerate() {
        let what = format!("{kind:?}, undisturbed");
        let next = if kind == Kind::Refused {
            REFUSED
        } else {
            1_000 + n as u64
        };
        let back_to = world.good.first().copied().unwrap_or_default();
        let begin = world.clock.run_ms();
        let asked = world.ask(kind, next, back_to.0).await;
        let revision = asked.await.expect("no panic").expect("a yes");
        world.converge(&what).await;
        length_ms[n] = world.clock.run_ms() - begin;
        match kind {
            Kind::Push | Kind::Waves => flows = next,
            Kind::Refused => {}
            Kind::RollBack => flows = back_to.1,
        }
        assert_eq!(world.in_force(&what), flows, "{what}");
        if kind != Kind::Refused {
            world.good.push((revision, flows));
        }
    }
    println!("undisturbed, {KINDS:?} take {length_ms:?} ms");
    for seed in 0..cycles() {
        let mut rng = fastrand::Rng::with_seed(seed);
        let n = usize::try_from(seed).expect("small") % KINDS.len();
        let kind = KINDS[n];
        let next = if kind == Kind::Refused {
            REFUSED
        } else {
            2_000 + seed
        };
        let back_to = world.good[rng.usize(..world.good.len())];
        let asked = world.ask(kind, next, back_to.0).await;
        let at_ms = rng.u64(..=length_ms[n]);
        tokio::time::sleep(Duration::from_millis(at_ms)).await;
        world.kill();
        let again_ms = rng.bool().then(|| rng.u64(..AGAIN_MS));
        if let Some(again_ms) = again_ms {
            tokio::time::sleep(Duration::from_millis(again_ms)).await;
            world.kill();
        }
        let said_yes = asked.await.expect("no panic");
        let what = format!("seed {seed}: {kind:?}, killed after {at_ms} ms, then {again_ms:?}");
        println!("{what}; revision {said_yes:?}");
        world.converge(&what).await;
        let has = world.in_force(&what);
        let wanted = match kind {
            Kind::Push | Kind::Waves => next,
            Kind::Refused => flows,
            Kind::RollBack => back_to.1,
        };
        // What was not confirmed may or may not be there, whole.
        assert!(
            has == wanted || (said_yes.is_none() && has == flows),
            "{what}: agents have {has}, {wanted} is wanted, {flows} was before"
        );
        flows = has;
        if let Some(revision) = said_yes.filter(|_| kind != Kind::Refused) {
            world.good.push((revision, flows));
        }
    }
    println!("{} cycles, {} kills", cycles(), world.kills);
}
