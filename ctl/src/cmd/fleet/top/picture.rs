//! How an answer becomes lines of a given width.
//!
//! The most columns whose least widths fit, those of the highest [`Column::rank`] going first, together; then what is left over goes to
//! the names, from left to right. Everything that an agent told is made harmless.

use std::net::SocketAddr;

use flowtilla_proto::wire::fleet::{TopAgentRow, TopResponse};
use flowtilla_proto::wire::session::top_row::Subject;
use flowtilla_proto::wire::session::{TopFlowEnd, TopProcess, TopRow, TopSums};

use super::plain::{address, protocol};
use super::{Looking, Sort, View};
use crate::cmd::up::table::{Frame, Paint};
use crate::output::{cut, grid, harmless, short, short_us, width};

/// Columns of a table where there is no terminal.
const COLUMNS_DEFAULT: usize = 80;
/// Between two columns.
const GAP: usize = 1;
/// Between two parts of the headline.
const WORDS_GAP: &str = "   ";
/// Digits of a container's id that are shown.
const ID_SHOWN: usize = 12;

/// One column.
#[derive(Clone, Copy)]
struct Column {
    title: &'static str,
    kind: Kind,
    /// The higher, the sooner it goes when there is no room; 0: never.
    rank: u8,
    cell: fn(&TopAgentRow) -> String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// May be cut to so many columns.
    Name(usize),
    Number,
}

/// Columns of the terminal on stdout.
pub(super) fn columns_of_terminal() -> usize {
    use std::io::IsTerminal as _;
    let size = std::io::stdout().is_terminal().then(crossterm::terminal::size);
    match size {
        Some(Ok((columns, _))) if columns > 0 => columns.into(),
        _ => COLUMNS_DEFAULT,
    }
}

/// A table for a pipe. `columns`: how wide; `None`: nothing is cut.
pub(crate) fn text(response: &TopResponse, looking: Looking, columns: Option<usize>) -> String {
    let mut lines = vec![headline(response, looking)];
    lines.extend(
        table(response, looking, columns, usize::MAX)
            .into_iter()
            .map(|(_, line)| line),
    );
    let width = columns.unwrap_or(usize::MAX);
    lines.into_iter().map(|line| cut(&line, width) + "\n").collect()
}

/// The picture for a screen of so many columns and lines. `key`: what a key does beside those that change order and view;
/// `failed`: why it is an older one.
pub(crate) fn frame(
    response: &TopResponse,
    looking: Looking,
    key: &str,
    failed: Option<&str>,
    (columns, lines): (usize, usize),
) -> Frame {
    let keys: String = Sort::ALL.iter().map(|sort| sort.key()).collect();
    let head = [
        headline(response, looking),
        format!("{key}, {keys} sort, 1-5 view"),
    ]
    .join(WORDS_GAP);
    let mut foot: Frame = Vec::new();
    foot.extend(failed.map(|why| (Paint::Alarm, harmless(why))));
    // Agents that do not answer must not push the others off the screen.
    let notes = notes(response);
    foot.extend(notes.into_iter().take(lines / 4).map(|note| (Paint::Alarm, note)));
    // The headline and the names of the columns take a line each, the cursor another.
    let room = lines.saturating_sub(foot.len() + 3);
    let mut frame = vec![(Paint::Frame, head)];
    frame.extend(table(response, looking, Some(columns), room));
    frame.extend(foot);
    frame.truncate(lines.saturating_sub(1));
    frame
        .into_iter()
        .map(|(paint, line)| (paint, cut(&line, columns)))
        .collect()
}

