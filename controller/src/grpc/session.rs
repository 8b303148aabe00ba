//! The agents' stream: who calls is who speaks.
//!
//! In: messages of one agent, at most [`FROM_AGENT_OCTETS_MAX`] each and [`MESSAGES_PER_SECOND`] a second, of which
//! [`WAITING_OCTETS_MAX`] wait for the fleet; what is more is read later. Out: what the fleet puts into the stream's mailbox. New streams take places in a row ([`Admission`]), so that all
//! agents coming at once are a queue and not a load; who would wait too long is asked to come again.
//!
//! One task a stream: it reads, and ends with the stream. It holds no lock and decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flowtilla_grpc::session::session_server::{Session, SessionServer};
use flowtilla_proto::labels::Labels;
use flowtilla_proto::spiffe::{MemberName, SpiffeId};
use flowtilla_proto::wire::session::{EndReason, FromAgent};
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::authz::{self, Call};
use crate::clock::Clock;
use crate::fleet::heard::{FROM_AGENT_OCTETS_MAX, Heard, Hello};
use crate::fleet::mailbox::{Mailbox, Reading};
use crate::fleet::thread::{FleetError, FleetHandle};
use crate::fleet::{Now, SessionId, Speech};
use crate::identities::Identities;
use crate::pace::Pace;

/// How long an agent may take to say hello.
///
/// It is the first thing it does. Half of it ends streams over bad lines; double it, and a stream that says nothing holds its
/// place for longer.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// New streams a second.
///
/// A stream costs the handshake's half millisecond and a row of the store. Half of it brings 10,000 agents back in 40 s; double
/// it, and two cores do nothing else meanwhile.
pub const STREAMS_PER_SECOND: u32 = 500;
/// New streams at once after a quiet time.
pub const STREAMS_BURST: u32 = 500;
/// How long a new stream waits for its place at most; who would wait longer is asked to come again.
///
/// Shorter than an agent waits for the first answer. Half of it sends more of them away in a storm; double it, and agents give
/// up while they wait.
pub const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(8);

/// Messages of one stream a second. An agent that speaks for many new flows asks some tens.
pub const MESSAGES_PER_SECOND: u32 = 100;
/// Messages of one stream at once.
pub const MESSAGES_BURST: u32 = 500;

/// Octets of one stream's messages that wait for the fleet, at most; further ones are read later.
///
/// Two of the largest messages. Half of it has one wait for the other; double it, and captured agents take twice the memory while
/// the disk stalls.
pub const WAITING_OCTETS_MAX: usize = 2 * FROM_AGENT_OCTETS_MAX;

/// Agents whose place in the row is kept in mind, at most; then those whose place has come are forgotten.
///
/// Above the places that there are within [`ADMISSION_WAIT_MAX`].
const PLACES_MAX: usize = 2 * 8 * STREAMS_PER_SECOND as usize;

/// Lets new streams in, in a row. An agent has one place at a time, however often it asks: a captured one does not fill it.
pub struct Admission(Mutex<Row>);

struct Row {
    pace: Pace,
    /// When the place of each agent comes that has been given one.
    places: BTreeMap<MemberName, u64>,
}

/// The agent that calls, and the labels of its enrolment.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// Who it is.
    pub id: SpiffeId,
    /// Its labels.
    pub labels: Labels,
}

/// Who calls, or why it may not.
pub type Door = Arc<dyn Fn(&Request<Streaming<FromAgent>>) -> Result<Enrolled, Status> + Send + Sync>;

/// The service.
#[derive(Clone)]
pub struct SessionService {
    fleet: FleetHandle,
    door: Door,
    admission: Arc<Admission>,
    clock: Arc<dyn Fn() -> Now + Send + Sync>,
    tasks: TaskTracker,
}

