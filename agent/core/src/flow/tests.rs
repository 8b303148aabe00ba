//! Claims about the table, one a test; generated histories stand in `history`, figures in `cost`.

mod cost;
mod history;
mod life;
mod pairs;
mod restart;
mod restore;
mod tcp;
mod udp;
pub(super) mod world;
