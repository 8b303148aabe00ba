//! Promise: a host speaks for its own agent and for no other. Whatever it shows, nothing is done to another host's agent by its word,
//! and none vouches for it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use integration::fleet::binary;

use super::{Scene, patch, told, write_program};

const OURS: &str = env!("CARGO_PKG_VERSION");
const OLDER: &str = "0.0.8";

#[test]
fn a_host_that_shows_anothers_identity_has_nothing_done_to_it_and_one_that_is_older_proves_its_own_once_it_can()
-> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.boot(&[0, 1])?;
    let older = scene.agent_without_proof()?;
    let older = older.to_string_lossy();
    told(&scene.deploy(&["--limit", "h0"])?, 0, &["h0: done: install"])?;
    let output = scene.deploy(&["--limit", "h1", "--agent-binary", &older])?;
    told(&output, 0, &[&format!("h1: done: install {OLDER}")])?;
    let victim = scene.id(1)?;
    // By a user who is not root, whom sudo lets become it: so the agent proves who it is as a third one.
    let seen = scene.site.ssh(1, "journalctl _COMM=sudo -o cat")?;
    ensure!(
        seen.lines().any(|line| line.contains("op : ")
            && line.contains("USER=root")
            && line.contains("flowtilla probe")),
        "{seen}"
    );

    // Nothing but its word is there, and nothing that could give more.
    let output = scene.deploy(&["--limit", "h1", "--agent-binary", &older])?;
    let claim = format!("it says that it is {victim}, and does not prove it");
    let unproven = format!("h1: FAILED at prove: {claim}: its agent is older, and cannot; ");
    told(
        &output,
        1,
        &[&unproven, &format!("agentctl revoke agent {victim}")],
    )?;
    let both = ["--limit", "h0", "--limit", "h1"];
    let output = scene.deploy(&[&both[..], &["--soak", "0s"]].concat())?;
    told(
        &output,
        0,
        &[
            "h0: nothing to do",
            &format!("h1: done: upgrade {OLDER} to {OURS} ({victim})"),
        ],
    )?;

    // What h1 has answered to another question, on h0, by whoever is root there.
    let answer = scene.site.ssh(
        1,
        "printf 'deploy\\nh1\\n0' | runuser -u flowtilla -- flowtilla-agent prove --state /var/lib/flowtilla",
    )?;
    ensure!(
        answer.contains("BEGIN FLOWTILLA PROOF") && !answer.contains("PRIVATE"),
        "{answer}"
    );
    let path = scene.folder.path().join("answer.pem");
    std::fs::write(&path, &answer)?;
    scene.site.put(0, &path, "/usr/local/bin/answer.pem")?;
    scene.site.ssh(
        0,
        "set -e; cd /usr/local/bin; mv flowtilla-agent real; \
         printf '#!/bin/sh\\n[ $1 != prove ] || exec cat /usr/local/bin/answer.pem\\nexec /usr/local/bin/real \"$@\"\\n' >flowtilla-agent; \
         chmod 755 flowtilla-agent",
    )?;
    let refuted = format!("{claim}: the signature is not by the SVID's key, or not for this question");
    let output = scene.deploy(&["--limit", "h0"])?;
    told(&output, 1, &[&format!("h0: FAILED at prove: {refuted}")])?;
    let output = scene.ctl(&["agents", "remove", "h0", "--drain=5s"])?;
    told(
        &output,
        1,
        &["h0: FAILED at drain: ", &format!("so {victim} is not drained")],
    )?;
    let output = scene.ctl(&["agents", "remove", "h0"])?;
    told(
        &output,
        1,
        &[
            &format!(
                "h0: FAILED at prove: the agent is gone; it said that it was {victim}, and did not prove it"
            ),
            &format!("so {victim} counts still; if {victim} was this host's: agentctl revoke agent {victim}"),
        ],
    )?;
    let agent = scene.agent(1)?;
    ensure!(
        agent["id"] == *victim && agent["state"] == "connected" && agent["drain"].is_null(),
        "{agent:#}"
    );
    scene.expect_flow(1)?;

    let output = scene.deploy(&both)?;
    told(
        &output,
        0,
        &["h0: done: install", "enrol it (h0-", "h1: nothing to do"],
    )?;
    let output = scene.ctl(&["agents", "remove", "h1"])?;
    told(&output, 0, &[&format!("h1: done: removed ({victim})")])
}

impl Scene {
    fn id(&self, n: u8) -> Result<String> {
        let agent = self.agent(n)?;
        Ok(agent["id"].as_str().context("an id")?.to_owned())
    }

    /// The agent's program as of a version before it could prove who it is.
    fn agent_without_proof(&self) -> Result<PathBuf> {
        let mut octets = std::fs::read(binary("flowtilla-agent")?)?;
        patch(&mut octets, OURS.as_bytes(), OLDER.as_bytes());
        patch(&mut octets, b"prove", b"prive");
        let path = self.folder.path().join("without-proof");
        write_program(&path, &octets)?;
        Ok(path)
    }
}
