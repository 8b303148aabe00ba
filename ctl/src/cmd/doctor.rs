//! `agentctl doctor`: what the agent's own library finds out about this host, see [`flowtilla_agent::doctor`]; or what the agent's
//! program does about others, see [`hosts::doctor`].

use std::io;

use clap::Args;
use flowtilla_agent::doctor::{self, Output};

use super::buffer::{told, unless_gone};
use crate::exit::Exit;
use crate::hosts;

#[derive(Args, Clone, Debug)]
pub(crate) struct ExamineArgs {
    #[command(flatten)]
    pub(crate) here: doctor::DoctorArgs,
    #[command(flatten)]
    pub(crate) there: hosts::doctor::ThereArgs,
}

/// Looks, and prints.
///
/// # Errors
///
/// stdout cannot be written; of other hosts those of [`hosts::doctor::run`].
pub(crate) async fn run(args: &ExamineArgs) -> anyhow::Result<Exit> {
    if args.there.is_there()? {
        return hosts::doctor::run(&args.there, args.here.output == Output::Json).await;
    }
    let mut text = Vec::new();
    let captures = doctor::run(&args.here, &mut text).await?;
    let exit = match captures {
        true => Exit::Done,
        false => Exit::Failed,
    };
    let written = told(io::Write::write_all(&mut io::stdout(), &text));
    unless_gone(written.map(|()| exit))
}
