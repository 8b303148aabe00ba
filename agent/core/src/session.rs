//! The agent's side of its session with a controller, without any input or output.
//!
//! In: what the controller says, what became of orders, the stream's beginning and end, time. Out: orders to the shell
//! ([`Session::poll_order`]), messages ([`Session::poll_message`]), when to connect, when to call again. Reads no clock.
//!
//! Invariants: one order at a time; an ack is made only by an order that was carried out, so what is said is in force and
//! on the disk (persist, then speak); of several offers the newest counts, and none but the newest is answered; nothing of
//! an earlier stream is said on a later one. What is held stays in force without any controller.
//! Source: `session.proto`; house style 2.1 to 2.3.

use std::collections::VecDeque;
use std::time::Duration;

use flowtilla_proto::wire::session as wire;

use crate::backoff::Backoff;
use crate::time::KernelTime;

pub use self::assignment::{Assignment, Fault, Section};
pub use self::features::FEATURES;
pub use self::judge::{Digest, Held, Refusal, Verdict, Version, judge};
pub use self::message::{
    CONTENT_OCTETS_MAX, EndReason, Incoming, Offer, Outgoing, ROOTS_MAX, Violation, Welcome,
};
pub use self::renewal::{Renewal, Validity};
pub use self::short::{NoShortId, SHORT_IDS_MAX, ShortIds};

mod assignment;
mod features;
mod judge;
mod message;
mod renewal;
mod short;
#[cfg(test)]
mod tests;

/// Bound of the first delay before the next connection, in milliseconds.
///
/// 10,000 agents come back at 10,000 a second then, and a controller's bucket sends most of them away; half of it
/// doubles that, double it, and a blink of the network costs two seconds.
pub const CONNECT_BACKOFF_BASE_MS: u64 = 1_000;
/// Largest bound of that delay, in milliseconds.
///
/// 10,000 agents then try 700 times a second, on average. Half of it is more than a controller on two cores can greet;
/// double it, and the last ones come back after a minute.
pub const CONNECT_BACKOFF_CAP_MS: u64 = 30_000;
/// Bounds of the delay when the controller will have none of this agent: it was revoked, or another one is in its place.
const UNWANTED_BACKOFF_MS: (u64, u64) = (10_000, 600_000);
/// A stream that has lived so long forgets the failures before it. Shorter ones are failures: a controller that sends
/// everybody away at once is not asked faster for it.
const STEADY: Duration = Duration::from_secs(10);
/// A stream that has lived so long forgets that the controller would have none of this agent: longer than the longest delay
/// after that, so that two copies of one agent do not take turns at the pace of [`STEADY`] for ever.
const WANTED_AGAIN: Duration = Duration::from_millis(2 * UNWANTED_BACKOFF_MS.1);
/// How long the controller may take to welcome.
pub const WELCOME_WAIT: Duration = Duration::from_secs(10);
/// Answers about who does how much that wait for the line; further questions get none, and those who asked go without.
const TOPS_WAITING_MAX: usize = 4;
/// Bounds of the delay before what is held and could not be put in force is tried again, in milliseconds.
const RETRY_BACKOFF_MS: (u64, u64) = (2_000, 60_000);

/// What the shell is to do, one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Persist, apply, commit.
    Adopt(Box<Adoption>),
    /// Apply what is held, once more.
    Retry,
}

/// An offer that was judged and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// What it is.
    pub held: Held,
    /// An assignment, encoded: for the disk.
    pub content: Vec<u8>,
    /// The same, read.
    pub assignment: Assignment,
    /// W3C trace context; empty: none.
    pub traceparent: String,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// What is on the disk.
    pub held: Option<Held>,
    /// Whether that is in force.
    pub in_force: bool,
    /// What was asked for is in force, and how it turned out; or why it is not.
    pub outcome: Result<wire::Effective, Fault>,
}

