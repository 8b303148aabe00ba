//! Calls a controller as an operator.
//!
//! In: a context ([`contexts`]) and what its directory holds ([`identity`]). Out: a [`Client`], and each failure as one sentence
//! with the remedy ([`explain`]). Before a call the SVID is looked at: past half of its life it is renewed on the same channel,
//! and when it has run out it is recovered with its old key ([`keep`]).
//! Invariants: a key leaves its file in no message; each call has a time limit.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use clap::Args;
use flowtilla_agent_core::time::WallTime;
use flowtilla_grpc::channel::{Address, connect};
use flowtilla_grpc::enrol::enrolment_client::EnrolmentClient;
use flowtilla_grpc::fleet::fleet_client::FleetClient;
use flowtilla_grpc::trust;
use flowtilla_proto::spiffe::{Role, TrustDomain};
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::enrol::EnrolRequest;
use rustls::pki_types::CertificateDer;
use tonic::transport::Channel;
use tonic::{Response, Status};

use self::contexts::Home;
use self::explain::{Failed, Stage};
use self::identity::{Identity, Key};
use crate::exit::say;
use crate::output::{clock as clock_of, harmless};

pub(crate) mod contexts;
pub(crate) mod explain;
pub(crate) mod identity;
mod keep;

/// How long a call may take that is no stream.
///
/// A dry run over 10,000 agents takes a second. Half of it gives up on a controller that restarts; double it, and a dead one
/// holds the terminal for a minute.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Which controller.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Reach {
    /// Context that names the controller and holds the identity [default: the current one, see context list].
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Where contexts are; `None`: where the environment says.
    #[arg(skip)]
    pub(crate) home: Option<Home>,
}

/// Longest answer that is read, in octets.
///
/// As long as a controller's: 10,000 agents with all that is known of them take 20 MiB, each at its bounds ten times that. Half
/// of it may refuse what a controller says; double it for nothing.
const ANSWER_OCTETS_MAX: usize = 256 << 20;

/// A channel to a controller, with an operator's identity.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    fleet: FleetClient<Channel>,
    address: Address,
    context: String,
    trusted: Arc<Trusted>,
}

/// Whose word counts in the operator's trust domain.
#[derive(Debug)]
pub(crate) struct Trusted {
    pub(crate) domain: TrustDomain,
    /// Of SVIDs, DER.
    pub(crate) signers: Vec<CertificateDer<'static>>,
}

impl Trusted {
    fn of(identity: &Identity) -> Arc<Self> {
        Arc::new(Self {
            domain: identity.id().domain.clone(),
            signers: identity.bundle().to_vec(),
        })
    }
}

fn over(channel: Channel) -> FleetClient<Channel> {
    FleetClient::new(channel).max_decoding_message_size(ANSWER_OCTETS_MAX)
}

impl Client {
    /// Connects, and renews the identity when it is due.
    ///
    /// # Errors
    ///
    /// No context, no identity in it, or no controller that accepts it.
    pub(crate) async fn reach(reach: &Reach) -> anyhow::Result<Self> {
        Self::reach_at(reach, clock::wall_now()).await
    }

    /// [`Self::reach`], at `now`.
    pub(crate) async fn reach_at(reach: &Reach, now: WallTime) -> anyhow::Result<Self> {
        let home = match &reach.home {
            Some(home) => home.clone(),
            None => Home::of_user()?,
        };
        let (context, place) = home.context(reach.context.as_deref())?;
        let address = Address::parse(&place.controller).map_err(|_| {
            anyhow::anyhow!(
                "context {context:?}: {:?} is no address of a controller; log in again",
                harmless(&place.controller)
            )
        })?;
        let (identity, channel) = keep::keep(&address, &place.identity, now).await?;
        Ok(Self {
            fleet: over(channel),
            address,
            context,
            trusted: Trusted::of(&identity),
        })
    }

    /// For a token, a client whose identity is kept nowhere: for a controller of this process.
    ///
    /// # Errors
    ///
    /// As [`enrol`].
    pub(crate) async fn enrolled(address: &Address, token: &JoinToken) -> anyhow::Result<Self> {
        let identity = enrol(address, token).await?;
        Ok(Self {
            fleet: over(channel(address, &identity).await?),
            address: address.clone(),
            context: String::new(),
            trusted: Trusted::of(&identity),
        })
    }

    /// The operators' service.
    pub(crate) fn fleet(&self) -> FleetClient<Channel> {
        self.fleet.clone()
    }

    /// The controller's address.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whose word counts.
    pub(crate) fn trusted(&self) -> &Trusted {
        &self.trusted
    }

    /// Whose view is shown, and from when. On stderr: stdout has the table alone.
    pub(crate) fn say_view(&self, now: WallTime) {
        say(format_args!(
            "as the controller at {} sees it, {} UTC (context {})",
            self.address,
            clock_of(now),
            harmless(&self.context)
        ));
    }

    /// Waits for an answer.
    ///
    /// # Errors
    ///
    /// [`Failed`].
    pub(crate) async fn ask<T>(
        &self,
        asking: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failed> {
        answered(Stage::Call, asking).await
    }
}

/// For a token, an identity and the name of its trust domain. The key is made here.
///
/// # Errors
///
/// The controller is not the token's, cannot be reached, or refuses the token; or the token was an agent's.
pub(crate) async fn enrol(address: &Address, token: &JoinToken) -> anyhow::Result<Identity> {
    let channel = connect(address, Arc::new(trust::with_pin(token.pin.0)))
        .await
        .map_err(|error| Failed::connect(Stage::Enrol, &error))?;
    let key = Key::new();
    let request = EnrolRequest {
        token: token.expose(),
        csr: key.request(),
        host_name: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer = answered(Stage::Enrol, EnrolmentClient::new(channel).enrol(request)).await?;
    let identity = Identity::of_answer(key, answer)?;
    anyhow::ensure!(
        identity.id().role == Role::Operator,
        "the token was an agent's, and is used up; make an operator's with token create --operator NAME"
    );
    Ok(identity)
}

async fn channel(address: &Address, identity: &Identity) -> anyhow::Result<Channel> {
    let tls = trust::with_bundle(identity.bundle(), Some(identity.resolver()?))?;
    Ok(connect(address, Arc::new(tls))
        .await
        .map_err(|error| Failed::connect(Stage::Call, &error))?)
}

async fn answered<T>(
    stage: Stage,
    asking: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(CALL_TIMEOUT, asking).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Failed::status(stage, &status)),
        Err(_) => Err(Failed::silent(CALL_TIMEOUT)),
    }
}
