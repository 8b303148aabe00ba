//! Policies reach agents over real mutual TLS, operators ask over the same door, and nobody passes for somebody else.

#[path = "identity/scene.rs"]
#[allow(
    dead_code,
    reason = "shared with the tests of identities, which use more of it"
)]
mod scene;

use std::time::Duration;

use flowtilla_controller::enrolment::TokenOrder;
use flowtilla_controller::identities::Revocation;
use flowtilla_grpc::fleet::fleet_client::FleetClient;
use flowtilla_grpc::session::session_client::SessionClient;
use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{
    AgentState, AgentsRequest, ApplyRequest, Object, RevokeRequest, RolloutState, StatusRequest,
    WatchRequest, object, revoke_request,
};
use flowtilla_proto::wire::session::{self as say, EndReason, from_agent, to_agent::Body};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use scene::{Member, PATIENCE, Scene};

struct Line {
    out: mpsc::Sender<say::FromAgent>,
    told: Streaming<say::ToAgent>,
}

impl Line {
    async fn open(channel: Channel) -> Result<Self, tonic::Status> {
        let (out, messages) = mpsc::channel(8);
        let stream = ReceiverStream::new(messages);
        let told = SessionClient::new(channel).open(stream).await?.into_inner();
        Ok(Self { out, told })
    }

    /// As an agent of a version before there were features.
    async fn join(channel: Channel) -> Self {
        Self::join_with(channel, Vec::new(), None).await
    }

    async fn join_with(channel: Channel, features: Vec<i32>, held: Option<say::Held>) -> Self {
        let mut line = Self::open(channel).await.expect("opened");
        let hello = say::Hello {
            source_id: 7,
            features,
            held,
            ..say::Hello::default()
        };
        line.say(from_agent::Body::Hello(hello)).await;
        assert!(matches!(line.next().await, Body::Welcome(_)));
        line
    }

    async fn say(&self, body: from_agent::Body) {
        let message = say::FromAgent { body: Some(body) };
        self.out.send(message).await.expect("sent");
    }

    async fn next(&mut self) -> Body {
        let message = tokio::time::timeout(PATIENCE, self.told.message()).await;
        let message = message
            .expect("in time")
            .expect("a message")
            .expect("not the end");
        message.body.expect("a known message")
    }

    /// The next offer, acked; the policy in it.
    async fn adopt(&mut self) -> Option<wire::Policy> {
        self.adopt_and_hold().await.0
    }

    async fn adopt_and_hold(&mut self) -> (Option<wire::Policy>, say::Held) {
        let offer = loop {
            match self.next().await {
                Body::Offer(offer) => break offer,
                // On a machine that is slow enough, lists come meanwhile.
                Body::Members(_) => {}
                other => panic!("{other:?}"),
            }
        };
        let held = say::Held {
            epoch: offer.epoch,
            version: offer.version,
            digest: offer.digest.clone(),
        };
        self.say(from_agent::Body::Ack(say::Ack {
            nonce: offer.nonce,
            held: Some(held.clone()),
            effective: None,
        }))
        .await;
        let assignment = say::Assignment::decode(&offer.content[..]).expect("an assignment");
        (assignment.policy, held)
    }
}

async fn operator(scene: &Scene) -> (Member, FleetClient<Channel>) {
    let order = TokenOrder {
        operator: "admin".into(),
        ..TokenOrder::default()
    };
    let token = scene.identities().create_token(&order, None, scene.clock.now());
    let admin = scene
        .enrol(&token.expect("a token").0)
        .await
        .expect("an identity");
    let channel = scene.channel_of(&admin).await.expect("a channel");
    (admin, FleetClient::new(channel))
}

