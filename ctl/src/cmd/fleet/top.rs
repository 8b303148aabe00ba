//! `agentctl top`: who does how much on the agents' hosts, and how well their TCP runs, in the last minute.
//!
//! On a terminal a picture that is drawn anew; keys change order and view, `q` or Ctrl-C ends. With `--once`, in a pipe and as
//! JSON one answer. Rates are means over the window: octets a second, headers included. RTT and VAR are means of the smoothed
//! round-trip time and of its mean deviation, over records. What does not fit is summed up in a row of its own.
//!
//! Exit code 0: an agent has answered, and each that `--agent` names; 1: not. The agents that did not are named.
//! `-o json`: the shape in [`plain`].

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::{Args, ValueEnum};
use flowtilla_proto::wire::fleet::{TopAgentRow, TopRequest, TopResponse};
use flowtilla_proto::wire::session::{TopAnswer, TopOrder, TopView};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep_until};

use self::keys::Keys;
use super::token::{parse_label, parse_ttl};
use super::{json, print};
use crate::client::{Client, Reach};
use crate::cmd::up::screen::Screen;
use crate::exit::{Exit, UsageError, say};
use crate::output::harmless;
use crate::signals::Signals;

pub(crate) mod keys;
pub(crate) mod picture;
pub(crate) mod plain;

/// Rows of one answer when nothing else is said.
const ROWS_DEFAULT: u32 = 20;
/// Rows at most. Source: `session.proto`, TopQuestion.
const ROWS_MAX: u32 = 200;
/// Shortest time between two pictures, in milliseconds: each asks all chosen agents.
const INTERVAL_MS_MIN: u64 = 500;
/// What the headline says about the end.
const END: &str = "q ends";
/// Lines of a picture that are no rows: the headline, the columns' names, the sum of what does not fit, the cursor's.
const LINES_BESIDE: usize = 4;

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum View {
    /// Containers, by the names their runtimes tell.
    Containers,
    /// Kubernetes pods.
    Pods,
    /// Programs, each by the systemd unit or container it runs in.
    Processes,
    /// Users.
    Users,
    /// The busiest flows.
    Flows,
}

/// By what rows are ordered, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Octets sent and received.
    #[default]
    Octets,
    /// Mean round-trip time.
    Rtt,
    /// Segments sent again.
    Retransmits,
    /// Flows as client and server.
    Flows,
    /// Attempts that failed.
    Failed,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table as wide as the terminal, or of 80 columns.
    #[default]
    Table,
    /// A table with all columns, nothing cut.
    Wide,
    /// One JSON object.
    Json,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TopArgs {
    /// What is listed.
    #[arg(value_name = "VIEW", value_enum)]
    pub(crate) view: View,
    /// Only this agent; may be repeated.
    #[arg(long, value_name = "ID")]
    pub(crate) agent: Vec<String>,
    /// Only agents with this label; may be repeated: all of them.
    #[arg(short = 'l', long = "selector", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) selector: Vec<(String, String)>,
    /// The order of rows.
    #[arg(long, value_name = "BY", value_enum, default_value_t)]
    pub(crate) sort: Sort,
    /// Time between two pictures.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_ttl)]
    pub(crate) interval: u64,
    /// Rows at most, 1 to 200 [default: what the terminal holds, or 20].
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_rows)]
    pub(crate) rows: Option<u32>,
    /// Prints one answer, and ends.
    #[arg(long)]
    pub(crate) once: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

fn parse_rows(text: &str) -> Result<u32, String> {
    let rows = text.parse().ok().filter(|rows| (1..=ROWS_MAX).contains(rows));
    rows.ok_or_else(|| format!("is no number of rows; write one from 1 to {ROWS_MAX}"))
}

