//! `agentctl diff`: files against what the controller has. Exit code 0 when they are the same, 1 when they differ.
//!
//! Both sides are written by the same hand, so only what differs is shown, not how it was written.

use std::path::PathBuf;

use clap::Args;
use flowtilla_proto::wire::fleet::{Object, ObjectsRequest};
use similar::TextDiff;

use super::{deploy, print};
use crate::client::Reach;
use crate::document::{name_of, render};
use crate::exit::Exit;

/// Lines that are shown around a difference.
const CONTEXT_LINES: usize = 3;

#[derive(Args, Clone, Debug)]
pub(crate) struct DiffArgs {
    /// File, directory (its *.yaml and *.yml), or - for stdin. May be repeated.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub(crate) file: Vec<PathBuf>,
    /// Counts as a difference what the controller has and the files have not.
    #[arg(long)]
    pub(crate) prune: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// Files that are refused, or a controller that is not reached.
pub(crate) async fn run(args: DiffArgs) -> anyhow::Result<Exit> {
    let (client, documents, held) = deploy::prepare(&args.file, args.prune, &args.reach).await?;
    drop(client);
    let text = difference(&held.objects, &documents.objects(), args.prune);
    print(&text)?;
    Ok(if text.is_empty() { Exit::Done } else { Exit::Failed })
}

/// What `held` would become.
pub(crate) fn difference(held: &[Object], wanted: &[Object], prune: bool) -> String {
    let mut text = String::new();
    let find = |list: &[Object], object: &Object| {
        list.iter()
            .find(|other| name_of(other) == name_of(object))
            .cloned()
    };
    for object in wanted {
        text += &one(find(held, object).as_ref(), Some(object));
    }
    for object in held.iter().filter(|_| prune) {
        if find(wanted, object).is_none() {
            text += &one(Some(object), None);
        }
    }
    text
}

/// A unified difference; empty when there is none.
pub(crate) fn one(before: Option<&Object>, after: Option<&Object>) -> String {
    let (from, to) = (render::yaml(before), render::yaml(after));
    let name = name_of(after.or(before).unwrap_or(&Object::default()));
    let title = |there: bool, whose: &str| match there {
        true => format!("{whose}/{}/{}", name.kind, name.name),
        false => "/dev/null".to_owned(),
    };
    TextDiff::from_lines(&from, &to)
        .unified_diff()
        .context_radius(CONTEXT_LINES)
        .header(
            &title(before.is_some(), "controller"),
            &title(after.is_some(), "files"),
        )
        .to_string()
}

/// The request that [`deploy::prepare`] asks the controller with.
pub(crate) const NEWEST: ObjectsRequest = ObjectsRequest { revision: 0 };