/// What is beside the table: who did not answer.
pub(crate) fn notes(response: &TopResponse) -> Vec<String> {
    let mut notes: Vec<String> = response
        .silent
        .iter()
        .map(|silent| format!("{}: {}", harmless(&silent.agent), harmless(&silent.why)))
        .collect();
    if response.agents == 0 && notes.is_empty() {
        notes.push("no agent has these labels; see agentctl agents".to_owned());
    }
    let named = u32::try_from(response.silent.len()).unwrap_or(u32::MAX);
    let more = response
        .agents
        .saturating_sub(response.answered)
        .saturating_sub(named);
    if more > 0 {
        notes.push(format!("and {more} more did not answer"));
    }
    notes
}

fn headline(response: &TopResponse, looking: Looking) -> String {
    let agents = match (response.answered, response.agents) {
        (1, 1) => "1 agent".to_owned(),
        (answered, agents) if answered == agents => format!("{agents} agents"),
        (answered, agents) => format!("{answered} of {agents} agents"),
    };
    [
        format!("{} by {}", looking.view.word(), looking.sort.word()),
        agents,
        format!("last {} s", response.window_ms.div_ceil(1_000)),
    ]
    .join(WORDS_GAP)
}

/// The names of the columns, the rows, and the sum of what is in none; at most `room` lines beside the names.
fn table(response: &TopResponse, looking: Looking, columns: Option<usize>, room: usize) -> Frame {
    if response.rows.is_empty() && response.more == 0 {
        let nobody = match looking.view {
            View::Containers => "no container had a flow in this time",
            View::Pods => "no pod had a flow in this time",
            View::Processes | View::Users | View::Flows => "no flow in this time",
        };
        return vec![(Paint::Live, nobody.to_owned())];
    }
    let mut more = response.more;
    let mut other = response.other.unwrap_or_default();
    let mut other_total = response.other_total.unwrap_or_default();
    let fits = match more > 0 || response.rows.len() > room {
        true => room.saturating_sub(1),
        false => room,
    };
    let (shown, hidden) = response.rows.split_at(fits.min(response.rows.len()));
    for row in hidden.iter().filter_map(|row| row.row.as_ref()) {
        more += 1;
        row.window.iter().for_each(|more| other.add(more));
        row.total.iter().for_each(|more| other_total.add(more));
    }
    let mut rows = shown.to_vec();
    let has_other = more > 0 || other != TopSums::default();
    if has_other {
        rows.push(TopAgentRow {
            agent: String::new(),
            row: Some(TopRow {
                subject: None,
                window: Some(other),
                total: Some(other_total),
            }),
            window_ms: response.window_ms,
        });
    }
    let chosen = columns_of(looking.view, response);
    let mut cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| chosen.iter().map(|column| (column.cell)(row)).collect())
        .collect();
    if has_other && let Some(last) = cells.last_mut() {
        let place = chosen.iter().position(|column| column.rank == 0).unwrap_or(0);
        last[place] = match more {
            0 => "others".to_owned(),
            more => format!("{more} more"),
        };
    }
    let (kept, cells) = fit(&chosen, cells, columns);
    let head = kept.iter().map(|column| column.title.to_owned()).collect();
    let lines: Vec<Vec<String>> = [head].into_iter().chain(cells).collect();
    let right: Vec<usize> = (0..kept.len())
        .filter(|&place| kept[place].kind == Kind::Number)
        .collect();
    let paints = rows.iter().map(|row| match row.row.as_ref() {
        Some(TopRow { subject: None, .. }) => Paint::Ended,
        Some(row) if row.window.is_some_and(|sums| sums.failed > 0) => Paint::Alarm,
        _ => Paint::Live,
    });
    [Paint::Frame]
        .into_iter()
        .chain(paints)
        .zip(grid(&lines, &right))
        .collect()
}

