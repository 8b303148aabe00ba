//! The operators' service: who calls, parse, ask, answer.
//!
//! Every call is an operator's ([`crate::authz`]). Policies, agents and rollouts are asked of the fleet's thread, identities and
//! tokens of [`Identities`], which block and so have a thread of their own for the time.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_grpc::fleet::fleet_server::{Fleet, FleetServer};
use flowtilla_grpc::telemetry;
use flowtilla_proto::spiffe::{MemberName, Role, SpiffeId};
use flowtilla_proto::token::TokenId;
use flowtilla_proto::wire::fleet::{
    Agent, AgentState, AgentsRequest, AgentsResponse, ApplyRequest, ApplyResponse, ApproveRequest,
    ApproveResponse, CreateTokenRequest, CreateTokenResponse, DrainRequest, DrainResponse, HistoryRequest,
    HistoryResponse, JudgeRequest, JudgeResponse, MeasureRequest, MeasureResponse, Mistake, Mistakes,
    ObjectsRequest, ObjectsResponse, Operator, OperatorsRequest, OperatorsResponse, RevokeRequest,
    RevokeResponse, RollbackRequest, Rollout, RolloutAgent, RolloutEvent, RolloutsRequest, RolloutsResponse,
    Root, RotateCaRequest, RotateCaResponse, RotateCaStep, StatusRequest, StatusResponse, SteerRequest,
    Token, TokensRequest, TokensResponse, TopRequest, TopResponse, WatchRequest, revoke_request::What,
};
use futures_util::Stream;
use futures_util::stream::unfold;
use prost::Message;
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument as _, Span};

use super::enrol::status as identity_status;
use crate::authz::{self, Call};
use crate::clock::{Clock, WallMs};
use crate::enrolment::TokenOrder;
use crate::fleet::thread::{FleetError, FleetHandle, Watched};
use crate::fleet::top::TopRefused;
use crate::fleet::{Change, ChangeRefused, Trial, Unwelcome};
use crate::identities::{Identities, IdentityError, IdentityRecord, Revocation};
use crate::identity::ca::{RootFacts, RotateStep};
use crate::policy::ChangeMistakes;
use crate::rollout::Moment;

/// Most octets of a request: all objects of a fleet.
pub const REQUEST_OCTETS_MAX: usize = 4 << 20;
/// Most octets of an answer: 65,536 agents with their health take less.
pub const RESPONSE_OCTETS_MAX: usize = 256 << 20;
/// Entries of a history or a list of rollouts when the caller does not say.
const LIMIT_DEFAULT: usize = 50;
/// Most entries of a history or a list of rollouts.
const LIMIT_MAX: usize = 1_000;
/// Most identities that a revocation names of those who came in by the operator's tokens.
const ADMITTED_TOLD_MAX: usize = 1_000;

/// The service.
pub struct Service {
    fleet: FleetHandle,
    identities: Arc<Identities>,
    clock: Clock,
    started: WallMs,
}

impl Service {
    /// The service, as a server takes it. `started`: when the controller did.
    pub fn server(
        fleet: FleetHandle,
        identities: Arc<Identities>,
        clock: Clock,
        started: WallMs,
    ) -> FleetServer<Self> {
        let service = Self {
            fleet,
            identities,
            clock,
            started,
        };
        FleetServer::new(service)
            .max_decoding_message_size(REQUEST_OCTETS_MAX)
            .max_encoding_message_size(RESPONSE_OCTETS_MAX)
    }

    /// Who calls: an operator that stands well.
    fn operator<T>(&self, request: &Request<T>) -> Result<SpiffeId, Status> {
        authz::admit(request, Call::Fleet, &self.identities, self.clock.now())
    }

    async fn identities<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Identities) -> Result<T, IdentityError> + Send + 'static,
    ) -> Result<T, Status> {
        let identities = Arc::clone(&self.identities);
        match tokio::task::spawn_blocking(move || work(&identities)).await {
            Ok(done) => done.map_err(|error| identity_status(&error)),
            Err(error) => {
                tracing::error!(%error, "a change of identities failed");
                Err(Status::internal("the controller failed: see its log"))
            }
        }
    }

    fn id(&self, role: Role, path: &str, text: &str) -> Result<SpiffeId, Status> {
        let name = MemberName::parse(text)
            .map_err(|mistakes| Status::invalid_argument(mistakes.under(path).to_string()))?;
        Ok(self.identities.id(role, name))
    }
}

