//! What is in force and what is on the disk, wherever it ends.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flowtilla_agent_core::session::{Digest, ShortIds, Version};
use prost::Message as _;

use super::*;

/// What stands for the agent: keeps what is in force, and may hang, refuse, or lose its disk.
#[derive(Clone, Default)]
struct StandIn {
    in_force: Arc<Mutex<Option<u64>>>,
    hangs_at: Option<u64>,
    refuses: Vec<u64>,
    /// Removed while this revision is applied.
    loses: Option<(u64, PathBuf)>,
    /// A source id stops what is in force.
    stops: bool,
}

impl StandIn {
    fn in_force(&self) -> Option<u64> {
        *self.in_force.lock().expect("nobody panicked")
    }
}

impl Governed for StandIn {
    async fn apply(&mut self, assignment: &Assignment) -> Result<wire::Effective, Fault> {
        let revision = assignment.revision;
        if self.refuses.contains(&revision) {
            // Something of it was done.
            *self.in_force.lock().expect("nobody panicked") = None;
            return Err(Fault {
                section: Section::Capture,
                path: String::new(),
                reason: "refused".into(),
            });
        }
        *self.in_force.lock().expect("nobody panicked") = (revision > 0).then_some(revision);
        if self.hangs_at == Some(revision) {
            std::future::pending::<()>().await;
        }
        if let Some((at, path)) = &self.loses
            && *at == revision
        {
            std::fs::remove_file(path).expect("a file");
        }
        Ok(wire::Effective::default())
    }

    async fn use_short_ids(&mut self, _: ShortIds) -> Result<(), String> {
        Ok(())
    }

    async fn use_source_id(&mut self, _: SourceId) -> Result<(), String> {
        if !self.stops {
            return Ok(());
        }
        *self.in_force.lock().expect("nobody panicked") = None;
        Err("the spool cannot be read".into())
    }
}

fn adoption(revision: u64) -> Adoption {
    let content = wire::Assignment {
        policy: Some(flowtilla_proto::wire::Policy::default()),
        collectors: Vec::new(),
        revision,
        drain: false,
    }
    .encode_to_vec();
    Adoption {
        held: Held {
            version: Version {
                epoch: 1,
                number: revision,
            },
            digest: Digest::of(&content),
        },
        assignment: Assignment::parse(&content).expect("sound"),
        content,
        traceparent: String::new(),
    }
}

/// An agent that starts on this directory; what it held is in force.
async fn started(directory: &std::path::Path, governed: StandIn) -> Adopter<StandIn> {
    let store = HeldStore(Some(directory.to_owned()));
    let kept = store.load().expect("readable");
    let mut adopter = Adopter {
        governed,
        store,
        held: kept.map(|kept| (kept.held, Assignment::parse(&kept.content))),
        in_force: false,
        news: watch::Sender::new(News::default()),
    };
    adopter.restore().await.expect("it can be restored");
    adopter
}

fn held(adopter: &Adopter<StandIn>) -> Option<u64> {
    adopter.held.as_ref().map(|(held, _)| held.version.number)
}

#[tokio::test]
async fn whoever_dies_while_it_changes_has_the_former_in_force_at_the_next_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut adopter = started(directory.path(), StandIn::default()).await;
    adopter.adopt(adoption(1)).await.expect("applied");
    drop(adopter);
    let hangs = StandIn {
        hangs_at: Some(2),
        ..StandIn::default()
    };
    let mut adopter = started(directory.path(), hangs).await;
    let change = tokio::time::timeout(Duration::from_millis(200), adopter.adopt(adoption(2)));
    assert!(change.await.is_err(), "it hangs while it is applied");
    assert_eq!(adopter.governed.in_force(), Some(2), "it was half way");
    assert!(directory.path().join("held.next").exists());
    drop(adopter); // As a kill would.
    let mut again = started(directory.path(), StandIn::default()).await;
    assert_eq!((again.governed.in_force(), held(&again)), (Some(1), Some(1)));
    again.adopt(adoption(2)).await.expect("applied");
    drop(again);
    let last = started(directory.path(), StandIn::default()).await;
    assert_eq!((last.governed.in_force(), held(&last)), (Some(2), Some(2)));
}

#[tokio::test]
async fn what_is_refused_or_cannot_be_kept_leaves_the_former_in_force_and_held() {
    let directory = tempfile::tempdir().expect("a directory");
    let stand_in = StandIn {
        refuses: vec![2],
        loses: Some((3, directory.path().join("held.next"))),
        ..StandIn::default()
    };
    let mut adopter = started(directory.path(), stand_in).await;
    assert!(adopter.adopt(adoption(2)).await.is_err());
    assert_eq!(
        (adopter.governed.in_force(), held(&adopter), adopter.in_force),
        (None, None, false)
    );
    adopter.adopt(adoption(1)).await.expect("applied");
    for (revision, section) in [(2, Section::Capture), (3, Section::Persist)] {
        let fault = adopter.adopt(adoption(revision)).await.expect_err("not in force");
        assert_eq!(fault.section, section);
        assert_eq!(
            (adopter.governed.in_force(), held(&adopter), adopter.in_force),
            (Some(1), Some(1), true)
        );
        let kept = adopter.store.load().expect("readable").expect("held");
        assert_eq!(kept.held.version.number, 1);
    }
    adopter.governed.refuses.push(1);
    assert!(adopter.adopt(adoption(2)).await.is_err());
    assert_eq!(
        (held(&adopter), adopter.in_force),
        (Some(1), false),
        "going back failed too: it says so"
    );
    adopter.governed.refuses.clear();
    adopter.restore().await.expect("tried again");
    assert_eq!((adopter.governed.in_force(), adopter.in_force), (Some(1), true));
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_is_told_before_anything_is_touched() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut adopter = started(directory.path(), StandIn::default()).await;
    adopter.adopt(adoption(1)).await.expect("applied");
    // A directory in the file's place: root may write to anything else.
    std::fs::create_dir(directory.path().join("held.next.tmp")).expect("a directory");
    let fault = adopter.adopt(adoption(2)).await.expect_err("not kept");
    assert_eq!(fault.section, Section::Persist);
    assert_eq!((adopter.governed.in_force(), held(&adopter)), (Some(1), Some(1)));
}

#[tokio::test]
async fn what_a_source_id_has_stopped_is_put_in_force_again_or_told() {
    for refuses in [vec![], vec![1]] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut adopter = started(directory.path(), StandIn::default()).await;
        adopter.adopt(adoption(1)).await.expect("applied");
        adopter.governed.stops = true;
        adopter.governed.refuses.clone_from(&refuses);
        let in_force = Arc::clone(&adopter.governed.in_force);
        let (jobs, to_do) = mpsc::channel(1);
        let (report, mut reports) = mpsc::channel(1);
        let adopter = tokio::spawn(adopter.run(to_do, report));
        let id = SourceId::new(5).expect("a number");
        jobs.send(Job::SourceId(id)).await.expect("it works");
        drop(jobs);
        let told = reports.recv().await;
        adopter.await.expect("no panic");
        assert_eq!(
            matches!(told, Some(Report::NotInForce)),
            !refuses.is_empty(),
            "{told:?}"
        );
        let now = *in_force.lock().expect("nobody panicked");
        assert_eq!(now, refuses.is_empty().then_some(1));
    }
}