impl View {
    pub(crate) const ALL: [Self; 5] = [
        Self::Containers,
        Self::Pods,
        Self::Processes,
        Self::Users,
        Self::Flows,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::Pods => "pods",
            Self::Processes => "processes",
            Self::Users => "users",
            Self::Flows => "flows",
        }
    }

    pub(crate) fn to_wire(self) -> TopView {
        match self {
            Self::Containers => TopView::Containers,
            Self::Pods => TopView::Pods,
            Self::Processes => TopView::Processes,
            Self::Users => TopView::Users,
            Self::Flows => TopView::Flows,
        }
    }
}

impl Sort {
    pub(crate) const ALL: [Self; 5] = [
        Self::Octets,
        Self::Rtt,
        Self::Retransmits,
        Self::Flows,
        Self::Failed,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Octets => "octets",
            Self::Rtt => "rtt",
            Self::Retransmits => "retransmits",
            Self::Flows => "flows",
            Self::Failed => "failed",
        }
    }

    /// The key that chooses it.
    pub(crate) fn key(self) -> char {
        match self {
            Self::Octets => 'o',
            Self::Rtt => 'r',
            Self::Retransmits => 't',
            Self::Flows => 'f',
            Self::Failed => 'x',
        }
    }

    pub(crate) fn to_wire(self) -> TopOrder {
        match self {
            Self::Octets => TopOrder::Octets,
            Self::Rtt => TopOrder::Rtt,
            Self::Retransmits => TopOrder::Retransmits,
            Self::Flows => TopOrder::Flows,
            Self::Failed => TopOrder::Failed,
        }
    }
}

/// Which view in which order: what keys change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Looking {
    pub(crate) view: View,
    pub(crate) sort: Sort,
}

