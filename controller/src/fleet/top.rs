//! Who does how much on the agents' hosts: an operator's question, passed on, and what was answered, as one list.
//!
//! In: a [`TopRequest`], agents' answers, the ends of streams, time. Out: speech, and a [`TopResponse`] for each request
//! ([`Fleet::poll_top`]). Agents are asked [`ASKED_AT_ONCE_MAX`] at a time, the next when one has answered; of all answers no
//! more rows are kept than are wanted, the others go into sums. So a request holds a bounded amount, whatever the fleet's size.
//! An agent that does not answer, because it is of an earlier version, busy or gone, is named with the reason.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{TopAgentRow, TopRequest, TopResponse, TopSilent};
use flowtilla_proto::wire::session::{TopAnswer, TopOrder, TopQuestion, TopSums, TopView};

use super::agent::Agent;
use super::{Fleet, Now, SessionId, Speech};

/// Requests that are under way, at most; further ones are refused.
pub const REQUESTS_MAX: usize = 16;
/// Agents that one request has asked and that have not answered, at most.
///
/// An answer may take 96 KiB on its way. Half of it makes a request to 10,000 agents take twice as long; double it, and 16
/// requests may hold 800 MiB.
pub const ASKED_AT_ONCE_MAX: usize = 256;
/// How long an agent has to answer, in milliseconds.
///
/// It answers at once, from memory. Half of it takes a host that swaps for one of an earlier version; double it, and a picture
/// that is drawn anew each two seconds waits too long for one such host.
pub const ANSWER_MS: u64 = 2_000;
/// How long a request may take as a whole, in milliseconds: an operator waits for 30 s.
pub const REQUEST_MS: u64 = 20_000;
/// Longest window of an agent, in milliseconds. Source: the agent's `top`, which keeps a minute.
pub const WINDOW_MS_MAX: u64 = 60_000;
/// Rows when the caller does not say.
const ROWS_DEFAULT: usize = 50;
/// Rows at most: as many as an agent tells.
pub const ROWS_MAX: usize = 200;
/// Agents that are named because they did not answer, at most.
pub const SILENT_MAX: usize = 100;

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopRefused {
    /// No view, or one of a later version.
    #[error("view: is not known; ask for containers, pods, processes, users or flows")]
    View,
    /// Too many at once.
    #[error("{REQUESTS_MAX} such requests are under way, which is the most at once; try again in a moment")]
    Busy,
}

/// Requests under way.
#[derive(Default)]
pub(super) struct Tops {
    last: u64,
    /// By number; an agent's answer repeats it.
    asking: BTreeMap<u64, Asking>,
    done: VecDeque<(u64, TopResponse)>,
}

struct Asking {
    question: TopQuestion,
    rows_max: usize,
    until_ms: u64,
    /// To be asked.
    next: VecDeque<MemberName>,
    /// Asked: who, and until when it is waited for.
    asked: BTreeMap<SessionId, (MemberName, u64)>,
    response: TopResponse,
}

impl Fleet {
    /// Begins to ask. The number of the request.
    ///
    /// # Errors
    ///
    /// [`TopRefused`].
    pub fn ask_top(&mut self, request: &TopRequest, now: Now) -> Result<u64, TopRefused> {
        if request.view() == TopView::Unspecified {
            return Err(TopRefused::View);
        }
        if self.tops.asking.len() >= REQUESTS_MAX {
            return Err(TopRefused::Busy);
        }
        let rows_max = match usize::try_from(request.rows).unwrap_or(ROWS_MAX) {
            0 => ROWS_DEFAULT,
            rows => rows.min(ROWS_MAX),
        };
        let ids: BTreeSet<&str> = request.ids.iter().map(String::as_str).collect();
        let chosen = |(id, agent): &(&MemberName, &Agent)| {
            let labels = agent.labels.as_map();
            !agent.revoked
                && (ids.is_empty() || ids.contains(id.as_str()))
                && (request.labels.iter()).all(|(key, value)| labels.get(key) == Some(value))
        };
        let chosen: VecDeque<MemberName> = self
            .agents
            .iter()
            .filter(chosen)
            .map(|(id, _)| id.clone())
            .collect();
        self.tops.last += 1;
        let number = self.tops.last;
        let mut asking = Asking {
            question: TopQuestion {
                id: number,
                view: request.view,
                order: request.order,
                rows: u32::try_from(rows_max).unwrap_or(u32::MAX),
            },
            rows_max,
            until_ms: now.run_ms.saturating_add(REQUEST_MS),
            asked: BTreeMap::new(),
            response: TopResponse {
                agents: u32::try_from(chosen.len()).unwrap_or(u32::MAX),
                other: Some(TopSums::default()),
                other_total: Some(TopSums::default()),
                ..TopResponse::default()
            },
            next: chosen,
        };
        let known: BTreeSet<&str> = asking.next.iter().map(MemberName::as_str).collect();
        let missing: Vec<&str> = ids.iter().filter(|id| !known.contains(**id)).copied().collect();
        for id in missing {
            let here = MemberName::parse(id).is_ok_and(|id| self.agents.contains_key(&id));
            let why = match here {
                true => "it is revoked, or its labels are others",
                false => "the controller does not know it",
            };
            asking.silent(id, why);
        }
        self.tops.asking.insert(number, asking);
        self.ask_next(number, now);
        Ok(number)
    }

