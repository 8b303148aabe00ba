//! One rule, made ready for use.
//!
//! In: a validated [`FlowRule`]. Out: whether a named record matches. Text that a process chose (its path, its name) is
//! compared in time that grows with its length only.

use flowtilla_proto::policy::{FlowRule, ProcessPattern, User};

use crate::flow::record::FlowRecord;
use crate::owner::Owner;

/// A rule of the policy.
#[derive(Debug)]
pub(super) struct Rule {
    rule: FlowRule,
    programs: Vec<Program>,
}

impl Rule {
    pub(super) fn new(rule: &FlowRule) -> Self {
        Self {
            programs: rule.processes.iter().map(Program::new).collect(),
            rule: rule.clone(),
        }
    }

    /// Whether each list that is not empty has a member that matches at either end.
    pub(super) fn matches<'a>(&self, record: &FlowRecord, cgroup: &impl Fn(u64) -> Option<&'a str>) -> bool {
        let parties = [&record.initiator, &record.responder];
        let rule = &self.rule;
        // What another host says of its own end must not decide what leaves this one.
        let either = |list: &dyn Fn(&Owner) -> bool| {
            let own = parties.iter().filter(|party| !party.owner.is_remote());
            own.map(|party| &party.owner).any(list)
        };
        let cidrs = || {
            rule.cidrs
                .iter()
                .any(|cidr| parties.iter().any(|party| cidr.contains(&party.endpoint.address)))
        };
        let ports = || {
            rule.ports
                .iter()
                .any(|ports| parties.iter().any(|party| ports.contains(party.endpoint.port)))
        };
        let programs = |owner: &Owner| {
            owner
                .program()
                .is_some_and(|program| self.programs.iter().any(|wanted| wanted.matches(program)))
        };
        let users = |owner: &Owner| rule.users.iter().any(|user| is_user(owner, user));
        let cgroups = |owner: &Owner| {
            let path = owner
                .process
                .as_ref()
                .and_then(|process| cgroup(process.cgroup_id));
            path.is_some_and(|path| rule.cgroups.iter().any(|above| is_below(path, above.as_str())))
        };
        (rule.ports.is_empty() || ports())
            && (rule.cidrs.is_empty() || cidrs())
            && (self.programs.is_empty() || either(&programs))
            && (rule.users.is_empty() || either(&users))
            && (rule.cgroups.is_empty() || either(&cgroups))
    }
}

fn is_user(owner: &Owner, user: &User) -> bool {
    match user {
        User::Id(id) => owner.process.as_ref().is_some_and(|process| process.uid == *id),
        User::Name(name) => {
            let known = owner.names.as_ref().and_then(|names| names.user.as_ref());
            known.is_some_and(|known| known == name)
        }
    }
}

/// Whether a cgroup is `above` or below it.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The program of a process: by the path of its executable, or by its name, which is the last part of the path, or the
/// command name while the path is not known.
#[derive(Debug)]
struct Program {
    path: bool,
    /// What stands before, between and after the `*`s; without one it is the whole.
    parts: Vec<Box<str>>,
}

impl Program {
    fn new(pattern: &ProcessPattern) -> Self {
        Self {
            path: pattern.is_path(),
            parts: pattern.as_str().split('*').map(Box::from).collect(),
        }
    }

    fn matches(&self, program: &str) -> bool {
        let text = match program.rsplit_once('/') {
            Some((_, name)) if !self.path => name,
            Some(_) => program,
            None if self.path => return false, // Its path is not known.
            None => program,
        };
        let Some((first, rest)) = self.parts.split_first() else {
            return false; // Splitting gives a part at least.
        };
        let Some((last, between)) = rest.split_last() else {
            return text == &**first;
        };
        let inner = text
            .strip_prefix(&**first)
            .and_then(|text| text.strip_suffix(&**last));
        // The earliest place of each part leaves most to the next.
        let left = between.iter().try_fold(inner, |text, part| {
            let text = text?;
            text.find(&**part).map(|at| Some(&text[at + part.len()..]))
        });
        left.flatten().is_some()
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_proto::policy::Policy;
    use flowtilla_proto::wire;

    use super::*;

    fn program(pattern: &str) -> Program {
        let rule = wire::FlowRule {
            processes: vec![pattern.into()],
            ..wire::FlowRule::default()
        };
        let policy = wire::Policy {
            capture: Some(wire::Capture {
                include: vec![rule],
                ..wire::Capture::default()
            }),
            ..wire::Policy::default()
        };
        let policy = Policy::try_from(policy).expect("a sound pattern");
        Program::new(&policy.capture.include[0].processes[0])
    }

    #[test]
    fn a_name_is_the_last_part_of_the_path_and_a_path_is_all_of_it() {
        for (pattern, matched, not) in [
            (
                "nginx",
                &["/usr/sbin/nginx", "nginx"][..],
                &["/usr/sbin/nginx2", "/nginx/x", "ngin"][..],
            ),
            (
                "/usr/sbin/nginx",
                &["/usr/sbin/nginx"],
                &["nginx", "/opt/usr/sbin/nginx"],
            ),
            (
                "python*",
                &["/usr/bin/python3.11", "python"],
                &["/usr/bin/pypython", "/python3/x"],
            ),
            ("*d", &["/usr/sbin/sshd", "d"], &["/usr/sbin/sshd2", ""]),
            (
                "/usr/*/x*",
                &["/usr/bin/x", "/usr/a/b/xy"],
                &["/usr/x", "x", "/opt/usr/bin/x"],
            ),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("a*b*a", &["aba", "axbxa"], &["aa", "abb"]),
            ("*", &["x", "/x", ""], &[]),
            ("/*", &["/x", "/a/b"], &["x"]),
            ("a**b", &["ab", "axb"], &["a"]),
        ] {
            let program = program(pattern);
            for text in matched {
                assert!(program.matches(text), "{pattern} and {text}");
            }
            for text in not {
                assert!(!program.matches(text), "{pattern} and {text}");
            }
        }
    }

    #[test]
    fn a_long_path_against_many_stars_is_quick() {
        let program = program(&"*a".repeat(255));
        assert!(!program.matches(&format!("{}b", "a".repeat(100_000))));
        assert!(program.matches(&"a".repeat(100_000)));
    }

    #[test]
    fn a_cgroup_is_below_another_by_whole_names() {
        assert!(is_below("/a", "/a") && is_below("/a/b", "/a"));
        assert!(!is_below("/ab", "/a") && !is_below("/", "/a") && !is_below("/x/a", "/a"));
    }
}