impl TopArgs {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// Wrong flags, or the controller refuses.
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let labels = self.check()?;
        let client = Client::reach(&self.reach).await?;
        let live = !self.once && self.output == Format::Table && io::stdout().is_terminal();
        match live {
            true => self.watch(&client, labels).await,
            false => self.tell(&client, labels).await,
        }
    }

    fn check(&self) -> Result<BTreeMap<String, String>, UsageError> {
        let mut lines = Vec::new();
        let mut labels = BTreeMap::new();
        for (key, value) in &self.selector {
            if labels.insert(key.clone(), value.clone()).is_some() {
                lines.push(format!(
                    "--selector: {:?} is there twice; write it once",
                    harmless(key)
                ));
            }
        }
        if self.interval < INTERVAL_MS_MIN {
            let least = INTERVAL_MS_MIN;
            lines.push(format!("--interval: is too short; write {least}ms or more"));
        }
        if lines.is_empty() {
            Ok(labels)
        } else {
            Err(UsageError(lines))
        }
    }

    fn request(&self, looking: Looking, labels: &BTreeMap<String, String>, rows: u32) -> TopRequest {
        TopRequest {
            ids: self.agent.clone(),
            labels: labels.clone(),
            view: looking.view.to_wire().into(),
            order: looking.sort.to_wire().into(),
            rows,
        }
    }

    fn looking(&self) -> Looking {
        Looking {
            view: self.view,
            sort: self.sort,
        }
    }

    /// One answer.
    async fn tell(&self, client: &Client, labels: BTreeMap<String, String>) -> anyhow::Result<Exit> {
        let rows = self.rows.unwrap_or(ROWS_DEFAULT);
        let looking = self.looking();
        let request = self.request(looking, &labels, rows);
        let mut signals = Signals::new()?;
        let mut fleet = client.fleet();
        let response = tokio::select! { biased;
            () = signals.next() => return Ok(Exit::Interrupted),
            response = client.ask(fleet.top(request)) => response?,
        };
        let columns = match self.output {
            Format::Wide => None,
            Format::Table | Format::Json => Some(picture::columns_of_terminal()),
        };
        let text = match self.output {
            Format::Json => json(&plain::top(&response, looking)),
            Format::Table | Format::Wide => picture::text(&response, looking, columns),
        };
        print(&text)?;
        if self.output != Format::Json {
            picture::notes(&response).iter().for_each(say);
        }
        Ok(self.exit(&response))
    }

    /// Whether whoever was to answer has.
    fn exit(&self, response: &TopResponse) -> Exit {
        let is_silent = |agent: &&String| response.silent.iter().any(|silent| silent.agent == **agent);
        match response.answered > 0 && !self.agent.iter().any(|agent| is_silent(&agent)) {
            true => Exit::Done,
            false => Exit::Failed,
        }
    }

    /// Pictures until it is told to end.
    async fn watch(&self, client: &Client, labels: BTreeMap<String, String>) -> anyhow::Result<Exit> {
        let mut signals = Signals::new()?;
        let mut screen = Screen::open();
        let mut keys = Keys::open();
        let mut looking = self.looking();
        let mut last: Option<TopResponse> = None;
        loop {
            let (_, lines) = screen.size();
            let room = u32::try_from(lines.saturating_sub(LINES_BESIDE)).unwrap_or(ROWS_MAX);
            let rows = self.rows.unwrap_or(room).clamp(1, ROWS_MAX);
            let next = Instant::now() + Duration::from_millis(self.interval);
            let mut fleet = client.fleet();
            let request = self.request(looking, &labels, rows);
            let asked = client.ask(fleet.top(request));
            tokio::pin!(asked);
            let before = looking;
            let answer = loop {
                tokio::select! { biased;
                    () = signals.next() => return Ok(self.end(last.as_ref())),
                    key = keys.next() => {
                        if looking.press(key) {
                            return Ok(self.end(last.as_ref()));
                        }
                        // A key that changes nothing asks nothing anew.
                        if looking != before {
                            break None;
                        }
                    }
                    answer = &mut asked => break Some(answer),
                }
            };
            let Some(answer) = answer else { continue };
            let (response, failed) = match (answer, &last) {
                (Ok(response), _) => (response, None),
                // What was answered before stays on the screen while the controller is away.
                (Err(failed), Some(before)) => (before.clone(), Some(failed.to_string())),
                (Err(failed), None) => return Err(failed.into()),
            };
            loop {
                block_in_place(|| {
                    screen.measure()?;
                    screen.draw(&picture::frame(
                        &response,
                        looking,
                        END,
                        failed.as_deref(),
                        screen.size(),
                    ))
                })?;
                let before = looking;
                tokio::select! { biased;
                    () = signals.next() => return Ok(self.end(Some(&response))),
                    key = keys.next() => {
                        if looking.press(key) {
                            return Ok(self.end(Some(&response)));
                        }
                        if looking != before {
                            break;
                        }
                    }
                    () = sleep_until(next) => break,
                }
            }
            last = failed.is_none().then_some(response).or(last);
        }
    }

    fn end(&self, last: Option<&TopResponse>) -> Exit {
        last.map_or(Exit::Interrupted, |response| self.exit(response))
    }
}

/// What one agent has answered, without its name.
pub(crate) fn of_one(answer: TopAnswer) -> TopResponse {
    let row = |row| TopAgentRow {
        agent: String::new(),
        row: Some(row),
        window_ms: answer.window_ms,
    };
    TopResponse {
        rows: answer.rows.into_iter().map(row).collect(),
        more: answer.more,
        other: answer.other,
        other_total: answer.other_total,
        window_ms: answer.window_ms,
        evicted: answer.evicted,
        agents: 1,
        answered: 1,
        silent: Vec::new(),
    }
}

impl Looking {
    /// Takes a key in; whether it ends the command.
    pub(crate) fn press(&mut self, key: char) -> bool {
        if let Some(sort) = Sort::ALL.into_iter().find(|sort| sort.key() == key) {
            self.sort = sort;
        }
        let place = key
            .to_digit(10)
            .and_then(|n| usize::try_from(n).ok()?.checked_sub(1));
        if let Some(view) = place.and_then(|place| View::ALL.get(place)) {
            self.view = *view;
        }
        key == 'q'
    }
}
