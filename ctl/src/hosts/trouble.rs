//! Why nothing came of a host: at which step, for which reason, and what to do.
//!
//! In: what ssh, sudo and the script said. Out: a [`Trouble`], displayed as one line. What a host says is made harmless.

use std::fmt;

use flowtilla_proto::hosts::Target;

use crate::output::harmless;

/// Most characters of what a host says that are told.
const SAID_MAX: usize = 200;
/// How ssh ends when it is itself that failed. Source: ssh(1), "Exit status".
const SSH_FAILED: i32 = 255;
/// How the script ends when the service does not do.
const START_FAILED: i32 = 4;
/// How the script ends when another one is at work; nothing was done then. Source: `EX_TEMPFAIL` of sysexits.h.
const BUSY: i32 = 75;
/// How the script's own sentences begin.
const OURS: &str = "flowtilla: ";

/// A step of what is done for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Connect,
    Sudo,
    Probe,
    /// Whether its agent is who it says to be.
    Prove,
    /// Whether the agent can run there.
    Fit,
    Install,
    Enrol,
    Start,
    /// Waits until the controller has the agent.
    Join,
    /// Waits until nothing waits at the agent.
    Drain,
    Remove,
    /// Has the agent's program say how it finds the host.
    Doctor,
}

impl Step {
    fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Sudo => "sudo",
            Self::Probe => "probe",
            Self::Prove => "prove",
            Self::Fit => "check",
            Self::Install => "install",
            Self::Enrol => "enrol",
            Self::Start => "start",
            Self::Join => "join",
            Self::Drain => "drain",
            Self::Remove => "remove",
            Self::Doctor => "doctor",
        }
    }
}

/// What went wrong with a host. Displayed as `STEP: why; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) step: Step,
    why: String,
    remedy: String,
    /// ssh ended under what ran, or before it could tell: what became of that is not known.
    pub(crate) broke_off: bool,
    /// Another script is at work there, maybe one of ours whose ssh broke off.
    pub(crate) busy: bool,
    /// It was told at another try, after ssh broke off: what the first one did may be there.
    pub(crate) late: bool,
    /// A program is left on trial there that nobody has kept, for all that is known.
    pub(crate) on_trial: bool,
}

impl Trouble {
    pub(crate) fn new(step: Step, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            step,
            why: why.into(),
            remedy: remedy.into(),
            broke_off: false,
            busy: false,
            late: false,
            on_trial: false,
        }
    }

    /// The same, of something that may have been done, and may not.
    pub(crate) fn broken_off(mut self) -> Self {
        self.broke_off = true;
        self
    }

    /// The same, told at another try than the first.
    pub(crate) fn told_late(mut self) -> Self {
        self.late = true;
        self
    }

    /// The same, of a host that is left with a program on trial.
    pub(crate) fn left_on_trial(mut self) -> Self {
        self.on_trial = true;
        self
    }

    /// The same, with something else to do.
    pub(crate) fn remedied(mut self, remedy: &str) -> Self {
        remedy.clone_into(&mut self.remedy);
        self
    }

    /// The same, told by a command that deploys nothing.
    pub(crate) fn not_of_deploy(mut self) -> Self {
        self.remedy = self.remedy.replace("deploy again", "call it again");
        self
    }

    /// Each part under its name.
    pub(crate) fn parts(&self) -> [(&'static str, &str); 3] {
        [
            ("step", self.step.word()),
            ("why", &self.why),
            ("remedy", &self.remedy),
        ]
    }

    /// The same, with something more to know.
    pub(crate) fn and(mut self, more: &str) -> Self {
        self.why = format!("{}; {more}", self.why);
        self
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.step.word(), self.why, self.remedy)
    }
}

