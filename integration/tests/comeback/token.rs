//! An agent that the controller will have none of takes a new token from its file, without a restart.

use integration::fleet::{Controller, Hub, Member};
use integration::need;
use integration::wait::{self, PATIENCE};

use super::{Context, Result, ensure};

#[test]
fn revoked_agent_takes_a_new_token_from_its_file_while_it_runs() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let hub = Hub::build(1)?;
    let controller = Controller::start()?;
    let mut member = Member::join(&controller, &hub, 0, &[])?;
    let agent = controller.agent(&member.host)?.context("it has joined")?;
    let former = agent["id"].as_str().context("a name")?.to_owned();
    controller.must(&["revoke", "agent", &former])?;
    wait::until(PATIENCE, "a word about the remedy", || {
        let words = member.last_words();
        Ok((words.contains("agentctl token create") && words.contains("none of this agent")).then_some(()))
    })
    .with_context(|| member.last_words())?;
    let label = format!("host={}", member.host);
    let token = controller.must(&["token", "create", "--label", &label])?;
    let state = member.state();
    let file = state.parent().context("a folder")?.join("token");
    std::fs::write(&file, token)?;
    let next = wait::until(2 * PATIENCE, "an agent that has joined anew", || {
        let agents = controller.agents()?;
        let joined = agents
            .iter()
            .find(|agent| agent["id"] != former.as_str() && agent["state"] == "connected");
        Ok(joined.map(|agent| agent["id"].clone()))
    })
    .with_context(|| member.last_words())?;
    ensure!(next != former.as_str());
    member.stop()
}
