//! `agentctl doctor`: what the agent's own library finds out about this host. See [`flowtilla_agent::doctor`].

use std::io;

use flowtilla_agent::doctor;
pub(crate) use flowtilla_agent::doctor::DoctorArgs;

use super::buffer::{told, unless_gone};
use crate::exit::Exit;

/// Looks, and prints.
///
/// # Errors
///
/// stdout cannot be written.
pub(crate) async fn run(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let mut text = Vec::new();
    let captures = doctor::run(args, &mut text).await?;
    let exit = match captures {
        true => Exit::Done,
        false => Exit::Failed,
    };
    let written = told(io::Write::write_all(&mut io::stdout(), &text));
    unless_gone(written.map(|()| exit))
}