/// The agent's side of the session. Lives as long as the agent, over many streams.
#[derive(Debug)]
pub struct Session {
    random: fastrand::Rng,
    held: Option<Held>,
    in_force: bool,
    effective: wire::Effective,
    /// Whether the controller has been told that on this stream; `None`: it does not keep it.
    effective_told: Option<bool>,
    stream: Stream,
    backoff: Backoff,
    unwanted: Backoff,
    retry: Backoff,
    retry_at: Option<KernelTime>,
    /// The newest offer of this stream, not judged yet.
    offer: Option<Offer>,
    /// Nonce of the newest offer of this stream.
    newest: Option<u64>,
    /// What the shell is at.
    under_way: Option<UnderWay>,
    out: VecDeque<Outgoing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// Connect at this time.
    Down(KernelTime),
    /// Hello is said or about to be.
    Greeting { until: KernelTime },
    /// Welcomed.
    Open {
        since: KernelTime,
        heartbeat: Duration,
        next: KernelTime,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnderWay {
    /// An offer of this stream.
    Offer(u64),
    /// A retry, or an offer of an earlier stream: nobody waits for the answer.
    Unasked,
}

impl Session {
    /// Of an agent that holds this, or nothing yet. `effective`: as it turned out when it was put in force; `None`: it is
    /// not in force. Connects at once. Same seed, same delays.
    #[must_use]
    pub fn new(held: Option<Held>, effective: Option<wire::Effective>, seed: u64, now: KernelTime) -> Self {
        let backoff = |salt: u64, (base, cap)| Backoff::with_bounds(seed ^ salt, base, cap);
        let mut session = Self {
            random: fastrand::Rng::with_seed(seed),
            held,
            in_force: held.is_some() && effective.is_some(),
            effective: effective.unwrap_or_default(),
            effective_told: None,
            stream: Stream::Down(now),
            backoff: backoff(1, (CONNECT_BACKOFF_BASE_MS, CONNECT_BACKOFF_CAP_MS)),
            unwanted: backoff(2, UNWANTED_BACKOFF_MS),
            retry: backoff(3, RETRY_BACKOFF_MS),
            retry_at: None,
            offer: None,
            newest: None,
            under_way: None,
            out: VecDeque::new(),
        };
        session.plan_retry(now);
        session
    }

    /// What is in force.
    #[must_use]
    pub fn in_force(&self) -> Option<Held> {
        self.held.filter(|_| self.in_force)
    }

    /// Whether a controller has welcomed this agent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.stream, Stream::Open { .. })
    }

    /// When to connect; `None`: there is a stream.
    #[must_use]
    pub fn poll_connect(&self) -> Option<KernelTime> {
        match self.stream {
            Stream::Down(at) => Some(at),
            Stream::Greeting { .. } | Stream::Open { .. } => None,
        }
    }

    /// There is a stream.
    pub fn handle_connected(&mut self, now: KernelTime) {
        self.forget_stream();
        self.stream = Stream::Greeting {
            until: now.after(WELCOME_WAIT),
        };
        self.out.push_back(Outgoing::Hello(self.in_force()));
    }

    /// Takes what the controller said. What is for others comes back.
    ///
    /// # Errors
    ///
    /// [`Violation`]: the stream is to be ended.
    pub fn handle_message(
        &mut self,
        message: Incoming,
        now: KernelTime,
    ) -> Result<Option<Incoming>, Violation> {
        match (message, self.stream) {
            (Incoming::Welcome(_), Stream::Open { .. }) => Err(Violation::WelcomeTwice),
            (Incoming::Welcome(welcome), _) => {
                let first = self.random.u64(0..=nanoseconds(welcome.heartbeat));
                self.effective_told = welcome.keeps_effective.then_some(false);
                self.stream = Stream::Open {
                    since: now,
                    heartbeat: welcome.heartbeat,
                    next: now.after(Duration::from_nanos(first)),
                };
                Ok(Some(Incoming::Welcome(welcome)))
            }
            (ended @ Incoming::Ended { .. }, _) => Ok(Some(ended)),
            (_, Stream::Greeting { .. } | Stream::Down(_)) => Err(Violation::BeforeWelcome),
            (Incoming::Offer(offer), Stream::Open { .. }) => {
                self.newest = Some(offer.nonce);
                self.offer = Some(offer);
                // Answers to older ones say nothing any more; and a line that is stuck gathers none.
                self.out
                    .retain(|said| !matches!(said, Outgoing::Ack { .. } | Outgoing::Nack { .. }));
                Ok(None)
            }
            (Incoming::Top(question), Stream::Open { .. }) => {
                let waiting = self.out.iter().filter(|said| matches!(said, Outgoing::Top(_)));
                if waiting.count() < TOPS_WAITING_MAX {
                    self.out.push_back(Outgoing::Top(question));
                }
                Ok(None)
            }
            (
                other @ (Incoming::Roots(_) | Incoming::Peers(_) | Incoming::ShortIds(_)),
                Stream::Open { .. },
            ) => Ok(Some(other)),
        }
    }

    /// The next order. None while one is under way. Answers offers that need no order.
    pub fn poll_order(&mut self, now: KernelTime) -> Option<Order> {
        if self.under_way.is_some() {
            return None;
        }
        if let Some(offer) = self.offer.take() {
            let nonce = offer.nonce;
            match self.read(offer) {
                Ok(Some(adoption)) => {
                    self.under_way = Some(UnderWay::Offer(nonce));
                    self.retry_at = None;
                    return Some(Order::Adopt(Box::new(adoption)));
                }
                Ok(None) => self.ack(nonce),
                Err(fault) => self.nack(nonce, fault),
            }
        }
        let due = self.retry_at.is_some_and(|at| at <= now);
        due.then(|| {
            self.under_way = Some(UnderWay::Unasked);
            self.retry_at = None;
            Order::Retry
        })
    }

    /// Judges and reads; `None`: it is held and in force.
    fn read(&self, offer: Offer) -> Result<Option<Adoption>, Fault> {
        let at_fault = |refusal: Refusal| Fault {
            section: Section::Offer,
            path: String::new(),
            reason: refusal.to_string(),
        };
        let found = Digest::of(&offer.content);
        if found != offer.held.digest {
            let expected = offer.held.digest;
            return Err(at_fault(Refusal::Digest { found, expected }));
        }
        match judge(self.held.as_ref(), &offer.held).map_err(at_fault)? {
            Verdict::AlreadyHeld if self.in_force => Ok(None),
            Verdict::AlreadyHeld | Verdict::Adopt => Ok(Some(Adoption {
                held: offer.held,
                assignment: Assignment::parse(&offer.content)?,
                content: offer.content,
                traceparent: offer.traceparent,
            })),
        }
    }

    /// The order that was under way is done.
    pub fn handle_done(&mut self, done: Done, now: KernelTime) {
        let under_way = self.under_way.take();
        self.held = done.held;
        self.in_force = done.in_force && done.held.is_some();
        match (done.outcome, under_way) {
            (Ok(effective), under_way) => {
                if self.effective != effective {
                    self.effective = effective;
                    self.effective_told = self.effective_told.map(|_| false);
                }
                if let Some(UnderWay::Offer(nonce)) = under_way {
                    self.ack(nonce);
                }
            }
            (Err(fault), Some(UnderWay::Offer(nonce))) => self.nack(nonce, fault),
            (Err(_), Some(UnderWay::Unasked) | None) => {}
        }
        self.plan_retry(now);
    }

    /// What is held is not in force any more, without any order: it is tried again.
    pub fn handle_not_in_force(&mut self, now: KernelTime) {
        self.in_force = false;
        self.plan_retry(now);
    }

    /// There is another identity, by which the controller may think otherwise of this agent: connects at once.
    pub fn handle_enrolled(&mut self, now: KernelTime) {
        self.backoff.handle_success();
        self.unwanted.handle_success();
        if let Stream::Down(at) = &mut self.stream {
            *at = now;
        }
    }

    fn plan_retry(&mut self, now: KernelTime) {
        if self.held.is_some() && !self.in_force {
            let wait = self.retry.handle_failure();
            self.retry_at = Some(now.after(wait));
        } else {
            self.retry.handle_success();
            self.retry_at = None;
        }
    }

    fn ack(&mut self, nonce: u64) {
        if let (true, Some(held)) = (self.newest == Some(nonce), self.in_force()) {
            let effective = (self.effective_told != Some(true)).then(|| self.effective.clone());
            self.out.push_back(Outgoing::Ack {
                nonce,
                held,
                effective,
            });
        }
    }

    fn nack(&mut self, nonce: u64, fault: Fault) {
        if self.newest == Some(nonce) {
            let held = self.in_force();
            self.out.push_back(Outgoing::Nack { nonce, held, fault });
        }
    }

    /// The next message. Empty when all that is to be said was taken.
    pub fn poll_message(&mut self) -> Option<Outgoing> {
        match self.stream {
            Stream::Down(_) => None,
            // Nothing but the hello is said before the welcome: the queue holds nothing else then.
            Stream::Greeting { .. } | Stream::Open { .. } => {
                let said = self.out.pop_front();
                // Not when it was queued: a newer offer takes acks out of the queue.
                if let Some(Outgoing::Ack {
                    effective: Some(told),
                    ..
                }) = &said
                {
                    let is_so = *told == self.effective;
                    self.effective_told = self.effective_told.map(|_| is_so);
                }
                said
            }
        }
    }

    /// When to call [`Self::handle_timeout`] and [`Self::poll_order`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<KernelTime> {
        let stream = match self.stream {
            Stream::Down(_) => None,
            Stream::Greeting { until } => Some(until),
            Stream::Open { next, .. } => Some(next),
        };
        let retry = self.retry_at.filter(|_| self.under_way.is_none());
        stream.into_iter().chain(retry).min()
    }

