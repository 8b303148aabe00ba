//! An agent's identity and session as the program has them, in front of something that only remembers what was applied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use flowtilla_agent::held::HeldStore;
use flowtilla_agent::identity::{self, Asker, Token};
use flowtilla_agent::session::{Facts, Governed, News, Parts, Ready, Vitals};
use flowtilla_agent_core::flow::record::BootId;
use flowtilla_agent_core::session::{Assignment, Fault, ShortIds};
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::wire::session as wire;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Remembers the revisions that were applied, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembers(Arc<Mutex<Vec<u64>>>);

impl Remembers {
    pub(crate) fn applied(&self) -> Vec<u64> {
        self.0.lock().expect("nobody panicked").clone()
    }
}

impl Governed for Remembers {
    async fn apply(&mut self, assignment: &Assignment) -> Result<wire::Effective, Fault> {
        self.0.lock().expect("nobody panicked").push(assignment.revision);
        Ok(wire::Effective::default())
    }

    async fn use_short_ids(&mut self, _: ShortIds) -> Result<(), String> {
        Ok(())
    }

    async fn use_source_id(&mut self, _: SourceId) -> Result<(), String> {
        Ok(())
    }
}

/// An agent that lives: what it held is in force first, then it finds its identity, then it talks to the controller.
pub(crate) struct Host {
    pub(crate) remembers: Remembers,
    pub(crate) news: watch::Receiver<News>,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Host {
    /// `instance`: which process it is.
    pub(crate) async fn start(state: &Path, token: Option<Token>, asker: &Asker, instance: u64) -> Self {
        let remembers = Remembers::default();
        let facts = Facts {
            version: "test".into(),
            host_name: format!("host-{instance}"),
            kernel: "6".into(),
            operating_system: "Linux".into(),
            source_id: SourceId::from_hash(7),
            labels: BTreeMap::new(),
            boot: BootId([3; 16]),
            scope: String::new(),
            instance,
            build: None,
        };
        let vitals = Vitals {
            health: Box::new(wire::Health::default),
            addresses: Box::new(Vec::new),
            top: Box::new(|_| wire::TopAnswer::default()),
        };
        let ready = Ready::restore(Parts {
            governed: remembers.clone(),
            vitals,
            facts,
            store: HeldStore(Some(state.to_owned())),
            peers: None,
            seed: instance,
        })
        .await;
        let (news, stop) = (ready.news(), CancellationToken::new());
        let (place, asker, ended) = (place(state), asker.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let tell = ready.teller();
            let settled = identity::settle(Some(place), token.as_ref(), &asker, &ended, &tell).await;
            let credentials = match settled {
                Err(identity::SettleError::Stopped) => return Ok(()),
                settled => settled?,
            };
            ready.run(asker.controller, Arc::new(credentials), ended).await;
            Ok(())
        });
        Self {
            remembers,
            news,
            stop,
            task,
        }
    }

    pub(crate) async fn until(
        &mut self,
        what: &str,
        within: Duration,
        is: impl FnMut(&News) -> bool,
    ) -> Result<News> {
        let waited = tokio::time::timeout(within, self.news.wait_for(is)).await;
        let waited = waited.map(|news| news.map(|news| news.clone()));
        waited
            .with_context(|| format!("not in time: {what}; {:?}", *self.news.borrow()))?
            .with_context(|| format!("the agent has ended before: {what}"))
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await?
    }
}

/// Where the identity of an agent with this state is.
pub(crate) fn place(state: &Path) -> PathBuf {
    state.join("identity")
}