#[tonic::async_trait]
impl Fleet for Service {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let by = self.operator(&request)?;
        let asked = request.into_inner();
        let span = tracing::debug_span!("apply", dry_run = asked.dry_run);
        let change = Change {
            objects: asked.objects,
            removed: asked.removed,
            dry_run: asked.dry_run,
            message: asked.message,
            by: by.to_string(),
            expected_revision: asked.expected_revision,
            traceparent: traceparent(&span, asked.traceparent),
        };
        let applied = self.fleet.apply(change).instrument(span).await;
        applied.map(Response::new).map_err(status)
    }

    async fn objects(&self, request: Request<ObjectsRequest>) -> Result<Response<ObjectsResponse>, Status> {
        self.operator(&request)?;
        let revision = request.get_ref().revision;
        let objects = self.fleet.objects(revision).await;
        objects.map(Response::new).map_err(status)
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        self.operator(&request)?;
        let history = self.fleet.history(limit(request.get_ref().limit)).await;
        history.map(Response::new).map_err(status)
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<ApplyResponse>, Status> {
        let by = self.operator(&request)?;
        let asked = request.into_inner();
        let span = tracing::debug_span!("rollback", dry_run = asked.dry_run);
        let change = Change {
            dry_run: asked.dry_run,
            message: asked.message,
            by: by.to_string(),
            traceparent: traceparent(&span, asked.traceparent),
            ..Change::default()
        };
        let rolled = self
            .fleet
            .roll_back(asked.revision, change)
            .instrument(span)
            .await;
        rolled.map(Response::new).map_err(status)
    }

    async fn agents(&self, request: Request<AgentsRequest>) -> Result<Response<AgentsResponse>, Status> {
        self.operator(&request)?;
        let asked = request.into_inner();
        let mut response = self.fleet.agents(asked.clone()).await.map_err(status)?;
        let records: BTreeMap<String, _> = self
            .identities
            .agents()
            .into_iter()
            .map(|(name, record)| (name.to_string(), record))
            .collect();
        for agent in &mut response.agents {
            let Some(record) = records.get(&agent.id) else {
                continue;
            };
            agent.enrolled_ms = record.enrolled.0;
            agent.svid_not_after_ms = record.not_after.0;
            agent.svid_serials.clone_from(&record.serials);
            if record.revoked.is_some() {
                agent.state = AgentState::Revoked.into();
            } else if record.awaiting && agent.state() != AgentState::Connected {
                agent.state = AgentState::AwaitingApproval.into();
            }
        }
        // Those that were enrolled and have not come yet are not known to the fleet.
        let known: BTreeSet<&String> = response.agents.iter().map(|agent| &agent.id).collect();
        let fresh = |(id, record): &(&String, &IdentityRecord)| {
            let labels = &record.labels;
            !known.contains(id)
                && (asked.ids.is_empty() || asked.ids.contains(id))
                && (asked.labels.iter()).all(|(key, value)| labels.get(key) == Some(value))
        };
        let fresh: Vec<Agent> = records
            .iter()
            .filter(fresh)
            .map(|(id, record)| newcomer(id, record))
            .collect();
        response.agents.extend(fresh);
        response.agents.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Response::new(response))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<RolloutEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.operator(&request)?;
        let watched = self
            .fleet
            .watch(request.get_ref().rollout)
            .await
            .map_err(status)?;
        Ok(Response::new(Box::pin(events(watched))))
    }

    async fn rollouts(
        &self,
        request: Request<RolloutsRequest>,
    ) -> Result<Response<RolloutsResponse>, Status> {
        self.operator(&request)?;
        let rollouts = self.fleet.rollouts(limit(request.get_ref().limit)).await;
        let rollouts = rollouts.map_err(status)?;
        Ok(Response::new(RolloutsResponse { rollouts }))
    }

    async fn steer(&self, request: Request<SteerRequest>) -> Result<Response<Rollout>, Status> {
        let by = self.operator(&request)?;
        let asked = request.into_inner();
        let steered = self
            .fleet
            .steer(asked.rollout, asked.steering(), by.name.to_string());
        steered.await.map(Response::new).map_err(status)
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let by = self.operator(&request)?;
        let asked = request.into_inner();
        let order = TokenOrder {
            labels: asked.labels,
            operator: asked.operator,
            life: (asked.ttl_ms != 0).then(|| Duration::from_millis(asked.ttl_ms)),
        };
        let now = self.clock.now();
        let made = self.identities(move |identities| identities.create_token(&order, Some(&by), now));
        let (token, expires) = made.await?;
        Ok(Response::new(CreateTokenResponse {
            id: token.id.to_string(),
            token: token.expose(),
            expires_ms: expires.0,
        }))
    }

    async fn tokens(&self, request: Request<TokensRequest>) -> Result<Response<TokensResponse>, Status> {
        self.operator(&request)?;
        let facts = self.identities.tokens().into_iter();
        let tokens = facts.map(|facts| Token {
            id: facts.id.to_string(),
            labels: facts.labels,
            operator: facts.operator,
            made_ms: facts.made.0,
            expires_ms: facts.expires.0,
            used_by: facts.used_by,
            revoked: facts.revoked,
            made_by: facts.made_by,
        });
        Ok(Response::new(TokensResponse {
            tokens: tokens.collect(),
        }))
    }

    async fn operators(
        &self,
        request: Request<OperatorsRequest>,
    ) -> Result<Response<OperatorsResponse>, Status> {
        self.operator(&request)?;
        let all = self.identities.operators().into_iter();
        let operators = all.map(|(name, record)| Operator {
            name: name.to_string(),
            enrolled_ms: record.enrolled.0,
            svid_not_after_ms: record.not_after.0,
            revoked_ms: record.revoked.map_or(0, |when| when.0),
            admitted_by: record.admitted_by,
        });
        Ok(Response::new(OperatorsResponse {
            operators: operators.collect(),
        }))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        let by = self.operator(&request)?;
        let (what, agent) = match request.into_inner().what {
            Some(What::Agent(name)) => {
                let id = self.id(Role::Agent, "agent", &name)?;
                (Revocation::Identity(id.clone()), Some(id.name))
            }
            Some(What::Operator(name)) => (
                Revocation::Identity(self.id(Role::Operator, "operator", &name)?),
                None,
            ),
            Some(What::Token(text)) => {
                let id = TokenId::parse(&text).ok_or_else(|| {
                    let mistake = flowtilla_proto::mistake::Mistake {
                        path: "token".to_owned(),
                        value: Some(text),
                        why: "is no token's id".to_owned(),
                        remedy: "write its 16 hex digits, as token list shows them".to_owned(),
                    };
                    Status::invalid_argument(mistake.to_string())
                })?;
                (Revocation::Token(id), None)
            }
            None => return Err(Status::invalid_argument("name an agent, an operator or a token")),
        };
        let now = self.clock.now();
        let revoked = self
            .identities(move |identities| identities.revoke(&what, Some(&by), now))
            .await?;
        let cut = match agent {
            Some(agent) => self.fleet.revoked(agent).await.map_err(status)?,
            None => false,
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let told = revoked.admitted.iter().take(ADMITTED_TOLD_MAX);
        Ok(Response::new(RevokeResponse {
            streams: cut.into(),
            tokens: count(revoked.tokens),
            admitted: told.map(ToString::to_string).collect(),
            admitted_total: count(revoked.admitted.len()),
        }))
    }

    async fn approve(&self, request: Request<ApproveRequest>) -> Result<Response<ApproveResponse>, Status> {
        let by = self.operator(&request)?;
        let agent = self.id(Role::Agent, "agent", &request.get_ref().agent)?.name;
        self.identities(move |identities| identities.approve(&agent, Some(&by)))
            .await?;
        Ok(Response::new(ApproveResponse {}))
    }

    async fn rotate_ca(
        &self,
        request: Request<RotateCaRequest>,
    ) -> Result<Response<RotateCaResponse>, Status> {
        self.operator(&request)?;
        let asked = request.into_inner();
        let step = match asked.step() {
            RotateCaStep::Unspecified => {
                return Err(Status::invalid_argument(
                    "step: write prepare, activate or retire",
                ));
            }
            RotateCaStep::Prepare => RotateStep::Prepare,
            RotateCaStep::Activate => RotateStep::Activate,
            RotateCaStep::Retire => RotateStep::Retire,
        };
        let now = self.clock.now();
        let roots = self
            .identities(move |identities| identities.rotate_ca(step, asked.force, now))
            .await?;
        Ok(Response::new(RotateCaResponse {
            roots: roots.iter().map(root).collect(),
        }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.operator(&request)?;
        let asked = request.into_inner();
        let ids = agent_names(asked.agents.iter())?;
        self.fleet.drain(ids, !asked.undo).await.map_err(status)?;
        Ok(Response::new(DrainResponse {}))
    }

    async fn measure(&self, request: Request<MeasureRequest>) -> Result<Response<MeasureResponse>, Status> {
        self.operator(&request)?;
        let asked = request.into_inner();
        let ids = agent_names(asked.agents.iter())?;
        let measured = self.fleet.measure(ids, asked.soak_ms).await;
        measured.map(Response::new).map_err(status)
    }

    async fn judge(&self, request: Request<JudgeRequest>) -> Result<Response<JudgeResponse>, Status> {
        self.operator(&request)?;
        let asked = request.into_inner();
        let ids = agent_names(asked.agents.iter().map(|judged| &judged.agent))?;
        let told = asked
            .agents
            .iter()
            .map(|judged| (judged.standing(), judged.before));
        let trial = Trial {
            agents: ids
                .into_iter()
                .zip(told)
                .map(|(id, (standing, before))| (id, standing, before))
                .collect(),
            soak_ms: asked.soak_ms,
            since: (asked.since_ms != 0).then_some(Moment(asked.since_ms)),
        };
        self.fleet.judge(trial).await.map(Response::new).map_err(status)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let caller = self.operator(&request)?;
        let standing = self.fleet.standing().await.map_err(status)?;
        let record = self.identities.identity(&caller);
        let roots = self.identities.authority().roots();
        Ok(Response::new(StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: caller.domain.to_string(),
            started_ms: self.started.0,
            revision: standing.revision,
            epoch: standing.epoch,
            agents: standing.agents,
            connected: standing.connected,
            converged: standing.converged,
            nacked: standing.nacked,
            behind: standing.behind,
            tied: standing.tied,
            conflicts: standing.conflicts,
            draining: standing.draining,
            not_offered: standing.not_offered,
            concerns: standing.concerns,
            left_out: standing.left_out,
            disk_full: standing.still,
            roots: roots.iter().map(root).collect(),
            rollout: standing.rollout,
            caller: caller.to_string(),
            caller_not_after_ms: record.map_or(0, |record| record.not_after.0),
        }))
    }

    async fn top(&self, request: Request<TopRequest>) -> Result<Response<TopResponse>, Status> {
        self.operator(&request)?;
        let answered = self.fleet.top(request.into_inner()).await;
        answered.map(Response::new).map_err(status)
    }
}

/// Ids of agents; their number is bounded by that of a request's octets.
fn agent_names<'a>(texts: impl Iterator<Item = &'a String>) -> Result<Vec<MemberName>, Status> {
    let name = |(n, text): (usize, &String)| {
        let parsed = MemberName::parse(text);
        parsed
            .map_err(|mistakes| Status::invalid_argument(mistakes.under(&format!("agents[{n}]")).to_string()))
    };
    texts.enumerate().map(name).collect()
}

