//! Enrolment, renewal, recovery. Thin: decisions are in [`crate::enrolment`], changes in [`crate::identities`].

use std::sync::Arc;
use std::time::Duration;

use flowtilla_grpc::causes;
use flowtilla_grpc::enrol::enrolment_server::{Enrolment, EnrolmentServer};
use flowtilla_proto::spiffe::{Role, SpiffeId};
use flowtilla_proto::wire::enrol::{EnrolRequest, Identity, RecoverRequest, RenewRequest};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::authz::{self, Call, Caller};
use crate::clock::Clock;
use crate::enrolment::Refusal;
use crate::fleet::thread::{FleetHandle, Known};
use crate::identities::{Granted, Identities, IdentityError};
use crate::store::StoreError;

/// Most octets of a request: an SVID, a certificate request, a token, and names.
pub const REQUEST_OCTETS_MAX: usize = 32 << 10;
/// Requests that are worked on at once. Each has a thread of its own; more only wait for one another.
const AT_ONCE_MAX: usize = 8;
/// Requests that wait, and how long: then the caller is told to come again.
const WAITING_MAX: usize = 1024;
const WAIT: Duration = Duration::from_secs(5);

/// What became of requests, since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Identities given, by what was called.
    pub given: Family<ByCall, Counter>,
    /// Refusals, by the API's reason.
    pub refused: Family<ByReason, Counter>,
    /// Failures of the controller itself.
    pub failed: Counter,
}

/// What was called: enrol, renew or recover.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByCall {
    call: &'static str,
}

/// Name of a [`Reason`](flowtilla_proto::wire::enrol::Reason), such as `token_used`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    reason: String,
}

impl Counts {
    fn refuse(&self, refusal: &Refusal) {
        let name = refusal.reason().as_str_name();
        let reason = name.trim_start_matches("REASON_").to_ascii_lowercase();
        self.refused.get_or_create(&ByReason { reason }).inc();
    }

    fn count(&self, error: &IdentityError) {
        match error {
            IdentityError::Refused(refusal) => self.refuse(refusal),
            _ => {
                self.failed.inc();
            }
        }
    }
}

/// The service.
pub struct Service {
    identities: Arc<Identities>,
    fleet: FleetHandle,
    clock: Clock,
    counts: Arc<Counts>,
    at_once: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Service {
    /// The service, as tonic wants it.
    pub fn server(
        identities: Arc<Identities>,
        fleet: FleetHandle,
        clock: Clock,
        counts: Arc<Counts>,
    ) -> EnrolmentServer<Self> {
        let service = Self {
            identities,
            fleet,
            clock,
            counts,
            at_once: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            waiting: Semaphore::new(WAITING_MAX),
        };
        EnrolmentServer::new(service).max_decoding_message_size(REQUEST_OCTETS_MAX)
    }

    async fn work(
        &self,
        call: &'static str,
        work: impl FnOnce(&Identities) -> Result<Granted, IdentityError> + Send + 'static,
    ) -> Result<Response<Identity>, Status> {
        let busy = || {
            let refusal = Refusal::Busy("too many ask at once: ask again later");
            self.counts.refuse(&refusal);
            Status::from(authz::refusal(&refusal))
        };
        let _waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        let turn = tokio::time::timeout(WAIT, Arc::clone(&self.at_once).acquire_owned()).await;
        let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let identities = Arc::clone(&self.identities);
        // The turn goes with the work: a caller that hangs up does not make room for another thread.
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&identities)
        });
        match done.await {
            Ok(Ok(granted)) => {
                self.counts.given.get_or_create(&ByCall { call }).inc();
                Ok(Response::new(identity(granted)))
            }
            Ok(Err(error)) => {
                self.counts.count(&error);
                Err(status(&error))
            }
            Err(error) => {
                self.counts.failed.inc();
                tracing::error!(%error, "an enrolment failed");
                Err(Status::internal("the controller failed: see its log"))
            }
        }
    }
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Identity>, Status> {
        let now = self.clock.now();
        let asked = request.into_inner();
        let enrolled = self
            .work("enrol", move |identities| {
                identities.enrol(&asked.token, &asked.csr, &asked.host_name, now)
            })
            .await?;
        // The fleet counts an agent from here on, and not only when it connects.
        if let Ok(id) = SpiffeId::parse(&enrolled.get_ref().id)
            && id.role == Role::Agent
            && let Some(record) = self.identities.identity(&id)
        {
            self.fleet.known(vec![Known::of(id.name, &record)]).await;
        }
        Ok(enrolled)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Identity>, Status> {
        let now = self.clock.now();
        let caller = authz::admit(&request, Call::Renew, &self.identities, now)?;
        let shown = Caller::of(&request).svid().map(|svid| svid.serial.clone());
        let shown = shown.unwrap_or_default();
        let asked = request.into_inner();
        self.work("renew", move |identities| {
            identities.renew(&caller, &shown, &asked.csr, now)
        })
        .await
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<Identity>, Status> {
        let now = self.clock.now();
        let asked = request.into_inner();
        self.work("recover", move |identities| {
            identities.recover(&asked.svid, &asked.csr, now)
        })
        .await
    }
}

/// How an error of [`Identities`] is told. Details: an encoded `enrol.Refusal` for a refusal, `fleet.Mistakes` for mistakes.
pub fn status(error: &IdentityError) -> Status {
    match error {
        IdentityError::Refused(refused) => {
            tracing::info!(reason = ?refused.reason(), why = %refused, "refused");
            authz::refusal(refused).into()
        }
        IdentityError::Mistakes(mistakes) => mistakes_status(mistakes),
        IdentityError::NotFound(why) => Status::not_found(why),
        IdentityError::Precondition(why) => Status::failed_precondition(why),
        IdentityError::Store(full @ StoreError::Full { .. }) => {
            tracing::error!(error = %full, "an identity could not be given");
            Status::unavailable(
                "the controller's disk is full, it takes no change until there is room: see its log",
            )
        }
        IdentityError::Ca(_) | IdentityError::Store(_) => {
            tracing::error!(error = %causes::chain(error), "an identity could not be given");
            Status::unavailable("the controller failed: see its log")
        }
    }
}

fn mistakes_status(mistakes: &flowtilla_proto::mistake::Mistakes) -> Status {
    use flowtilla_proto::wire::fleet;
    use prost::Message as _;

    let one = |mistake: &flowtilla_proto::mistake::Mistake| fleet::Mistake {
        object: -1,
        path: mistake.path.clone(),
        value: mistake.value.clone(),
        why: mistake.why.clone(),
        remedy: mistake.remedy.clone(),
    };
    let details = fleet::Mistakes {
        mistakes: mistakes.iter().map(one).collect(),
    };
    let details = details.encode_to_vec();
    Status::with_details(tonic::Code::InvalidArgument, mistakes.to_string(), details.into())
}

fn identity(granted: Granted) -> Identity {
    Identity {
        id: granted.id.to_string(),
        chain: granted.issued.chain.iter().map(|der| der.to_vec()).collect(),
        bundle: granted.bundle,
        not_after: granted.issued.not_after,
    }
}
