//! Notices that two processes use one agent's identity: a host was copied with its agent's state.
//!
//! Each process draws an instance at its start and tells it in its hello. An instance that comes back after another one has been
//! heard lives beside it; an agent that was only started again does not come back as the one before. In memory only.

use super::heard::Hello;

/// How long after the last turn a conflict is told, in milliseconds.
///
/// Copies come back after ten minutes at most. Half of it still sees each of them; double it, and operators read for two hours of
/// what they have mended.
const TOLD_FOR_MS: i64 = 3_600_000;

/// Who has spoken with one identity.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    now: Instance,
    before: Instance,
    /// Turns that were taken.
    pub(super) taken: u64,
    last_ms: i64,
    /// One sentence with its remedy; empty: there is no conflict.
    pub(super) conflict: String,
}

/// A process, and where it runs.
#[derive(Clone, Debug, Default)]
struct Instance {
    /// Empty: it did not tell.
    id: Vec<u8>,
    place: String,
}

impl Turns {
    /// A hello is heard; whether it is of a process that lives beside the one before.
    pub(super) fn handle_hello(&mut self, hello: &Hello, now_ms: i64) -> bool {
        let instance = Instance {
            id: hello.said.instance.clone(),
            place: place(hello),
        };
        if instance.id == self.now.id {
            self.now = instance;
            return false;
        }
        let back = !instance.id.is_empty() && instance.id == self.before.id;
        self.before = std::mem::replace(&mut self.now, instance);
        if back {
            self.taken += 1;
            self.last_ms = now_ms;
            self.conflict = format!(
                "two agents use this identity in turns, at {} and at {}: one is a copy; stop it, remove its state directory and \
                 enrol it with a token of its own",
                self.before.place, self.now.place
            );
        }
        back
    }

    /// Time has passed, milliseconds since the epoch.
    pub(super) fn handle_timeout(&mut self, now_ms: i64) {
        if !self.conflict.is_empty() && now_ms.saturating_sub(self.last_ms) >= TOLD_FOR_MS {
            self.conflict.clear();
        }
    }
}

/// Where an agent runs, for people.
pub(super) fn place(hello: &Hello) -> String {
    let name = match hello.said.host_name.as_str() {
        "" => "a host without a name",
        name => name,
    };
    match hello.addresses.first() {
        Some(address) => format!("{name} ({address})"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests::{from_agent, hello_wire};
    use flowtilla_proto::wire::session::{Hello as Said, from_agent::Body};

    fn hello(instance: &[u8]) -> Hello {
        let said = Said {
            instance: instance.to_vec(),
            host_name: format!("host{}", instance.len()),
            ..hello_wire(1)
        };
        Hello::parse(from_agent(Body::Hello(said))).expect("a hello")
    }

    #[test]
    fn processes_that_follow_each_other_are_no_copies() {
        let mut turns = Turns::default();
        for instance in [&b"a"[..], b"a", b"b", b"b", b"c", b"", b"", b"d", b"", b"e"] {
            assert!(!turns.handle_hello(&hello(instance), 0), "{instance:?}");
        }
        assert_eq!(turns.conflict, "");
    }

    #[test]
    fn a_process_that_comes_back_after_another_one_is_a_copy_and_is_told_for_a_while() {
        let mut turns = Turns::default();
        assert!(!turns.handle_hello(&hello(b"a"), 0));
        assert!(!turns.handle_hello(&hello(b"bb"), 1));
        assert!(turns.handle_hello(&hello(b"a"), 2));
        assert!(
            turns.conflict.contains("at host2 and at host1"),
            "{}",
            turns.conflict
        );
        assert!(turns.handle_hello(&hello(b"bb"), 3));
        turns.handle_timeout(TOLD_FOR_MS);
        assert_ne!(turns.conflict, "");
        turns.handle_timeout(TOLD_FOR_MS + 3);
        assert_eq!(turns.conflict, "");
    }
}
