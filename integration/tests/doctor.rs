//! Promise: `doctor` tells what this very kernel and this process's rights allow, each failure with its remedy, and its exit code
//! says whether anything can be captured.
//!
//! Failures are made for real: in a mount namespace of its own the kernel's types or the cgroup2 tree are covered, or capabilities
//! are taken from the process.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use integration::fleet::binary;
use integration::need::{self, Need};
use serde_json::Value;

const NEEDS: [Need; 3] = [
    Need::Root,
    Need::Program("unshare", "util-linux"),
    Need::Program("setpriv", "util-linux"),
];

#[test]
fn this_host_is_told_as_it_is() -> Result<()> {
    if !need::met(&NEEDS) {
        return Ok(());
    }
    let (told, output) = examine(&[])?;
    ensure!(output.status.code() == Some(0), "{told:#}");
    ensure!(told["captures"] == true, "{told:#}");
    for check in [
        "kernel",
        "btf",
        "capabilities",
        "cgroup2",
        "lockdown",
        "sysctl",
        "filesystems",
        "memlock",
        "programs",
        "clock",
        "spool",
        "service",
        "runtimes",
        "identity",
        "controller",
        "collectors",
    ] {
        let found = finding(&told, check)?;
        let verdict = found["verdict"].as_str().context("a verdict")?;
        let remedied = found["remedy"].is_string();
        ensure!(
            (verdict == "ok") != remedied,
            "a remedy where one is needed: {found}"
        );
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let shown = finding(&told, "kernel")?["what"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(shown == format!("Linux {}", release.trim()), "{shown}");
    let programs = finding(&told, "programs")?["what"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(programs.starts_with("14 of 14 attached"), "{programs}");

    let text = Command::new(binary("agentctl")?)
        .args(["doctor", "--state", "/nowhere/at/all"])
        .output()?;
    let lines = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(lines.contains("ok   kernel       Linux "), "{lines}");
    ensure!(lines.contains("flows can be captured here"), "{lines}");
    // The agent's own program says the same.
    let same = Command::new(binary("flowtilla-agent")?)
        .args(["doctor", "-o", "json"])
        .output()?;
    ensure!(same.status.success(), "{same:?}");
    Ok(())
}

#[test]
fn what_is_missing_fails_with_its_remedy() -> Result<()> {
    if !need::met(&NEEDS) {
        return Ok(());
    }
    let covered = |what: &str| {
        let line = format!("{what}; exec \"$@\"");
        [
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-ec",
            &line,
            "sh",
        ]
        .map(str::to_owned)
    };
    let without = |capabilities: &str| {
        let set = format!("--bounding-set={capabilities}");
        let inherited = format!("--inh-caps={capabilities}");
        ["setpriv", &set, &inherited].map(str::to_owned).to_vec()
    };
    for (check, wrapper, part) in [
        (
            "btf",
            covered("mount -t tmpfs none /sys/kernel/btf").to_vec(),
            "CONFIG_DEBUG_INFO_BTF",
        ),
        (
            "cgroup2",
            covered(
                "while read -r _ at kind _; do [ $kind != cgroup2 ] || umount -l $at; done < /proc/mounts",
            )
            .to_vec(),
            "mount -t cgroup2",
        ),
        ("capabilities", without("-bpf,-sys_admin"), "--cap-add"),
        ("capabilities", without("-net_admin"), "--cap-add"),
    ] {
        let (told, output) = examine(&wrapper).with_context(|| format!("{wrapper:?}"))?;
        let found = finding(&told, check)?;
        ensure!(output.status.code() == Some(1), "{check}: {told:#}");
        ensure!(
            told["captures"] == false && found["verdict"] == "fail",
            "{check}: {told:#}"
        );
        let remedy = found["remedy"].as_str().context("a remedy")?;
        ensure!(remedy.contains(part), "{check}: {remedy}");
    }
    Ok(())
}

#[test]
fn whoever_may_not_is_told_so() -> Result<()> {
    if !need::met(&NEEDS) {
        return Ok(());
    }
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned);
    let program = binary("agentctl")?;
    // Its folder may be root's alone.
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("agentctl");
    std::fs::copy(program, &copy)?;
    open_to_all(folder.path())?;
    let output = Command::new(&nobody[0])
        .args(&nobody[1..])
        .arg(&copy)
        .args(["doctor", "-o", "json"])
        .output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let found = finding(&told, "capabilities")?;
    ensure!(
        found["remedy"]
            .as_str()
            .is_some_and(|text| text.starts_with("run this as root")),
        "{found}"
    );
    Ok(())
}

fn open_to_all(folder: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(
        folder,
        std::fs::Permissions::from_mode(0o755),
    )?)
}

/// What `doctor` says when it is started through `wrapper`.
fn examine(wrapper: &[String]) -> Result<(Value, Output)> {
    let mut words = wrapper.to_vec();
    words.push(binary("agentctl")?.to_string_lossy().into_owned());
    words.extend(["doctor", "-o", "json", "--state", "/nowhere/at/all"].map(str::to_owned));
    let output = Command::new(&words[0]).args(&words[1..]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let told = serde_json::from_str(&said).with_context(|| format!("{output:?}"))?;
    Ok((told, output))
}

fn finding<'a>(told: &'a Value, check: &str) -> Result<&'a Value> {
    let findings = told["findings"].as_array().context("findings")?;
    findings
        .iter()
        .find(|finding| finding["check"] == check)
        .with_context(|| format!("no finding of {check}: {told}"))
}
