//! The commands that ask a controller, one module each, and how they print.
//!
//! What is asked for goes to stdout; whose view it is, and everything beside it, to stderr. Everything that a host or a person
//! may have named is made harmless before it is printed.

use std::io::{self, Write as _};

use clap::ValueEnum;

use super::buffer;
use crate::document::render::{Plain, to_yaml};
use crate::exit::Exit;
use crate::output::{cut, grid, harmless_json, width};

pub(crate) mod admit;
pub(crate) mod ca;
pub(crate) mod context;
pub(crate) mod delete;
pub(crate) mod deploy;
pub(crate) mod describe;
pub(crate) mod diff;
pub(crate) mod drain;
pub(crate) mod get;
pub(crate) mod history;
pub(crate) mod login;
pub(crate) mod loss;
pub(crate) mod rollout;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod watch;

/// Columns of a table. What is wider is for `-o wide`.
const COLUMNS: usize = 80;
/// A column is not made narrower than this.
const COLUMN_MIN: usize = 6;
/// The same of the first column: what it names is what other commands are given, ids of tokens whole.
const NAME_MIN: usize = 20;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table of at most 80 columns.
    #[default]
    Table,
    /// A table with all columns, nothing cut.
    Wide,
    /// One JSON value; of lists an array.
    Json,
    /// YAML; of policies and collectors documents that deploy takes.
    Yaml,
    /// Names alone, one a line.
    Name,
}

/// Text or JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Brief {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Rows under a head, as wide as `output` allows. `right`: columns of numbers.
pub(crate) fn table(head: &[&str], mut rows: Vec<Vec<String>>, right: &[usize], output: Output) -> String {
    rows.insert(0, head.iter().map(|&cell| cell.to_owned()).collect());
    if output != Output::Wide {
        fit(&mut rows);
    }
    grid(&rows, right).into_iter().map(|line| line + "\n").collect()
}

/// Cuts the widest columns until a row fits.
fn fit(rows: &mut [Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let widest = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| width(cell))
            .max()
    };
    let mut widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
    let between = columns.saturating_sub(1);
    while widths.iter().sum::<usize>() + between > COLUMNS {
        let least = |column| if column == 0 { NAME_MIN } else { COLUMN_MIN };
        let wide = widths.iter_mut().enumerate();
        let Some((_, widest)) = wide
            .filter(|(column, width)| **width > least(*column))
            .max_by_key(|(_, width)| **width)
        else {
            break;
        };
        *widest -= 1;
    }
    for row in rows {
        for (cell, width) in row.iter_mut().zip(&widths) {
            *cell = cut(cell, *width);
        }
    }
}

/// One JSON value, a line.
pub(crate) fn json(value: &Plain) -> String {
    harmless_json(serde_json::to_string(value).expect("texts and numbers are JSON")) + "\n"
}

/// Values as JSON or YAML; `None`: `output` is a table's or names'.
pub(crate) fn values(values: Vec<Plain>, output: Output) -> Option<String> {
    match output {
        Output::Json => Some(json(&Plain::List(values))),
        Output::Yaml => Some(yaml_shown(&Plain::List(values))),
        Output::Table | Output::Wide | Output::Name => None,
    }
}

/// YAML that a terminal does not obey: what YAML would leave as it is (marks of direction, invisible characters) is told in JSON,
/// which is YAML too, and has escapes for all.
pub(crate) fn yaml_shown(value: &Plain) -> String {
    let text = to_yaml(value);
    let plain = |line: &str| {
        line.chars()
            .all(|c| matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1)
    };
    match text.lines().all(plain) {
        true => text,
        false => json(value),
    }
}

/// Prints to stdout; a reader that has gone is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<Exit> {
    let written = buffer::told(io::stdout().write_all(text.as_bytes()));
    buffer::unless_gone(written.map(|()| Exit::Done))
}

#[cfg(test)]
mod tests;
