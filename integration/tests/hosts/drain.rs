//! Promise: a host can go without a loss. Its agent captures nothing any more, sends what waits, and says when that is done, whatever
//! restarts meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::wait;

use super::{Scene, told};

/// A heartbeat comes each ten seconds, and two are needed.
const TOLD_WITHIN: Duration = Duration::from_secs(90);

#[test]
fn a_drained_agent_has_sent_everything_stays_drained_and_goes_without_a_loss() -> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.boot(&[0])?;
    let output = scene.deploy(&["--limit", "h0", "--wait=120s"])?;
    told(&output, 0, &["h0: done: install"])?;
    scene.expect_flow(0)?;
    let agent = scene.agent(0)?;
    let id = agent["id"].as_str().context("an id")?.to_owned();
    told(&scene.ctl(&["agents", "drain", "nobody"])?, 1, &[])?;

    let output = scene.ctl(&["agents", "drain", &id, "--wait=90s"])?;
    told(
        &output,
        0,
        &[&format!("{id}: is to be drained"), &format!("{id}: drained")],
    )?;
    scene.expect_idle(&id)?;
    let before = scene.collector.flows()?.len();

    // The agent begins anew, and so does the controller: both know.
    scene.site.ssh(0, "systemctl restart flowtilla-agent")?;
    scene.controller.kill()?;
    scene.controller.come_back()?;
    wait::until(TOLD_WITHIN, "an agent that is drained still", || {
        Ok((scene.agent(0)?["drain"] == "drained").then_some(()))
    })?;
    scene.expect_idle(&id)?;
    let status = scene.controller.must(&["status"])?;
    ensure!(status.contains("1 agents are, or are to be"), "{status}");
    let after = scene.collector.flows()?.len();
    ensure!(after == before, "{} records of a drained agent", after - before);

    let output = scene.ctl(&["agents", "drain", &id, "--undo"])?;
    told(&output, 0, &[&format!("{id}: captures again")])?;
    scene.expect_flow(0)?;

    let output = scene.ctl(&["agents", "remove", "h0", "--drain=90s"])?;
    told(&output, 0, &[&format!("h0: done: removed ({id})")])?;
    told(&scene.ctl(&["loss"])?, 0, &[])
}

impl Scene {
    /// It captures nothing, and its collector has every record that it made.
    fn expect_idle(&self, id: &str) -> Result<()> {
        let agent = self.agent(0)?;
        ensure!(agent["id"] == *id && agent["drain"] == "drained", "{agent:#}");
        let health = &agent["health"];
        let collector = &health["collectors"][0];
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
        // What a list of members brought into doubt is told anew, as totals.
        let anew = number(&collector["dropped"]["ReportedByPeer"]);
        ensure!(
            health["capturing"] == false
                && collector["waiting"] == 0
                && number(&collector["made"]) == number(&collector["taken"]) + anew,
            "{agent:#}"
        );
        Ok(())
    }
}