/// The columns that fit, and their cells, cut.
fn fit(
    chosen: &[Column],
    cells: Vec<Vec<String>>,
    columns: Option<usize>,
) -> (Vec<Column>, Vec<Vec<String>>) {
    let natural = |place: usize| {
        let widest = cells.iter().map(|row| width(&row[place])).max().unwrap_or(0);
        widest.max(width(chosen[place].title))
    };
    let least = |place: usize| match chosen[place].kind {
        Kind::Name(least) => natural(place).min(least.max(width(chosen[place].title))),
        Kind::Number => natural(place),
    };
    let mut kept: Vec<usize> = (0..chosen.len()).collect();
    let Some(columns) = columns else {
        return (chosen.to_vec(), cells);
    };
    let total = |kept: &[usize], of: &dyn Fn(usize) -> usize| {
        kept.iter().map(|&place| of(place)).sum::<usize>() + GAP * kept.len().saturating_sub(1)
    };
    while total(&kept, &least) > columns {
        let Some(gone) = kept
            .iter()
            .map(|&place| chosen[place].rank)
            .max()
            .filter(|rank| *rank > 0)
        else {
            break;
        };
        kept.retain(|&place| chosen[place].rank != gone);
    }
    let mut left = columns.saturating_sub(total(&kept, &least));
    let widths: Vec<usize> = kept
        .iter()
        .map(|&place| {
            let more = natural(place).saturating_sub(least(place)).min(left);
            left -= more;
            least(place) + more
        })
        .collect();
    let cells = cells.iter().map(|row| {
        let kept = kept.iter().zip(&widths);
        kept.map(|(&place, &width)| cut(&row[place], width)).collect()
    });
    let cells = cells.collect();
    (kept.iter().map(|&place| chosen[place]).collect(), cells)
}

fn columns_of(view: View, response: &TopResponse) -> Vec<Column> {
    let name = |title, least, rank, cell| Column {
        title,
        kind: Kind::Name(least),
        rank,
        cell,
    };
    let number = |title, rank, cell| Column {
        title,
        kind: Kind::Number,
        rank,
        cell,
    };
    let mut columns = Vec::new();
    if response.agents > 1 {
        columns.push(name("AGENT", 8, 3, |row| harmless(&row.agent)));
    }
    match view {
        View::Containers => columns.extend([
            name("CONTAINER", 16, 0, container),
            name("POD", 12, 9, container_pod),
            name("ID", ID_SHOWN, 20, container_id),
        ]),
        View::Pods => columns.extend([name("NAMESPACE", 8, 2, pod_namespace), name("POD", 16, 0, pod)]),
        View::Processes => columns.extend([
            name("PROCESS", 12, 0, process),
            name("RUNS IN", 10, 4, place),
            name("EXECUTABLE", 20, 21, executable),
        ]),
        View::Users => columns.push(name("USER", 12, 0, user)),
        View::Flows => columns.extend([
            name("CLIENT", 20, 0, client),
            name("SERVER", 20, 0, server),
            name("PRO", 3, 8, |row| {
                of_flow(row, |flow| protocol(flow.protocol).to_owned())
            }),
            name("STATE", 7, 7, |row| of_flow(row, |flow| harmless(&flow.state))),
        ]),
    }
    if view != View::Flows {
        columns.extend([
            number("CLI", 1, |row| short(window(row).flows_client)),
            number("SRV", 1, |row| short(window(row).flows_server)),
        ]);
    }
    columns.extend([
        number("↑OCT/S", 1, |row| rate(row, window(row).octets_sent)),
        number("↓OCT/S", 1, |row| rate(row, window(row).octets_received)),
        number("RTT", 1, |row| time(window(row).rtt_mean_us())),
        number("VAR", 6, |row| time(window(row).rtt_variance_mean_us())),
        number("RETR", 5, |row| count(window(row).retransmits)),
        number("FAIL", 2, |row| count(window(row).failed)),
        number("↑PKT/S", 11, |row| rate(row, window(row).packets_sent)),
        number("↓PKT/S", 11, |row| rate(row, window(row).packets_received)),
        number("Σ↑OCT", 10, |row| short(total(row).octets_sent)),
        number("Σ↓OCT", 10, |row| short(total(row).octets_received)),
        number("ΣRETR", 12, |row| count(total(row).retransmits)),
    ]);
    if view != View::Flows {
        columns.extend([
            number("ΣFLOWS", 12, |row| short(total(row).flows())),
            number("ΣFAIL", 12, |row| count(total(row).failed)),
        ]);
    }
    columns
}

