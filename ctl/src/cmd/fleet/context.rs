//! `agentctl context`: the controllers that are known here.

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::{Output, print, table};
use crate::client::contexts::Home;
use crate::client::identity;
use crate::exit::{Exit, UsageError};
use crate::output::{harmless, word};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Shows them; the current one has a star.
    List,
    /// Makes one the current one.
    Use(NameArgs),
    /// Takes one away, its key and SVID included. The controller still knows the operator: see revoke operator.
    Delete(NameArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct NameArgs {
    /// Name of the context.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Runs the command.
///
/// # Errors
///
/// There is no such context, or the files cannot be read or written.
pub(crate) fn run(command: &ContextCommand) -> anyhow::Result<Exit> {
    print(&told(&Home::of_user()?, command)?)
}

/// What to print.
pub(crate) fn told(home: &Home, command: &ContextCommand) -> anyhow::Result<String> {
    let mut contexts = home.load()?;
    match command {
        ContextCommand::List => {
            let rows = contexts.contexts.iter().map(|(name, place)| {
                let star = if contexts.current.as_ref() == Some(name) {
                    "*"
                } else {
                    ""
                };
                vec![star.to_owned(), word(name), word(&place.controller)]
            });
            Ok(table(
                &["", "NAME", "CONTROLLER"],
                rows.collect(),
                &[],
                Output::Wide,
            ))
        }
        ContextCommand::Use(args) => {
            known(home, &args.name)?;
            contexts.current = Some(args.name.clone());
            home.store(&contexts)?;
            Ok(format!("context {} is the current one\n", args.name))
        }
        ContextCommand::Delete(args) => {
            known(home, &args.name)?;
            let place = contexts.contexts.remove(&args.name);
            contexts.current = contexts.current.filter(|current| *current != args.name);
            home.store(&contexts)?;
            if let Some(place) = place {
                let shown = harmless(&place.identity.to_string_lossy());
                identity::remove(&place.identity).with_context(|| format!("{shown} stays"))?;
            }
            Ok(format!("context {} is gone\n", args.name))
        }
    }
}

fn known(home: &Home, name: &str) -> anyhow::Result<()> {
    let place = home.context(Some(name)).map_err(|error| {
        let line = error.to_string().replace("--context: ", "NAME: ");
        anyhow::Error::new(UsageError(vec![line]))
    })?;
    drop(place);
    Ok(())
}
