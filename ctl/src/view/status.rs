//! How the controller and its fleet do, as a value.

use flowtilla_proto::wire::fleet::{Concern, ConcernKind, StatusResponse};

use super::{Fields, aside, kernel_left_out, rollout, roots};
use crate::document::render::Plain;

/// The shape `status` in [`crate::view`]. `well`: the exit code is 0.
pub(crate) fn status(status: &StatusResponse, well: bool) -> Plain {
    let left_out = status.left_out.as_ref().map(|told| {
        Fields::default()
            .number("agents", told.agents)
            .part("filtered", told.filtered.map(aside))
            .part("sampledOut", told.sampled_out.map(aside))
            .part("kernel", told.kernel.map(kernel_left_out))
            .done()
    });
    Fields::default()
        .flag("well", well)
        .text("version", &status.version)
        .text("trustDomain", &status.trust_domain)
        .time("started", status.started_ms)
        .number("revision", status.revision)
        .number("epoch", status.epoch)
        .number("agents", status.agents)
        .number("connected", status.connected)
        .number("converged", status.converged)
        .number("nacked", status.nacked)
        .number("behind", status.behind)
        .number("tied", status.tied)
        .given("conflicts", status.conflicts)
        .given("draining", status.draining)
        .given("notOffered", status.not_offered)
        .flag("diskFull", status.disk_full)
        .part(
            "concerns",
            Some(Plain::List(status.concerns.iter().map(concern).collect())),
        )
        .part("leftOut", left_out)
        .part("roots", Some(roots(&status.roots)))
        .part("rollout", status.rollout.as_ref().map(rollout))
        .text("caller", &status.caller)
        .time("callerNotAfter", status.caller_not_after_ms)
        .done()
}

fn concern(concern: &Concern) -> Plain {
    let first = concern.first.iter().map(|one| {
        Fields::default()
            .text("agent", &one.agent)
            .time("lastSeen", one.last_seen_ms)
            .text("why", &one.why)
            .done()
    });
    Fields::default()
        .text("kind", concern_kind(concern.kind()))
        .number("agents", concern.agents)
        .part("first", Some(Plain::List(first.collect())))
        .done()
}

/// Word of what is the matter.
fn concern_kind(kind: ConcernKind) -> &'static str {
    match kind {
        ConcernKind::Unspecified => "unknown",
        ConcernKind::Refuses => "refuses",
        ConcernKind::Behind => "behind",
        ConcernKind::AwayBehind => "awayBehind",
        ConcernKind::Away => "away",
        ConcernKind::Conflict => "conflict",
        ConcernKind::Export => "export",
    }
}
