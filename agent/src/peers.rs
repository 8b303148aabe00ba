//! Where the session talks to the meter about other agents.
//!
//! What goes in: `flowtilla_agent_core::fleet`, head. Lists and the state of the stream never get lost; questions and answers
//! may, when the meter is busy: they are asked again, or go without.

use tokio::sync::mpsc;

pub use crate::meter::peers::{FLEET_OUT_MAX, FleetIn, FleetOut};
use crate::meter::{Command, Commands};

/// Both directions.
pub struct PeerLink {
    commands: Commands,
    /// What the meter asks and answers.
    pub out: mpsc::Receiver<FleetOut>,
}

impl PeerLink {
    pub(crate) fn new(commands: Commands, out: mpsc::Receiver<FleetOut>) -> Self {
        Self { commands, out }
    }

    /// Tells the meter. Waits, for less than a turn as a rule, only with what must not get lost; `false`: it did not get
    /// there.
    pub fn tell(&self, told: FleetIn) -> bool {
        let may_get_lost = matches!(told, FleetIn::Question(_) | FleetIn::Answer(_));
        let command = Command::Fleet(told);
        if may_get_lost {
            self.commands.try_send(command).is_ok()
        } else {
            self.commands.send(command).is_ok()
        }
    }
}
