//! Where the session talks to the meter about other agents.
//!
//! What goes in: `flowtilla_agent_core::fleet`, head. Lists and the state of the stream never get lost; questions and answers
//! may, when the meter is busy: they are asked again, or go without.

use std::io;
use std::sync::mpsc::TrySendError;

use tokio::sync::mpsc;

pub use crate::meter::peers::{FLEET_OUT_MAX, FleetIn, FleetOut};
use crate::meter::{Command, Commands};
use crate::run::broken::Watched;

/// What the session has told and the meter has not heard yet, at most.
///
/// Some seconds of questions. Half of it ends a stream when the meter has a long turn; double it, and what is heard is old.
const TOLD_MAX: usize = 4096;

/// Both directions, the meter's end.
pub struct PeerLink {
    commands: Commands,
    out: mpsc::Receiver<FleetOut>,
}

impl PeerLink {
    pub(crate) fn new(commands: Commands, out: mpsc::Receiver<FleetOut>) -> Self {
        Self { commands, out }
    }
}

/// Both directions, the session's end.
#[derive(Debug)]
pub struct Joined {
    told: mpsc::Sender<FleetIn>,
    /// What the meter asks and answers.
    pub out: mpsc::Receiver<FleetOut>,
}

impl Joined {
    /// Puts a thread between the meter and the session: the meter hears in its own turns, and the session must not wait.
    /// Before capture is attached: the meter is told at once to expect a list.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn start(link: PeerLink, watched: Watched) -> io::Result<Self> {
        let (told, mut hears) = mpsc::channel(TOLD_MAX);
        let PeerLink { commands, out } = link;
        // With nothing attached the meter's commands are read at once.
        let _ = commands.send(Command::Fleet(Box::new(FleetIn::Expect)));
        std::thread::Builder::new().name("peers".into()).spawn(move || {
            let _watched = watched;
            while let Some(told) = hears.blocking_recv() {
                if !tell(&commands, told) {
                    return;
                }
            }
        })?;
        Ok(Self { told, out })
    }

    /// Tells the meter. `false`: something did not fit that must not get lost.
    pub fn tell(&self, told: FleetIn) -> bool {
        let may_get_lost = matches!(told, FleetIn::Question(_) | FleetIn::Answer(_));
        self.told.try_send(told).is_ok() || may_get_lost
    }
}

/// Waits, for less than a turn as a rule, only with what must not get lost; `false`: the meter has gone.
fn tell(commands: &Commands, told: FleetIn) -> bool {
    let may_get_lost = matches!(told, FleetIn::Question(_) | FleetIn::Answer(_));
    let command = Command::Fleet(Box::new(told));
    if may_get_lost {
        !matches!(commands.try_send(command), Err(TrySendError::Disconnected(_)))
    } else {
        commands.send(command).is_ok()
    }
}
