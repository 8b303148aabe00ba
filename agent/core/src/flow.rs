//! Ends flows and turns them into records. (The table comes with this module's own commit.)

pub mod record;