    /// Time has passed. False: the controller has not welcomed this agent in time, the stream is to be ended.
    #[must_use]
    pub fn handle_timeout(&mut self, now: KernelTime) -> bool {
        match &mut self.stream {
            Stream::Greeting { until } => *until > now,
            Stream::Open { heartbeat, next, .. } if *next <= now => {
                *next = now.after(*heartbeat);
                let held = self.in_force();
                // One is enough when the line is stuck.
                if !self.out.iter().any(|said| matches!(said, Outgoing::Heartbeat(_))) {
                    self.out.push_back(Outgoing::Heartbeat(held));
                }
                true
            }
            Stream::Open { .. } | Stream::Down(_) => true,
        }
    }

    /// The agent ends on purpose: the last message.
    pub fn handle_stop(&mut self) {
        if self.is_open() {
            self.out.push_back(Outgoing::Goodbye);
        }
    }

    /// The stream has ended, or could not be had. `ended`: what the controller gave as the reason. Draws when to connect.
    pub fn handle_disconnected(&mut self, ended: Option<EndReason>, now: KernelTime) {
        if let Stream::Open { since, .. } = self.stream
            && now.since(since) >= STEADY
        {
            self.backoff.handle_success();
            if now.since(since) >= WANTED_AGAIN {
                self.unwanted.handle_success();
            }
        }
        let wait = match ended {
            Some(EndReason::Revoked | EndReason::Replaced) => self.unwanted.handle_failure(),
            Some(
                EndReason::Stopping
                | EndReason::Protocol
                | EndReason::Slow
                | EndReason::Expired
                | EndReason::Other,
            )
            | None => self.backoff.handle_failure(),
        };
        self.forget_stream();
        self.stream = Stream::Down(now.after(wait));
    }

    /// Nonces and messages are the stream's own.
    fn forget_stream(&mut self) {
        self.out.clear();
        (self.offer, self.newest) = (None, None);
        self.effective_told = None;
        if self.under_way.is_some() {
            self.under_way = Some(UnderWay::Unasked);
        }
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