/// What ssh says, why that is, and what to do. `%`: the host, as ssh is called with it by hand. The first that is found counts.
const OF_SSH: [(&str, &str, &str); 9] = [
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the known one",
        "somebody may stand in between; if the host was set up anew: ssh-keygen -R its name, then ssh % once, and compare the key",
    ),
    (
        "Host key verification failed",
        "its host key is not known",
        "ssh % once by hand, and compare the key",
    ),
    (
        "Permission denied",
        "it takes none of the keys that were offered",
        "see that ssh % gets in without a password",
    ),
    (
        "Could not resolve hostname",
        "its name is not known",
        "write its address, or a Host of that name into ~/.ssh/config",
    ),
    (
        "Connection refused",
        "nothing listens on its ssh port",
        "see that sshd runs there, or write another port",
    ),
    (
        "Connection timed out",
        "it does not answer",
        "see that it is up and that ssh % reaches it, then deploy again",
    ),
    (
        "timed out",
        "it does not answer",
        "see that it is up and that ssh % reaches it, then deploy again",
    ),
    (
        "No route to host",
        "it is not in reach",
        "see that it is up and that ssh % reaches it, then deploy again",
    ),
    (
        "Network is unreachable",
        "its network is not in reach",
        "see that ssh % reaches it, or write a jump host",
    ),
];

/// Of what ssh says, what it says before anything is begun on a host.
const NOT_BEGUN: [&str; 5] = [
    "ssh: connect to host",
    "REMOTE HOST IDENTIFICATION HAS CHANGED",
    "Host key verification failed",
    "Permission denied",
    "Could not resolve hostname",
];

/// Why a call ended with this exit code.
pub(super) fn explain(step: Step, target: &Target, code: Option<i32>, said: &str) -> Trouble {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let step = match code {
        Some(START_FAILED) => Step::Start,
        _ => step,
    };
    if code == Some(SSH_FAILED) {
        let known = OF_SSH.iter().find(|(sign, ..)| said.contains(sign));
        let trouble = match known {
            Some((_, why, remedy)) => {
                Trouble::new(Step::Connect, *why, remedy.replace('%', &by_hand(target)))
            }
            None => Trouble::new(
                Step::Connect,
                told(lines.last().copied()),
                format!("see what ssh {} says", by_hand(target)),
            ),
        };
        return match NOT_BEGUN.iter().any(|sign| said.contains(sign)) {
            true => trouble,
            false => trouble.broken_off(),
        };
    }
    if let Some(line) = lines
        .iter()
        .find(|line| line.starts_with("sudo: ") || line.contains("sudoers"))
    {
        let remedy = "let the user become root without a password (NOPASSWD in sudoers), or write user: root";
        return Trouble::new(Step::Sudo, told(Some(line)), remedy);
    }
    if lines
        .iter()
        .any(|line| line.contains("sudo: not found") || line.contains("sudo: command not found"))
    {
        let remedy = "install sudo there, or write user: root";
        return Trouble::new(Step::Sudo, "the host has no sudo", remedy);
    }
    if lines.last() == Some(&"flowtilla: not root") {
        let remedy = "write user: root, or sudo: true";
        return Trouble::new(Step::Sudo, "the user is not root, and sudo is off", remedy);
    }
    let words = match lines.split_last() {
        // The script's own sentence, and what it was told before.
        Some((ours, before)) if ours.starts_with(OURS) => {
            let ours = &ours[OURS.len()..];
            match before {
                [] => told(Some(ours)),
                _ => told(Some(&format!("{ours}: {}", before.join(" / ")))),
            }
        }
        Some((last, _)) => told(Some(last)),
        None => match code {
            Some(code) => format!("it ended with exit code {code}"),
            None => "it was ended by a signal".to_owned(),
        },
    };
    let mut trouble = Trouble::new(step, words, "mend that there, and deploy again");
    trouble.busy = code == Some(BUSY);
    match code {
        Some(_) => trouble,
        None => trouble.broken_off(), // ssh's own end.
    }
}

fn told(line: Option<&str>) -> String {
    let line = line.unwrap_or("it says nothing");
    let shown: String = harmless(line).chars().take(SAID_MAX).collect();
    shown
}

