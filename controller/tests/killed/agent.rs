//! An agent as the controller sees one: it judges, holds, answers, and comes back.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use flowtilla_grpc::channel::{Address, connect};
use flowtilla_grpc::session::session_client::SessionClient;
use flowtilla_proto::wire::session::{self as say, from_agent, to_agent::Body};
use prost::Message as _;
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// So many flows are refused by one of the agents.
pub(crate) const REFUSED: u64 = 16;
/// The agent that refuses.
const REFUSES: u32 = 3;
/// Longest pause before it comes back, in milliseconds.
const PAUSE_MS: u64 = 200;
const BEAT: Duration = Duration::from_millis(200);

/// The second place in a policy that says how many flows.
pub(crate) fn marker(flows: u64) -> String {
    format!("10.0.{}.{}/32", flows / 256, flows % 256)
}

/// What an agent keeps over its streams.
#[derive(Default)]
pub(crate) struct Host(Mutex<State>);

#[derive(Default)]
pub(crate) struct State {
    held: Option<say::Held>,
    /// Flows of the policy in force; 0: none is.
    pub(crate) flows: u64,
    /// What must not have happened.
    pub(crate) wrong: Option<String>,
}

impl Host {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }
}

impl State {
    /// Judges an offer and adopts it, or says why not.
    fn judge(&mut self, n: u32, offer: &say::Offer) -> Result<say::Held, String> {
        let place = |held: &say::Held| (held.epoch, held.version);
        let mark = say::Held {
            epoch: offer.epoch,
            version: offer.version,
            digest: offer.digest.clone(),
        };
        let assignment = say::Assignment::decode(&offer.content[..]).expect("an assignment");
        let capture = assignment.policy.and_then(|policy| policy.capture);
        let flows = capture.as_ref().and_then(|it| it.max_flows).unwrap_or(0);
        if let Some(held) = &self.held {
            let differs = place(held) == place(&mark) && held.digest != mark.digest;
            if place(&mark) < place(held) || differs {
                self.wrong = Some(format!("agent {n} holds {held:?} and was offered {mark:?}"));
            }
            if flows == 0 && self.flows != 0 {
                self.wrong = Some(format!("agent {n} lost its policy with {mark:?}"));
            }
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, &offer.content);
        let shown = capture.map(|it| it.exclude[0].cidrs[0].clone());
        if digest.as_ref() != mark.digest || shown.is_some_and(|shown| shown != marker(flows)) {
            self.wrong = Some(format!("agent {n} was offered something that is not whole"));
        }
        if n == REFUSES && flows == REFUSED {
            return Err("it does not suit".into());
        }
        (self.held, self.flows) = (Some(mark.clone()), flows);
        Ok(mark)
    }
}

/// An agent.
pub(crate) struct Agent {
    n: u32,
    tls: Arc<ClientConfig>,
    controller: Address,
    host: Arc<Host>,
    uptime_ms: u64,
}

impl Agent {
    pub(crate) fn new(n: u32, tls: Arc<ClientConfig>, controller: Address, host: Arc<Host>) -> Self {
        Self {
            n,
            tls,
            controller,
            host,
            uptime_ms: 0,
        }
    }

    /// Comes back for ever.
    pub(crate) async fn run(mut self) {
        let mut rng = fastrand::Rng::with_seed(self.n.into());
        loop {
            // An end is what is tested.
            let _ = self.session().await;
            tokio::time::sleep(Duration::from_millis(rng.u64(..PAUSE_MS))).await;
        }
    }

    async fn session(&mut self) -> anyhow::Result<()> {
        let channel = connect(&self.controller, Arc::clone(&self.tls)).await?;
        let (out, messages) = mpsc::channel(8);
        let say = |body| say::FromAgent { body: Some(body) };
        let hello = say::Hello {
            source_id: self.n,
            held: self.held(),
            ..say::Hello::default()
        };
        out.send(say(from_agent::Body::Hello(hello))).await?;
        let stream = ReceiverStream::new(messages);
        let mut told = SessionClient::new(channel).open(stream).await?.into_inner();
        let mut beats = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                message = told.message() => match message?.and_then(|message| message.body) {
                    Some(Body::Offer(offer)) => {
                        let judged = self.host.state().judge(self.n, &offer);
                        let answer = match judged {
                            Ok(mark) => from_agent::Body::Ack(say::Ack {
                                nonce: offer.nonce,
                                held: Some(mark),
                                effective: None,
                            }),
                            Err(reason) => from_agent::Body::Nack(say::Nack {
                                nonce: offer.nonce,
                                held: self.held(),
                                reason,
                                ..say::Nack::default()
                            }),
                        };
                        out.send(say(answer)).await?;
                    }
                    Some(Body::Ended(_)) | None => return Ok(()),
                    Some(_) => {}
                },
                _ = beats.tick() => {
                    self.uptime_ms += 200;
                    let health = say::Health {
                        uptime_ms: self.uptime_ms,
                        capturing: true,
                        ..say::Health::default()
                    };
                    let beat = say::Heartbeat { held: self.held(), health: Some(health), addresses: None };
                    out.send(say(from_agent::Body::Heartbeat(beat))).await?;
                }
            }
        }
    }

    fn held(&self) -> Option<say::Held> {
        self.host.state().held.clone()
    }
}
