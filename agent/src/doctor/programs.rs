//! Loads and attaches the kernel programs as the agent does, and takes them off again.
//!
//! For that moment they observe, beside an agent that may be at work, and nothing reads what they see.

use flowtilla_agent_core::policy::CapturePlan;
use flowtilla_grpc::causes::chain;

use super::Finding;
use crate::capture::{Capture, CaptureError};
use crate::enrich::Lookups;
use crate::status::AttachReport;

/// Flows that the maps have room for: little memory, and as good a test as the agent's own 65,536.
const FLOWS: u32 = 1_024;
const CHECK: &str = "programs";

pub(super) async fn examine() -> Vec<Finding> {
    let tried = tokio::task::spawn_blocking(attach).await;
    match tried {
        Ok(Ok(report)) => told(&report),
        Ok(Err(error)) => vec![refused(&error)],
        Err(error) => vec![Finding::fail(
            CHECK,
            format!("the try ended early ({error})"),
            "report this",
        )],
    }
}

fn attach() -> Result<AttachReport, CaptureError> {
    let plan = CapturePlan {
        tcp: true,
        udp: true,
        scopes: Vec::new(),
        max_flows: FLOWS,
    };
    let lookups = Lookups::open().ok();
    let root = lookups.as_ref().and_then(Lookups::cgroup2_root);
    let root = root.ok_or_else(|| CaptureError::CgroupRoot {
        path: "any mount point".to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    // Detached when it is dropped.
    Capture::attach(&plan, root).map(|capture| capture.report().clone())
}

fn refused(error: &CaptureError) -> Finding {
    let remedy = match error {
        CaptureError::Btf(_) => "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        CaptureError::CgroupRoot { .. } => "mount -t cgroup2 none /sys/fs/cgroup/unified",
        _ => "mend what fails above; when nothing does, the kernel's words say what it refuses: report them",
    };
    Finding::fail(CHECK, chain(error), remedy)
}

fn told(report: &AttachReport) -> Vec<Finding> {
    let total = report.programs.len();
    let attached = report
        .programs
        .iter()
        .filter(|program| program.refused.is_none())
        .count();
    let mut findings = vec![Finding::ok(
        CHECK,
        format!(
            "{attached} of {total} attached in {} ms, and taken off again; maps for {FLOWS} flows took {}",
            report.took_ms,
            super::octets(report.map_octets)
        ),
    )];
    for program in &report.programs {
        if let Some(why) = &program.refused {
            findings.push(Finding::warn(
                CHECK,
                format!("{} ({}) is refused: {why}", program.name, program.hook),
                format!("a later kernel may take it; without it {}", program.without),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::status::ProgramStatus;

    #[test]
    fn a_refused_program_is_told_with_what_is_missing_without_it() {
        let program = |refused: Option<&str>| ProgramStatus {
            name: "tcp_snap",
            hook: "raw_tp",
            refused: refused.map(str::to_owned),
            without: "connections are told only when they end",
            mandatory: false,
        };
        let findings = told(&AttachReport {
            programs: vec![program(None), program(Some("unknown func"))],
            ..AttachReport::default()
        });
        assert!(
            findings[0].what.starts_with("1 of 2 attached"),
            "{}",
            findings[0].what
        );
        assert_eq!(findings[1].verdict, Verdict::Warn);
        assert!(findings[1].what.ends_with("is refused: unknown func"));
        assert!(
            findings[1]
                .remedy
                .as_deref()
                .is_some_and(|text| text.contains("only when they end"))
        );
    }
}