fn window(row: &TopAgentRow) -> TopSums {
    row.row.as_ref().and_then(|row| row.window).unwrap_or_default()
}

fn total(row: &TopAgentRow) -> TopSums {
    row.row.as_ref().and_then(|row| row.total).unwrap_or_default()
}

/// A second's part of what the window has.
fn rate(row: &TopAgentRow, n: u64) -> String {
    let a_second = u128::from(n) * 1_000 / u128::from(row.window_ms.max(1_000));
    short(u64::try_from(a_second).unwrap_or(u64::MAX))
}

fn time(us: Option<u64>) -> String {
    us.map_or_else(String::new, |us| short_us(u32::try_from(us).unwrap_or(u32::MAX)))
}

/// Nothing where there is none: what is there is seen.
fn count(n: u64) -> String {
    match n {
        0 => String::new(),
        n => short(n),
    }
}

fn subject(row: &TopAgentRow) -> Option<&Subject> {
    row.row.as_ref()?.subject.as_ref()
}

fn container(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::Container(one)) if one.name.is_empty() => id_shown(&one.id),
        Some(Subject::Container(one)) => harmless(&one.name),
        _ => String::new(),
    }
}

fn container_pod(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::Container(one)) if !one.pod.is_empty() => {
            format!("{}/{}", harmless(&one.pod_namespace), harmless(&one.pod))
        }
        _ => String::new(),
    }
}

fn container_id(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::Container(one)) => id_shown(&one.id),
        _ => String::new(),
    }
}

fn id_shown(id: &str) -> String {
    harmless(&id.chars().take(ID_SHOWN).collect::<String>())
}

fn pod_namespace(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::Pod(pod)) => harmless(&pod.pod_namespace),
        _ => String::new(),
    }
}

fn pod(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::Pod(pod)) => harmless(&pod.name),
        _ => String::new(),
    }
}

fn process(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::Process(one)) => program(one),
        _ => String::new(),
    }
}

fn executable(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::Process(one)) if one.program.starts_with('/') => harmless(&one.program),
        _ => String::new(),
    }
}

fn place(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::Process(one)) if one.container.is_empty() => harmless(&one.unit),
        Some(Subject::Process(one)) => harmless(&one.container),
        _ => String::new(),
    }
}

fn user(row: &TopAgentRow) -> String {
    match subject(row) {
        Some(Subject::User(user)) => harmless(&user.name),
        _ => String::new(),
    }
}

fn of_flow(row: &TopAgentRow, cell: fn(&flowtilla_proto::wire::session::TopFlow) -> String) -> String {
    match subject(row) {
        Some(Subject::Flow(flow)) => cell(flow),
        _ => String::new(),
    }
}

fn client(row: &TopAgentRow) -> String {
    of_flow(row, |flow| flow.client.as_ref().map(end).unwrap_or_default())
}

fn server(row: &TopAgentRow) -> String {
    of_flow(row, |flow| flow.server.as_ref().map(end).unwrap_or_default())
}

/// `10.0.0.5:43210 curl`.
fn end(end: &TopFlowEnd) -> String {
    let port = u16::try_from(end.port).unwrap_or_default();
    let socket = address(end).map(|address| SocketAddr::new(address, port).to_string());
    let program = end.process.as_ref().map(program);
    let words: Vec<String> = socket.into_iter().chain(program).collect();
    words.join(" ")
}

/// The executable's name without its folder, or the command name.
fn program(one: &TopProcess) -> String {
    let name = match one.program.starts_with('/') {
        true => one.program.rsplit('/').next().unwrap_or_default(),
        false => &one.program,
    };
    harmless(name)
}
