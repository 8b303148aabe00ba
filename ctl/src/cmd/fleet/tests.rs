//! The commands against a controller's calls over TLS, and what they print, pinned.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock;
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::wire::fleet::*;
use flowtilla_proto::wire::session as told;
use tokio::net::TcpListener;

use self::server::{Script, Scripted};
use super::deploy::{self, DeployArgs, Follow};
use super::get::{List, What};
use super::login::{LoginArgs, login};
use super::watch::Picture;
use super::*;
use crate::client::contexts::Home;
use crate::client::{Client, Reach};
use crate::cmd::up::samples::assert_pinned;
use crate::document::{Documents, Kind, Text};
use crate::exit::{FilesError, UsageError};

mod deploying;
mod login;
mod printed;
mod real;
mod server;
mod top;

const HOUR_NS: u64 = 3_600_000_000_000;
/// 2026-03-01T12:00:00Z.
const NOW: WallTime = WallTime(1_772_366_400_000_000_000);

/// A home for contexts, and a file with a token.
struct Desk {
    directory: tempfile::TempDir,
    home: Home,
}

impl Desk {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.yaml");
        let home = Home::by(|name| (name == "FLOWTILLA_CONFIG").then(|| config.clone().into()));
        Self {
            directory,
            home: home.expect("it is set"),
        }
    }

    fn reach(&self) -> Reach {
        Reach {
            context: None,
            home: Some(self.home.clone()),
        }
    }

    async fn login(&self, controller: &str, token: &str) -> anyhow::Result<String> {
        self.login_with(controller, token, None, false).await
    }

    async fn login_with(
        &self,
        controller: &str,
        token: &str,
        context: Option<&str>,
        replace: bool,
    ) -> anyhow::Result<String> {
        let args = LoginArgs {
            controller: controller.to_owned(),
            token_file: "-".into(),
            context: context.map(str::to_owned),
            replace,
        };
        login(&self.home, &args, token.as_bytes()).await
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("written");
        path
    }

    /// Where a file of a context is.
    fn kept(&self, name: &str) -> PathBuf {
        self.directory.path().join("config.yaml.d").join(name)
    }

    fn identity(&self) -> Vec<u8> {
        fs::read(self.kept("fleet.example/identity.pem")).expect("there is one")
    }
}

/// A controller, and somebody who has logged in to it.
async fn logged_in() -> (Scripted, Desk) {
    let (controller, desk) = (Scripted::start().await, Desk::new());
    let token = controller.token(2).expose();
    let said = desk
        .login(&controller.address.to_string(), &token)
        .await
        .expect("it lets in");
    assert!(
        said.contains("as spiffe://fleet.example/operator/ann\ncontext fleet.example is"),
        "{said}"
    );
    (controller, desk)
}

fn lines_of(error: &anyhow::Error) -> Vec<String> {
    if let Some(files) = error.downcast_ref::<FilesError>() {
        return files.0.clone();
    }
    match error.downcast_ref::<UsageError>() {
        Some(usage) => usage.0.clone(),
        None => vec![format!("{error:#}")],
    }
}

fn objects() -> Vec<Object> {
    let text = Text {
        name: "fleet.yaml".to_owned(),
        content: include_str!("../../../tests/fleet/fleet.yaml").to_owned(),
    };
    Documents::read(&[text]).0.objects()
}

fn deploying(desk: &Desk, files: Vec<PathBuf>) -> DeployArgs {
    DeployArgs {
        file: files,
        dry_run: false,
        prune: false,
        follow: Follow::default(),
        hosts: crate::hosts::HostArgs::default(),
        reach: desk.reach(),
    }
}