    /// Nobody waits for a request any more: its place is free.
    pub fn forget_top(&mut self, number: u64) {
        self.tops.asking.remove(&number);
    }

    /// The next request that is done with.
    pub fn poll_top(&mut self) -> Option<(u64, TopResponse)> {
        self.tops.done.pop_front()
    }

    /// Asks as many as may be asked; when nobody is left, the request is done with.
    fn ask_next(&mut self, number: u64, now: Now) {
        let Some(asking) = self.tops.asking.get_mut(&number) else {
            return;
        };
        while asking.asked.len() < ASKED_AT_ONCE_MAX
            && let Some(id) = asking.next.pop_front()
        {
            let line = self.agents.get(&id).and_then(|agent| agent.line.as_ref());
            let Some(session) = line.map(|line| line.session) else {
                asking.silent(id.as_str(), "it is not connected");
                continue;
            };
            let until_ms = now.run_ms.saturating_add(ANSWER_MS).min(asking.until_ms);
            asking.asked.insert(session, (id, until_ms));
            self.speech.push_back((session, Speech::Top(asking.question)));
        }
        if asking.asked.is_empty()
            && asking.next.is_empty()
            && let Some(asking) = self.tops.asking.remove(&number)
        {
            self.tops.done.push_back((number, asking.response));
        }
    }

    /// An agent has answered. What nobody asked it, or has come too late, changes nothing.
    pub(super) fn handle_top(&mut self, session: SessionId, answer: TopAnswer, now: Now) {
        let number = answer.id;
        let asking = self.tops.asking.get_mut(&number);
        let Some(asking) = asking else { return };
        let Some((agent, _)) = asking.asked.remove(&session) else {
            return;
        };
        asking.take(agent.as_str(), answer);
        self.ask_next(number, now);
    }

    /// A stream has ended: it answers nothing more. Who is asked next is seen to at the next [`Self::time_tops`].
    pub(super) fn close_tops(&mut self, session: SessionId) {
        for asking in self.tops.asking.values_mut() {
            if let Some((agent, _)) = asking.asked.remove(&session) {
                asking.silent(agent.as_str(), "its stream ended before it answered");
            }
        }
    }

    /// Time has passed.
    pub(super) fn time_tops(&mut self, now: Now) {
        for asking in self.tops.asking.values_mut() {
            let late = |_: &SessionId, (_, until_ms): &mut (MemberName, u64)| *until_ms <= now.run_ms;
            let late: Vec<MemberName> = asking
                .asked
                .extract_if(.., late)
                .map(|(_, (agent, _))| agent)
                .collect();
            for agent in late {
                let s = ANSWER_MS / 1_000;
                let why = format!("it did not answer within {s} s: it is of an earlier version, or busy");
                asking.silent(agent.as_str(), &why);
            }
            if now.run_ms >= asking.until_ms {
                for agent in std::mem::take(&mut asking.next) {
                    asking.silent(agent.as_str(), "there was no time to ask it: choose fewer agents");
                }
            }
        }
        let numbers: Vec<u64> = self.tops.asking.keys().copied().collect();
        for number in numbers {
            self.ask_next(number, now);
        }
    }
}

impl Asking {
    fn silent(&mut self, agent: &str, why: &str) {
        if self.response.silent.len() < SILENT_MAX {
            self.response.silent.push(TopSilent {
                agent: agent.to_owned(),
                why: why.to_owned(),
            });
        }
    }

    /// Merges an answer: the first rows of all stay.
    fn take(&mut self, agent: &str, answer: TopAnswer) {
        let TopResponse {
            rows,
            more,
            other,
            other_total,
            window_ms,
            answered,
            evicted,
            ..
        } = &mut self.response;
        let (other, other_total) = (other.get_or_insert_default(), other_total.get_or_insert_default());
        *answered += 1;
        *window_ms = (*window_ms).max(answer.window_ms);
        *evicted = evicted.saturating_add(answer.evicted);
        *more = more.saturating_add(answer.more);
        answer.other.iter().for_each(|more| other.add(more));
        answer.other_total.iter().for_each(|more| other_total.add(more));
        rows.extend(answer.rows.into_iter().map(|row| TopAgentRow {
            agent: agent.to_owned(),
            row: Some(row),
            window_ms: answer.window_ms,
        }));
        let order = self.question.order();
        // Stable: of equal rows those that came first, and of one agent in its order.
        rows.sort_by_key(|row| std::cmp::Reverse(rank(order, row)));
        for row in rows.drain(self.rows_max.min(rows.len())..) {
            let row = row.row.unwrap_or_default();
            *more = more.saturating_add(1);
            row.window.iter().for_each(|more| other.add(more));
            row.total.iter().for_each(|more| other_total.add(more));
        }
    }
}

/// By what rows are compared, as agents do: what was asked for, then octets.
fn rank(order: TopOrder, row: &TopAgentRow) -> (u64, u64) {
    let Some(sums) = row.row.as_ref().and_then(|row| row.window.as_ref()) else {
        return (0, 0);
    };
    let octets = sums.octets();
    let first = match order {
        TopOrder::Octets | TopOrder::Unspecified => octets,
        TopOrder::Rtt => sums.rtt_mean_us().map_or(0, |us| us.saturating_add(1)),
        TopOrder::Retransmits => sums.retransmits,
        TopOrder::Flows => sums.flows(),
        TopOrder::Failed => sums.failed,
    };
    (first, octets)
}