impl Admission {
    /// A row of `rate` places a second, `burst` at once.
    #[must_use]
    pub fn new(rate: u32, burst: u32) -> Self {
        Self(Mutex::new(Row {
            pace: Pace::new(rate, burst),
            places: BTreeMap::new(),
        }))
    }

    fn take(&self, agent: &MemberName, now_ms: u64) -> Option<Duration> {
        let mut row = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = row.places.get(agent).and_then(|at| at.checked_sub(now_ms));
        if let Some(wait) = place.filter(|wait| *wait > 0) {
            return Some(Duration::from_millis(wait));
        }
        let wait = row.pace.take(now_ms, ADMISSION_WAIT_MAX)?;
        if row.places.len() >= PLACES_MAX {
            row.places.retain(|_, at| *at > now_ms);
        }
        let wait_ms = u64::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
        row.places.insert(agent.clone(), now_ms.saturating_add(wait_ms));
        Some(wait)
    }
}

/// The door of a controller: an agent's SVID that stands well.
#[must_use]
pub fn door(identities: Arc<Identities>, clock: Clock) -> Door {
    Arc::new(move |request| {
        let id = authz::admit(request, Call::Session, &identities, clock.now())?;
        let labels = identities
            .identity(&id)
            .map(|record| record.labels)
            .unwrap_or_default();
        // What is refused here was let in by another version: an agent without labels is better than none.
        let labels = Labels::parse(&labels).unwrap_or_default();
        Ok(Enrolled { id, labels })
    })
}

impl SessionService {
    /// The service of this fleet. `tasks`: where its tasks are waited for when the controller stops.
    #[must_use]
    pub fn new(
        fleet: FleetHandle,
        door: Door,
        admission: Admission,
        clock: Arc<dyn Fn() -> Now + Send + Sync>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            fleet,
            door,
            admission: Arc::new(admission),
            clock,
            tasks,
        }
    }

    /// As a server takes it.
    #[must_use]
    pub fn into_server(self) -> SessionServer<Self> {
        SessionServer::new(self).max_decoding_message_size(FROM_AGENT_OCTETS_MAX)
    }
}

#[tonic::async_trait]
impl Session for SessionService {
    type OpenStream = Reading;

    async fn open(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Reading>, Status> {
        let Enrolled { id, labels } = (self.door)(&request)?;
        let Some(wait) = self.admission.take(&id.name, (self.clock)().run_ms) else {
            let text = "many agents come back at once; come again in some seconds";
            return Err(Status::resource_exhausted(text));
        };
        tokio::time::sleep(wait).await;
        let mailbox = Mailbox::new(id.to_string());
        let reading = Reading::new(Arc::clone(&mailbox));
        let stream = Stream {
            agent: id.name,
            messages: request.into_inner(),
            mailbox,
            fleet: self.fleet.clone(),
            clock: Arc::clone(&self.clock),
        };
        self.tasks.spawn(stream.run(labels));
        Ok(Response::new(reading))
    }
}

/// Reads one agent's stream.
struct Stream {
    agent: MemberName,
    messages: Streaming<FromAgent>,
    mailbox: Arc<Mailbox>,
    fleet: FleetHandle,
    clock: Arc<dyn Fn() -> Now + Send + Sync>,
}

impl Stream {
    async fn run(mut self, labels: Labels) {
        let first = tokio::select! { biased;
            () = self.mailbox.ended() => return,
            first = tokio::time::timeout(HELLO_TIMEOUT, self.messages.message()) => first,
        };
        let hello = match first {
            Err(_) => {
                let text = format!("no hello within {} s", HELLO_TIMEOUT.as_secs());
                return self.end(EndReason::Protocol, text);
            }
            Ok(Err(status)) => return self.end_of(&status),
            Ok(Ok(None)) => return self.mailbox.close(),
            Ok(Ok(Some(message))) => match Hello::parse(message) {
                Ok(hello) => hello,
                Err(refused) => return self.end(EndReason::Protocol, refused.to_string()),
            },
        };
        let opened = self
            .fleet
            .open(self.agent.clone(), labels, hello, Arc::clone(&self.mailbox))
            .await;
        match opened {
            Ok(session) => {
                self.listen(session).await;
                self.fleet.closed(session).await;
            }
            Err(error) => self.end(reason(&error), error.to_string()),
        }
    }

