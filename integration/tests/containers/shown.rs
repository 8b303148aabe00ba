//! Promise: a real ntopng shows containers and pods by the names that their runtime gave them, and finds flows by them.

use integration::ntopng::{self, Ntopng};
use serde_json::Value;

use super::*;

/// Longest time until a page shows a name: ntopng's own sweeps, and the export before.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
/// A container by itself, and one of a pod, as the kubelet names and labels it.
const ALONE: &str = "web-front";
const IN_POD: &str = "k8s_nginx_web-0_shop_u-1_0";
const POD: [&str; 3] = [
    "io.kubernetes.pod.namespace=shop",
    "io.kubernetes.pod.name=web-0",
    "io.kubernetes.container.name=nginx",
];

#[test]
fn ntopng_shows_containers_and_pods_by_name_and_finds_their_flows() -> Result<()> {
    shown(ntopng::find(), &[], |ntopng, _| {
        for name in [ALONE, "shop/web-0/nginx"] {
            wait_for_row(ntopng, "containers", "column_container", name)?;
            wait_for_flows(name, || ntopng.flows(&format!("&container={name}")))?;
        }
        ensure!(ntopng.flows("&container=another")?.is_empty());
        Ok(())
    })
}

#[test]
fn ntopng_5_2_shows_containers_and_pods_by_name_and_finds_their_flows() -> Result<()> {
    let flags = ["--encoding", "nestedJson"];
    shown(ntopng::find_52(), &flags, |ntopng, ids| {
        let flows = |filter: &str| ntopng.rows(&format!("/lua/get_flows_data.lua?ifid=0{filter}"));
        let alone = wait_for_row(ntopng, "containers", "column_container", ALONE)?;
        ensure!(alone["column_key"] == ids[0][..12], "{alone}: {ids:?}");
        ensure!(alone["column_num_flows_as_client"] == 1, "{alone}");
        wait_for_row(ntopng, "containers", "column_container", "nginx")?;
        let pod = wait_for_row(ntopng, "pods", "column_pod", "web-0")?;
        ensure!(pod["column_num_flows_as_client"] == 1, "{pod}");
        for (filter, found) in [
            (format!("&container={}", &ids[0][..12]), 1),
            (format!("&container={}", &ids[1][..12]), 1),
            ("&container=000000000000".to_owned(), 0),
            ("&pod=web-0".to_owned(), 1),
            ("&pod=web-1".to_owned(), 0),
            // Whose name is known to the container alone.
            ("&username=0".to_owned(), 2),
            ("&username=nobody".to_owned(), 0),
            ("&pid_name=/bin/busybox".to_owned(), 2),
            ("&pid_name=/bin/bash".to_owned(), 0),
        ] {
            let rows = flows(&filter)?;
            ensure!(rows.len() == found, "{filter}: {rows:?}");
        }
        Ok(())
    })
}

/// Two containers of Docker, whose connections ntopng is told of, until `look` has seen them there. It gets their ids.
fn shown(
    binary: Result<PathBuf, String>,
    flags: &[&str],
    look: impl Fn(&Ntopng, &[String]) -> Result<()>,
) -> Result<()> {
    if !need::met(&needs(Kind::Docker)) {
        return Ok(());
    }
    let binary = match binary {
        Ok(binary) => binary,
        Err(reason) => {
            need::skip(&reason);
            return Ok(());
        }
    };
    let world = World::build()?;
    let runtime = Runtime::start(Kind::Docker, &world)?;
    serve(&world, 2)?;
    let ntopng = Ntopng::start(&binary, &[])?;
    let (endpoint, socket) = (ntopng.endpoint(), runtime.socket().display().to_string());
    let mut all = vec!["--ntopng", &endpoint, "--container-socket", &socket];
    all.extend(["--active-timeout", "2s"]);
    all.extend(flags);
    let agent = Agent::watching(&world.left, &all)?;
    let ids = [
        runtime.connect_and_stay(ALONE, PORT, &[])?,
        runtime.connect_and_stay(IN_POD, PORT + 1, &POD)?,
    ];
    let looked = look(&ntopng, &ids);
    for id in &ids {
        runtime.remove(id)?;
    }
    looked?;
    let counters = ntopng.zmq_counters()?;
    ensure!(
        counters["zmq_msg_drops"] == 0 && counters["dropped_flows"] == 0,
        "{counters}"
    );
    agent.interrupt()?.check_laws()
}

/// Waits for the row of a page's table that has `name` in this column.
fn wait_for_row(ntopng: &Ntopng, page: &str, column: &str, name: &str) -> Result<Value> {
    let path = format!("/lua/get_{page}_data.lua?ifid=0");
    wait::until(SHOWN_WITHIN, &format!("{name} among {page}"), || {
        let rows = ntopng.rows(&path)?;
        Ok(rows.into_iter().find(|row| is_shown(&row[column], name)))
    })
}

/// Whether a cell holds this name, by itself or as the text of a link.
fn is_shown(cell: &Value, name: &str) -> bool {
    cell.as_str()
        .is_some_and(|cell| cell == name || cell.contains(&format!(">{name}<")))
}

fn wait_for_flows(what: &str, flows: impl Fn() -> Result<Vec<Value>>) -> Result<()> {
    let found = wait::until(SHOWN_WITHIN, &format!("flows of {what}"), || {
        let flows = flows()?;
        Ok((!flows.is_empty()).then_some(flows))
    })?;
    ensure!(found.len() == 1, "{what}: {found:?}");
    Ok(())
}