/// What a person writes after `ssh`.
fn by_hand(target: &Target) -> String {
    let user = target
        .user
        .as_ref()
        .map_or(String::new(), |user| format!("{user}@"));
    let port = target.port.map_or(String::new(), |port| format!("-p {port} "));
    format!("{port}{user}{}", target.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(code: i32, said: &str) -> String {
        let target = Target {
            user: Some("admin".to_owned()),
            host: "web-1".to_owned(),
            port: std::num::NonZeroU16::new(2222),
        };
        explain(Step::Install, &target, Some(code), said).to_string()
    }

    #[test]
    fn what_ssh_says_is_told_with_its_remedy() {
        let changed = "@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@\nHost key for web-1 has changed \
                       and you have requested strict checking.\r\nHost key verification failed.\r\n";
        for (said, begins) in [
            (
                changed,
                "connect: its host key is not the known one; somebody may",
            ),
            (
                "No ED25519 host key is known for web-1 and you have requested strict checking.\r\nHost key verification failed.\r\n",
                "connect: its host key is not known; ssh -p 2222 admin@web-1 once",
            ),
            (
                "admin@web-1: Permission denied (publickey).\r\n",
                "connect: it takes none of the keys",
            ),
            (
                "ssh: connect to host web-1 port 22: Connection timed out\r\n",
                "connect: it does not answer; see that it is up",
            ),
            (
                "ssh: connect to host web-1 port 22: No route to host\r\n",
                "connect: it is not in reach",
            ),
            (
                "kex_exchange_identification: Connection closed by remote host\r\n",
                "connect: kex_exchange_identification: Connection closed by remote host; see what ssh -p 2222 admin@web-1 says",
            ),
            ("", "connect: it says nothing; see what"),
        ] {
            let told = explained(255, said);
            assert!(told.starts_with(begins), "{told}");
        }
    }

    #[test]
    fn ssh_that_did_not_connect_has_begun_nothing_and_one_that_broke_off_may_have() {
        let target = Target {
            user: None,
            host: "web-1".to_owned(),
            port: None,
        };
        let of = |code, said: &str| explain(Step::Install, &target, code, said).broke_off;
        for said in [
            "ssh: connect to host web-1 port 22: Connection timed out\r\n",
            "ssh: connect to host web-1 port 22: Connection refused\r\n",
            "Host key verification failed.\r\n",
            "op@web-1: Permission denied (publickey).\r\n",
        ] {
            assert!(!of(Some(255), said), "{said}");
        }
        for said in [
            "client_loop: send disconnect: Broken pipe\r\n",
            "Timeout, server web-1 not responding.\r\n",
            "Connection to web-1 closed by remote host.\r\n",
            "",
        ] {
            assert!(of(Some(255), said), "{said}");
        }
        assert!(of(None, ""), "ssh was killed");
        assert!(
            !of(Some(4), "flowtilla: the service does not stay up\n"),
            "the script's own word"
        );
    }

    #[test]
    fn who_is_at_work_is_no_matter_of_the_service() {
        let target = Target {
            user: None,
            host: "web-1".to_owned(),
            port: None,
        };
        let of = |code, said: &str| explain(Step::Install, &target, Some(code), said);
        let busy = of(
            75,
            "flowtilla: another deploy is at work here; try again when it has ended\n",
        );
        assert!(
            busy.busy && !busy.broke_off && busy.step == Step::Install,
            "{busy}"
        );
        let service = of(4, "flowtilla: the service does not start\n");
        assert!(!service.busy && service.step == Step::Start, "{service}");
    }

    #[test]
    fn what_sudo_and_the_script_say_is_told_at_its_step() {
        for (said, begins) in [
            (
                "sudo: a password is required\n",
                "sudo: sudo: a password is required; let the user",
            ),
            (
                "Sorry, user x may not run sudo on web-1.\nx is not in the sudoers file.\n",
                "sudo: x is not in the sudoers file.; let",
            ),
            (
                "flowtilla: not root\n",
                "sudo: the user is not root, and sudo is off; write user: root",
            ),
            (
                "cat: write error: No space left on device\n",
                "install: cat: write error: No space left on device; mend that",
            ),
            (
                "error: no controller\nflowtilla: the service does not stay up\n",
                "install: the service does not stay up: error: no controller; mend that",
            ),
            ("\x1b[31mred\n", "install: \\u{1b}[31mred; mend"),
        ] {
            let told = explained(3, said);
            assert!(told.starts_with(begins), "{told}");
        }
    }
}
