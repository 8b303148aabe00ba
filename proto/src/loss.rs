//! What it means that something was dropped at a place, which travels by its name.
//!
//! One list for whoever judges: the command that says whether something is lost, and the gates of a rollout.

/// What became of what was dropped at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It is lost.
    Lost,
    /// It was to be left out: a policy says so, or another agent tells it.
    OnPurpose,
    /// It was a hint of what is found in another way.
    FoundAgain,
    /// It is no flow that anybody could be told of, and whoever is outside can send any number of it.
    NoFlow,
}

const PLACES: [(&str, Dropped); 5] = [
    ("Withheld", Dropped::OnPurpose),
    ("ReportedByPeer", Dropped::OnPurpose),
    ("FlowRingFull", Dropped::FoundAgain),
    ("NameRingFull", Dropped::FoundAgain),
    ("NoSourcePort", Dropped::NoFlow),
];

impl Dropped {
    /// At the place of this name. At one that this version does not know it is lost: better too much than too little.
    #[must_use]
    pub fn at(place: &str) -> Self {
        let known = PLACES.iter().find(|(name, _)| name.eq_ignore_ascii_case(place));
        known.map_or(Self::Lost, |(_, dropped)| *dropped)
    }
}
