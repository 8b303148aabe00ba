//! Worlds, traffic, collectors and product runs for end-to-end tests, and the one test command.
//!
//! Tests say what must be true; this crate makes it happen on the real thing: network namespaces as hosts, processes
//! that tell the truth about their own traffic, Debian's libzmq and nDPI as the receiving side, the built `agentctl`
//! as the product. Nothing here touches a network that it did not make, nor ends a process that it did not start.
//! Leaves no trace: what a crashed run left is swept by the next.

pub mod belongings;
pub mod bpf;
pub mod cable;
pub mod cgroup;
pub mod collector;
pub mod debian;
pub mod disk;
pub mod flaky;
pub mod fleet;
pub mod hosts;
pub mod in_process;
pub mod need;
pub mod netns;
pub mod notices;
pub mod ntopng;
pub mod otlp;
pub mod package;
pub mod pods;
pub mod process;
pub mod product;
pub mod scene;
pub mod skew;
pub mod soak;
pub mod swarm;
pub mod traffic;
pub mod wait;
pub mod wire;
pub mod workers;
pub mod world;