    /// Until the stream has ended, from either side.
    async fn listen(&mut self, session: SessionId) {
        let mut pace = Pace::new(MESSAGES_PER_SECOND, MESSAGES_BURST);
        let waiting = Arc::new(Semaphore::new(WAITING_OCTETS_MAX));
        loop {
            let message = tokio::select! { biased;
                () = self.mailbox.ended() => return,
                message = self.messages.message() => message,
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(status) => return self.end_of(&status),
            };
            let octets = message.encoded_len().clamp(1, FROM_AGENT_OCTETS_MAX);
            let heard = match Heard::parse(message) {
                Ok(heard) => heard,
                Err(refused) => return self.end(EndReason::Protocol, refused.to_string()),
            };
            let goodbye = heard == Heard::Goodbye;
            let octets = u32::try_from(octets).expect("clamped above");
            let place = tokio::select! { biased;
                () = self.mailbox.ended() => return,
                place = Arc::clone(&waiting).acquire_many_owned(octets) => place.expect("nobody closes it"),
            };
            if self.fleet.heard(session, heard, place).await.is_err() || goodbye {
                return;
            }
            let wait = pace.take((self.clock)().run_ms, Duration::MAX);
            if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
                tokio::select! { biased;
                    () = self.mailbox.ended() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }

    /// The stream has failed: what cannot be read is the agent's doing, everything else the line's.
    fn end_of(&self, status: &Status) {
        match status.code() {
            Code::OutOfRange | Code::Internal | Code::InvalidArgument | Code::Unimplemented => {
                let text: String = status.message().chars().take(200).collect();
                self.end(EndReason::Protocol, format!("a message cannot be read: {text}"));
            }
            _ => self.mailbox.close(),
        }
    }

    fn end(&self, reason: EndReason, text: String) {
        if reason == EndReason::Protocol {
            tracing::warn!(agent = %self.agent, why = text, "a stream is ended");
        }
        self.mailbox.put(Speech::Ended(reason, text));
    }
}

fn reason(error: &FleetError) -> EndReason {
    match error {
        FleetError::Unwelcome(crate::fleet::Unwelcome::Revoked) => EndReason::Revoked,
        FleetError::Unwelcome(crate::fleet::Unwelcome::Full | crate::fleet::Unwelcome::NoRoom)
        | FleetError::Refused(_)
        | FleetError::Top(_) => EndReason::Slow,
        FleetError::Store | FleetError::Full | FleetError::Stopping => EndReason::Stopping,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_asks_without_end_takes_the_places_of_nobody_else() {
        let row = Admission::new(STREAMS_PER_SECOND, STREAMS_BURST);
        let agent = |name: &str| MemberName::parse(name).expect("a name");
        // It asks each millisecond ten times, and hangs up each time.
        for now in 0..20_000 {
            for _ in 0..10 {
                row.take(&agent("captured"), now).expect("its own place");
            }
        }
        for honest in 0..100 {
            let wait = row.take(&agent(&format!("honest-{honest}")), 20_000);
            assert!(wait.expect("a place") < Duration::from_secs(2), "{wait:?}");
        }
    }

    #[test]
    fn places_that_have_come_are_forgotten() {
        let row = Admission::new(STREAMS_PER_SECOND, STREAMS_BURST);
        for n in 0..100_000_u64 {
            let name = MemberName::parse(&format!("agent-{n}")).expect("a name");
            row.take(&name, n * 2).expect("a place");
            assert!(row.0.lock().expect("nobody panicked").places.len() <= PLACES_MAX);
        }
    }
}