/// The rollout as it stands, then what has changed, until it has ended. Whoever reads slowly gets the newest state.
fn events(watched: Watched) -> impl Stream<Item = Result<RolloutEvent, Status>> + Send {
    let told = BTreeMap::<String, RolloutAgent>::new();
    unfold(Some((watched, told, true)), |state| async move {
        let (mut watched, mut told, first) = state?;
        // When the sender has gone, what it said last was the end.
        if !first && watched.changed().await.is_err() {
            return None;
        }
        let event = Arc::clone(&watched.borrow_and_update());
        let news = event
            .agents
            .iter()
            .filter(|agent| told.get(&agent.agent) != Some(agent));
        let agents: Vec<RolloutAgent> = news.cloned().collect();
        told.extend(agents.iter().map(|agent| (agent.agent.clone(), agent.clone())));
        let ended = event
            .rollout
            .as_ref()
            .is_some_and(|rollout| rollout.ended_ms != 0);
        let news = RolloutEvent {
            rollout: event.rollout.clone(),
            agents,
        };
        Some((Ok(news), (!ended).then_some((watched, told, false))))
    })
}

/// An agent that has an identity and was never connected.
fn newcomer(id: &str, record: &IdentityRecord) -> Agent {
    let state = match record.revoked {
        Some(_) => AgentState::Revoked,
        None => AgentState::New,
    };
    Agent {
        id: id.to_owned(),
        labels: record.labels.clone(),
        state: state.into(),
        enrolled_ms: record.enrolled.0,
        svid_not_after_ms: record.not_after.0,
        svid_serials: record.serials.clone(),
        ..Agent::default()
    }
}