fn objects() -> Vec<Object> {
    let collector = wire::Collector {
        name: "c".into(),
        endpoint: "tcp://192.0.2.1:5556".into(),
        ..wire::Collector::default()
    };
    let policy = wire::Policy {
        name: "p".into(),
        export: Some(wire::Export {
            collectors: vec!["c".into()],
            ..wire::Export::default()
        }),
        ..wire::Policy::default()
    };
    let kinds = [object::Kind::Collector(collector), object::Kind::Policy(policy)];
    kinds
        .into_iter()
        .map(|kind| Object { kind: Some(kind) })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_policy_is_acked_over_mutual_tls_and_the_rollout_ends() {
    let scene = Scene::start().await;
    let (_, mut fleet) = operator(&scene).await;
    let agent = scene.member().await;
    // Another one has an identity and never comes: it counts, and holds nothing up.
    scene.member().await;
    let mut line = Line::join(scene.channel_of(&agent).await.expect("a channel")).await;
    assert_eq!(line.adopt().await, None);
    let request = ApplyRequest {
        objects: objects(),
        ..ApplyRequest::default()
    };
    let applied = fleet.apply(request).await.expect("applied").into_inner();
    assert_eq!((applied.revision, applied.agents.len()), (1, 2));
    let watch = WatchRequest {
        rollout: applied.rollout,
    };
    let mut events = fleet.watch(watch).await.expect("watched").into_inner();
    assert_eq!(line.adopt().await.expect("a policy").name, "p");
    let end = async {
        let mut last = None;
        while let Some(event) = events.message().await.expect("an event") {
            last = event.rollout;
        }
        last.expect("a rollout")
    };
    let end = tokio::time::timeout(PATIENCE, end).await.expect("in time");
    assert_eq!((end.state(), end.acked, end.offline), (RolloutState::Done, 1, 1));
    let status = fleet.status(StatusRequest {}).await.expect("status").into_inner();
    assert_eq!((status.connected, status.converged, status.revision), (1, 1, 1));
    assert_eq!(status.caller, "spiffe://fleet.example/operator/admin");
    scene.controller.stop().await.expect("stopped");
}

/// How a rollout ended.
async fn end_of(fleet: &mut FleetClient<Channel>, rollout: u64) -> wire::fleet::Rollout {
    let watch = WatchRequest { rollout };
    let mut events = fleet.watch(watch).await.expect("watched").into_inner();
    let end = async {
        let mut last = None;
        while let Some(event) = events.message().await.expect("an event") {
            last = event.rollout;
        }
        last.expect("a rollout")
    };
    tokio::time::timeout(PATIENCE, end).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_features_gets_no_rule_that_it_would_widen_and_keeps_what_it_has() {
    let scene = Scene::start().await;
    let (_, mut fleet) = operator(&scene).await;
    let agent = scene.member().await;
    let mut line = Line::join(scene.channel_of(&agent).await.expect("a channel")).await;
    assert_eq!(line.adopt().await, None);
    let apply = |objects, dry_run| ApplyRequest {
        objects,
        dry_run,
        ..ApplyRequest::default()
    };
    let first = fleet
        .apply(apply(objects(), false))
        .await
        .expect("applied")
        .into_inner();
    let plain = line.adopt().await.expect("a policy");
    assert_eq!(
        end_of(&mut fleet, first.rollout).await.state(),
        RolloutState::Done
    );

    let mut narrower = objects();
    let Some(object::Kind::Policy(policy)) = &mut narrower[1].kind else {
        panic!("the second is a policy");
    };
    policy.capture = Some(wire::Capture {
        exclude: vec![wire::FlowRule {
            ports: vec!["443".into()],
            pod_labels: vec!["app=web".into()],
            ..wire::FlowRule::default()
        }],
        ..wire::Capture::default()
    });
    let dry = fleet
        .apply(apply(narrower.clone(), true))
        .await
        .expect("told")
        .into_inner();
    let refusal = dry.agents[0].refusal.clone().expect("it is told beforehand");
    assert_eq!(
        (refusal.section(), refusal.path.as_str()),
        (say::Section::NotOffered, "capture.exclude[0].podLabels")
    );
    let applied = fleet
        .apply(apply(narrower.clone(), false))
        .await
        .expect("applied")
        .into_inner();
    // What it is offered next is what it had: nobody offered it the other one before.
    let (policy, held) = line.adopt_and_hold().await;
    assert_eq!(policy, Some(plain));
    let end = end_of(&mut fleet, applied.rollout).await;
    assert_eq!(end.state(), RolloutState::RolledBack);
    assert_eq!(end.failures[0].gate, "nack");
    assert!(
        end.failures[0]
            .message
            .contains("capture.exclude[0].podLabels of policy p"),
        "{}",
        end.failures[0].message
    );

    // The same identity, of a version that knows it.
    drop(line);
    let known = vec![say::Feature::RulePodLabels.into()];
    let channel = scene.channel_of(&agent).await.expect("a channel");
    let mut line = Line::join_with(channel, known, Some(held)).await;
    let applied = fleet
        .apply(apply(narrower, false))
        .await
        .expect("applied")
        .into_inner();
    assert_eq!(applied.agents[0].refusal, None);
    let policy = line.adopt().await.expect("a policy");
    assert_eq!(policy.capture.expect("there").exclude[0].pod_labels, ["app=web"]);
    assert_eq!(
        end_of(&mut fleet, applied.rollout).await.state(),
        RolloutState::Done
    );
    scene.controller.stop().await.expect("stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_with_their_object_and_nothing_is_made() {
    let scene = Scene::start().await;
    let (_, mut fleet) = operator(&scene).await;
    let mut objects = objects();
    objects.remove(0);
    let request = ApplyRequest {
        objects,
        ..ApplyRequest::default()
    };
    let refused = fleet.apply(request).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let told = wire::fleet::Mistakes::decode(refused.details()).expect("mistakes");
    assert_eq!(told.mistakes.len(), 1);
    assert_eq!(
        (told.mistakes[0].object, told.mistakes[0].path.as_str()),
        (0, "export.collectors[0]")
    );
    let status = fleet.status(StatusRequest {}).await.expect("status").into_inner();
    assert_eq!(status.revision, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_and_operators_do_not_pass_for_each_other() {
    let scene = Scene::start().await;
    let (admin, _) = operator(&scene).await;
    let agent = scene.member().await;
    let refused = Line::open(scene.channel_of(&admin).await.expect("a channel")).await;
    assert_eq!(
        refused.err().map(|status| status.code()),
        Some(Code::PermissionDenied)
    );
    let mut fleet = FleetClient::new(scene.channel_of(&agent).await.expect("a channel"));
    let refused = fleet.apply(ApplyRequest::default()).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = fleet.agents(AgentsRequest::default()).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_cut_at_once_and_stays_out() {
    let scene = Scene::start().await;
    let (_, mut fleet) = operator(&scene).await;
    let agent = scene.member().await;
    let mut line = Line::join(scene.channel_of(&agent).await.expect("a channel")).await;
    line.adopt().await;
    let request = RevokeRequest {
        what: Some(revoke_request::What::Agent(agent.id.name.to_string())),
    };
    fleet.revoke(request).await.expect("revoked");
    let ended = tokio::time::timeout(Duration::from_secs(5), line.next()).await;
    match ended.expect("within 5 s") {
        Body::Ended(ended) => assert_eq!(ended.reason(), EndReason::Revoked, "{}", ended.message),
        other => panic!("{other:?}"),
    }
    let refused = Line::open(scene.channel_of(&agent).await.expect("a channel")).await;
    assert!(refused.is_err());
    let agents = fleet
        .agents(AgentsRequest::default())
        .await
        .expect("agents")
        .into_inner();
    assert_eq!(agents.agents[0].state(), AgentState::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_are_revoked_together_are_all_cut_within_five_seconds() {
    let scene = Scene::start().await;
    let mut members = Vec::new();
    for _ in 0..8 {
        let member = scene.member().await;
        let channel = scene.channel_of(&member).await.expect("a channel");
        members.push((scene.renew(channel.clone()).await.expect("a connection"), channel));
    }
    let connections = &scene.controller.parts().connections;
    for (member, _) in &members {
        let what = Revocation::Identity(member.id.clone());
        scene
            .identities()
            .revoke(&what, None, scene.clock.now())
            .expect("revoked");
    }
    let began = tokio::time::Instant::now();
    let lives = |member: &Member| connections.lives(&member.id);
    while members.iter().any(|(member, _)| lives(member)) {
        assert!(began.elapsed() < Duration::from_secs(5), "not within 5 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
