//! What the kernel left out by itself, in words.

use flowtilla_agent::status::AgentStatus;

use crate::cmd::left_out::kernel;
use crate::output::grouped;

/// What the kernel left out by itself, and flows whose container had no name when a rule asked for it; nothing when there
/// was nothing of either.
pub(crate) fn told(status: &AgentStatus) -> Vec<String> {
    let (outside, mut lines) = (&status.left_out, Vec::new());
    if outside.cgroups > 0 || !outside.sum.is_nothing() {
        let (cgroups, sum) = (grouped(outside.cgroups), kernel(&outside.sum));
        lines.push(format!(
            "left out in the kernel, {cgroups} cgroups at this moment: {sum}"
        ));
    }
    if outside.beyond > 0 {
        let beyond = grouped(outside.beyond);
        lines.push(format!(
            "{beyond} cgroups more found no room there, and are left out by the agent"
        ));
    }
    if status.unnamed_containers > 0 {
        let flows = grouped(status.unnamed_containers);
        lines.push(format!(
            "{flows} flows were in containers without a name when a rule asked for it"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use flowtilla_agent_core::loss::LeftOutSum;

    use super::*;

    #[test]
    fn what_the_kernel_left_out_is_told_once_there_is_something() {
        let mut status = AgentStatus::default();
        assert!(told(&status).is_empty());
        status.left_out.cgroups = 2;
        status.left_out.sum = LeftOutSum {
            connections: 1_000,
            packets: 12_000,
            octets: 3_000_000,
        };
        let first = "left out in the kernel, 2 cgroups at this moment: 1,000 connections, 12,000 packets with 3,000,000 IP \
                     octets";
        assert_eq!(told(&status), [first]);
        status.left_out.beyond = 3;
        status.unnamed_containers = 4;
        assert_eq!(
            told(&status),
            [
                first,
                "3 cgroups more found no room there, and are left out by the agent",
                "4 flows were in containers without a name when a rule asked for it",
            ]
        );
    }
}