fn limit(asked: u32) -> usize {
    match asked {
        0 => LIMIT_DEFAULT,
        asked => usize::try_from(asked).unwrap_or(LIMIT_MAX).min(LIMIT_MAX),
    }
}

/// Makes the span a part of the caller's trace, and tells what agents are to go on from: the span, or, when nothing is traced
/// here, what the caller said. What is no trace context is ignored.
fn traceparent(span: &Span, text: String) -> String {
    telemetry::continue_from(span, &text);
    let own = telemetry::traceparent_of(span);
    own.unwrap_or_else(|| match telemetry::is_traceparent(&text) {
        true => text,
        false => String::new(),
    })
}

fn root(facts: &RootFacts) -> Root {
    Root {
        id: facts.pin.0.iter().map(|octet| format!("{octet:02x}")).collect(),
        not_after_ms: WallMs::from_seconds(facts.not_after).0,
        signs: facts.signs,
    }
}

/// How a refusal of the fleet is told. Details of INVALID_ARGUMENT: an encoded `fleet.Mistakes`.
fn status(error: FleetError) -> Status {
    let text = error.to_string();
    match error {
        FleetError::Refused(ChangeRefused::Mistakes(mistakes)) => {
            let details = to_wire(&mistakes).encode_to_vec();
            Status::with_details(Code::InvalidArgument, text, details.into())
        }
        FleetError::Refused(ChangeRefused::NoSteering) => Status::invalid_argument(text),
        FleetError::Refused(
            ChangeRefused::NoRevision(_)
            | ChangeRefused::NoRollout(_)
            | ChangeRefused::NoAgents(_)
            | ChangeRefused::NoRevisionYet
            | ChangeRefused::NothingBefore(_)
            | ChangeRefused::NoRolloutYet,
        ) => Status::not_found(text),
        FleetError::Refused(
            ChangeRefused::Newer { .. }
            | ChangeRefused::Ended(_)
            | ChangeRefused::NoneGoesOn
            | ChangeRefused::Steer(_),
        ) => Status::failed_precondition(text),
        FleetError::Unwelcome(Unwelcome::Revoked) => Status::permission_denied(text),
        FleetError::Unwelcome(Unwelcome::Full | Unwelcome::NoRoom) => Status::resource_exhausted(text),
        FleetError::Top(TopRefused::View) => Status::invalid_argument(text),
        FleetError::Top(TopRefused::Busy) => Status::resource_exhausted(text),
        FleetError::Store | FleetError::Full | FleetError::Stopping => Status::unavailable(text),
    }
}

fn to_wire(mistakes: &ChangeMistakes) -> Mistakes {
    let one = |found: &crate::policy::ObjectMistake| Mistake {
        object: found.object.and_then(|n| i32::try_from(n).ok()).unwrap_or(-1),
        path: found.mistake.path.clone(),
        value: found.mistake.value.clone(),
        why: found.mistake.why.clone(),
        remedy: found.mistake.remedy.clone(),
    };
    Mistakes {
        mistakes: mistakes.0.iter().map(one).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_trace_context_is_ignored_and_not_passed_on() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&Span::none(), good.to_owned()), good);
        for wrong in [
            "",
            "00-1-2-3",
            &good[1..],
            &format!("{good}-x"),
            &good.to_uppercase(),
        ] {
            assert_eq!(traceparent(&Span::none(), wrong.to_owned()), "", "{wrong:?}");
        }
    }
}
