//! One collector of an exporter: how it is reached, fed and named, and how it stands.
//!
//! What differs between collectors of one stream is here; marks and pace of the one in use are the core's.

use flowtilla_agent_core::backoff::Backoff;
use flowtilla_agent_core::collector::window::OnRestart;
use flowtilla_agent_core::collector::{CollectorOptions, Progress};
use flowtilla_agent_core::encode::header::{HeaderLayout, PayloadEncoding};
use flowtilla_agent_core::encode::tlv::{RECORDS_MAX, TlvOptions};
use flowtilla_agent_core::session::NoShortId;
use flowtilla_agent_core::zmtp::Security;
use flowtilla_proto::collector::{Collector, Encoding, HeaderVersion, OnCollectorRestart};
use tokio::task::{AbortHandle, JoinSet};

use super::ExporterOptions;
use super::connect::{self, ConnectError};
use super::link::Heading;
use super::probe::{Probed, probe};
use crate::status::{MemberState, MemberStatus};

/// One collector. See the module.
pub(super) struct Member {
    pub(super) collector: Collector,
    pub(super) backoff: Backoff,
    /// Connections made to feed it, since start.
    pub(super) connects: u64,
    /// Messages sent to it since start.
    pub(super) messages: u64,
    /// Why there is no connection, as last told.
    pub(super) why: Option<String>,
    pub(super) state: MemberState,
    /// The probe that is under way.
    pub(super) probe: Option<AbortHandle>,
    client_secret: Option<[u8; 32]>,
}

impl Member {
    pub(super) fn new(collector: Collector, seed: u64) -> Self {
        Self {
            collector,
            backoff: Backoff::new(seed),
            connects: 0,
            messages: 0,
            why: None,
            state: MemberState::Unknown,
            probe: None,
            client_secret: None,
        }
    }

    pub(super) fn core_options(&self, options: &ExporterOptions) -> CollectorOptions {
        CollectorOptions {
            slot: options.slot,
            encoding: self.encoding(),
            tlv: TlvOptions {
                record_ids: self.collector.record_ids,
                ..options.tlv
            },
            window_octets: self.collector.window_octets,
            message_records_max: RECORDS_MAX,
            on_restart: match self.collector.on_restart {
                OnCollectorRestart::Replay => OnRestart::Replay,
                OnCollectorRestart::Skip => OnRestart::Skip,
            },
            records_per_second: self.collector.records_per_second,
        }
    }

    /// How messages to it begin.
    ///
    /// # Errors
    /// [`NoShortId`]: it is to know this agent by a number of 8 bits, and there is none.
    pub(super) fn heading(&self, options: &ExporterOptions) -> Result<Heading, NoShortId> {
        let number = options.source_id.number();
        let (layout, source_id) = match self.collector.header {
            HeaderVersion::V1 => {
                let ids = options.short_ids.borrow();
                let short = ids.of(&self.collector.name, options.source_id)?;
                (HeaderLayout::V1, short.get().into())
            }
            HeaderVersion::V2 => (HeaderLayout::V2, number),
            HeaderVersion::V3 => (HeaderLayout::V3, number),
        };
        Ok(Heading {
            layout,
            encoding: self.encoding(),
            source_id,
        })
    }

    /// Of flow records.
    fn encoding(&self) -> PayloadEncoding {
        match self.collector.encoding {
            Encoding::Tlv => PayloadEncoding::Tlv,
            Encoding::NestedJson => PayloadEncoding::Json,
        }
    }

    pub(super) fn security(&mut self) -> Result<Security, ConnectError> {
        let secret = match self.client_secret {
            Some(secret) => secret,
            None => *self.client_secret.insert(connect::random()?),
        };
        connect::security(self.collector.curve_server_key.as_ref(), &secret)
    }

    /// Begins to look whether it is in reach.
    pub(super) fn start_probe(&mut self, probes: &mut JoinSet<Probed>) {
        let (endpoint, security) = (self.collector.endpoint.clone(), self.security());
        let name = self.collector.name.clone();
        tracing::debug!(collector = %name, "probes");
        self.probe = Some(probes.spawn(probe(endpoint, security)));
    }

    /// A probe of it has ended.
    pub(super) fn handle_probed(&mut self, probed: Probed) {
        self.probe = None;
        self.stand(match probed {
            Ok(()) => MemberState::StandingBy,
            Err(why) => MemberState::OutOfReach { why },
        });
    }

    /// It is fed from now on.
    pub(super) fn handle_chosen(&mut self) {
        if let Some(probe) = self.probe.take() {
            probe.abort();
        }
        self.backoff.handle_success();
        self.why = None;
        self.stand(MemberState::InUse);
    }

    /// Another one is fed from now on; this one stood so.
    pub(super) fn handle_left(&mut self, progress: Progress) {
        let why = match progress {
            Progress::Streaming { .. } => return self.stand(MemberState::StandingBy),
            Progress::Stalled => "it takes nothing".into(),
            Progress::AwaitingSubscription => "it does not subscribe to flows".into(),
            Progress::Disconnected => self.why.clone().unwrap_or_else(|| "no connection".into()),
        };
        self.stand(MemberState::OutOfReach { why });
    }

    fn stand(&mut self, state: MemberState) {
        if self.state != state {
            tracing::info!(collector = %self.collector.name, was = ?self.state, is = ?state, "collector of several");
            self.state = state;
        }
    }

    pub(super) fn status(&self) -> MemberStatus {
        MemberStatus {
            name: self.collector.name.to_string(),
            endpoint: self.collector.endpoint.to_string(),
            state: self.state.clone(),
            messages: self.messages,
            connects: self.connects,
        }
    }

    /// Makes `told` say how it stands; whether that is news.
    pub(super) fn tell(&self, told: &mut MemberStatus) -> bool {
        let known =
            told.messages == self.messages && told.connects == self.connects && told.state == self.state;
        if !known {
            told.state.clone_from(&self.state);
            (told.messages, told.connects) = (self.messages, self.connects);
        }
        !known
    }
}
