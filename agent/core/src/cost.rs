//! Whether the agent costs more than its policy allows: CPU over a minute, resident memory.
//!
//! In: how much CPU time the process has used and how much memory it holds, about once a second, and [`Limits`]. Out: one
//! sentence for each limit that is passed, with both values. Enforces nothing: an agent that stopped observing to save
//! memory would be blind when it matters. Reads no clock and no file.

use std::collections::VecDeque;
use std::time::Duration;

use flowtilla_proto::policy::Limits;

use crate::time::KernelTime;

/// The span over which CPU is told. Half of it calls a busy moment too much; double it, and a rollout waits for its end.
pub const CPU_SPAN: Duration = Duration::from_secs(60);
/// Samples that come sooner after the one before are left out: a minute has 120 at most.
const SAMPLE_SOONEST: Duration = Duration::from_millis(500);

/// What the agent costs, as far as a minute tells.
#[derive(Clone, Debug, Default)]
pub struct CostWatch {
    /// When, and the CPU time used until then. The first is a minute older than the last, or the first there was.
    samples: VecDeque<(KernelTime, Duration)>,
    resident_octets: Option<u64>,
}

impl CostWatch {
    /// Takes in how much CPU time the process used since its start, and how much memory is resident (`None`: it cannot be
    /// read).
    pub fn observe(&mut self, now: KernelTime, cpu: Duration, resident_octets: Option<u64>) {
        self.resident_octets = resident_octets;
        if self
            .samples
            .back()
            .is_some_and(|&(last, _)| now.since(last) < SAMPLE_SOONEST)
        {
            return;
        }
        self.samples.push_back((now, cpu));
        while self
            .samples
            .get(1)
            .is_some_and(|&(second, _)| now.since(second) >= CPU_SPAN)
        {
            self.samples.pop_front();
        }
    }

    /// CPU over the last minute, in thousandths of a core, rounded down; `None`: a minute has not passed yet.
    #[must_use]
    pub fn cpu_permille(&self) -> Option<u64> {
        let (&(from, before), &(upto, after)) = (self.samples.front()?, self.samples.back()?);
        let span = upto.since(from);
        if span < CPU_SPAN {
            return None;
        }
        let used = after.saturating_sub(before);
        u64::try_from(used.as_nanos() * 1000 / span.as_nanos()).ok()
    }

    /// What is beyond the limits, one sentence each.
    #[must_use]
    pub fn over(&self, limits: &Limits) -> Vec<String> {
        let mut over = Vec::new();
        if let (Some(limit), Some(used)) = (limits.cpu_permille, self.cpu_permille())
            && used > limit
        {
            over.push(format!(
                "limits.cpuPermille: {used} thousandths of a core over the last minute, {limit} are allowed"
            ));
        }
        if let (Some(limit), Some(resident)) = (limits.memory_octets, self.resident_octets)
            && resident > limit
        {
            over.push(format!(
                "limits.memoryOctets: {resident} octets are resident, {limit} are allowed"
            ));
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_proto::policy::Policy;
    use flowtilla_proto::wire;

    use super::*;

    fn limits(cpu_permille: Option<u64>, memory_octets: Option<u64>) -> Limits {
        let sent = wire::Policy {
            limits: Some(wire::Limits {
                cpu_permille,
                memory_octets,
            }),
            ..wire::Policy::default()
        };
        Policy::try_from(sent).expect("sound limits").limits
    }

    /// Samples once a second for each share of a core, after what `watch` has.
    fn run(watch: &mut CostWatch, at: &mut u64, cpu: &mut Duration, seconds: u64, permille: u32) {
        for _ in 0..seconds {
            *at += 1;
            *cpu += Duration::from_millis(permille.into());
            watch.observe(KernelTime(*at * 1_000_000_000), *cpu, Some(20 << 20));
        }
    }

    #[test]
    fn cpu_is_that_of_the_last_minute_and_recovers() {
        let (mut watch, mut at, mut cpu) = (CostWatch::default(), 100, Duration::from_secs(7));
        let limits = limits(Some(200), None);
        run(&mut watch, &mut at, &mut cpu, 60, 900);
        assert_eq!(
            (watch.cpu_permille(), watch.over(&limits)),
            (None, vec![]),
            "59 s"
        );
        run(&mut watch, &mut at, &mut cpu, 1, 900);
        assert_eq!(
            watch.over(&limits),
            ["limits.cpuPermille: 900 thousandths of a core over the last minute, 200 are allowed"]
        );
        run(&mut watch, &mut at, &mut cpu, 30, 0);
        assert_eq!(watch.cpu_permille(), Some(450));
        run(&mut watch, &mut at, &mut cpu, 17, 0);
        assert_eq!((watch.cpu_permille(), watch.over(&limits)), (Some(195), vec![]));
        run(&mut watch, &mut at, &mut cpu, 100, 201);
        assert_eq!(watch.over(&limits).len(), 1);
        assert!(watch.samples.len() <= 62, "{}", watch.samples.len());
    }

    #[test]
    fn a_sample_each_moment_is_bounded() {
        let mut watch = CostWatch::default();
        for ms in 0..200_000_u64 {
            watch.observe(KernelTime(ms * 1_000_000), Duration::from_micros(ms * 10), None);
        }
        assert!(watch.samples.len() <= 122, "{}", watch.samples.len());
        assert_eq!(watch.cpu_permille(), Some(10));
    }

    #[test]
    fn memory_is_that_of_this_moment() {
        let mut watch = CostWatch::default();
        let limits = limits(None, Some(64 << 20));
        watch.observe(KernelTime(1), Duration::ZERO, Some((64 << 20) + 1));
        assert_eq!(
            watch.over(&limits),
            ["limits.memoryOctets: 67108865 octets are resident, 67108864 are allowed"]
        );
        watch.observe(KernelTime(2), Duration::ZERO, Some(64 << 20));
        assert!(watch.over(&limits).is_empty());
        watch.observe(KernelTime(3), Duration::ZERO, None);
        assert!(watch.over(&limits).is_empty());
    }

    #[test]
    fn without_limits_nothing_is_too_much() {
        let (mut watch, mut at, mut cpu) = (CostWatch::default(), 0, Duration::ZERO);
        run(&mut watch, &mut at, &mut cpu, 100, 100_000 / 100);
        assert_eq!(watch.cpu_permille(), Some(1000));
        assert!(watch.over(&Limits::default()).is_empty());
    }
}
