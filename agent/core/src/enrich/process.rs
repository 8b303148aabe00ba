//! What is known about one process, and what it runs.
//!
//! In: exec and fork events, facts from /proc. Out: the executable and the command line as a policy allows it. Decides
//! which of two sources counts; asks nobody.

use std::sync::{Arc, OnceLock};

use flowtilla_abi::EXEC_PATH_MAX;

use super::ask::{ParentFacts, ProcessFacts, Scope};
use super::redact::redact;
use crate::owner::{Comm, Names, ProcessKey};

/// Longest command line in a record, in octets; what is longer ends in `…`.
///
/// Half of it cuts ordinary Java command lines before their main class; double it, and two of them with a flow's other
/// fields no longer fit comfortably into one ZeroMQ message of the smallest collector buffer.
pub const COMMAND_LINE_OCTETS_MAX: usize = 1024;

/// How much of a command line may leave the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CommandLineMode {
    /// Nothing.
    None,
    /// Without secrets.
    #[default]
    Redacted,
    /// All of it.
    Full,
}

/// What a process runs. Shared by a process and the children it forked.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) executable: Option<String>,
    pub(super) comm: Comm,
    /// Each ended by NUL, so that one allocation holds all; empty: not known or not wanted.
    arguments: Box<str>,
    cut: bool,
    /// Made when the first flow asks: most processes never have one.
    line: OnceLock<Option<String>>,
}

/// How far the reading of /proc is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    NotAsked,
    Asked,
    Read,
    Gone,
}

/// A process as it was when something was taken from it: the generation changes with each exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) key: ProcessKey,
    pub(super) generation: u64,
    /// Losses known by then.
    pub(super) epoch: u64,
}

/// What is known about a parent.
#[derive(Clone, Debug)]
pub(super) struct Lineage {
    pub(super) pid: u32,
    /// The cached parent, as long as it has not executed something else.
    pub(super) link: Option<Link>,
    /// What it ran when it became the parent.
    pub(super) program: Option<Arc<Program>>,
    pub(super) uid: Option<u32>,
    pub(super) scope: Option<Scope>,
    pub(super) cgroup_id: u64,
}

/// Names that are complete, and what they are of: a process may change its user or cgroup.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) cgroup_id: u64,
    pub(super) names: Arc<Names>,
}

/// One cached process.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) generation: u64,
    /// How many losses of name events were known when this was last right.
    pub(super) epoch: u64,
    pub(super) reading: Reading,
    /// Gone before it could be checked after a loss: it may have executed something else.
    pub(super) doubtful: bool,
    pub(super) program: Option<Arc<Program>>,
    /// Whose program it shares, when it was forked and has none.
    pub(super) origin: Option<Link>,
    pub(super) lineage: Option<Lineage>,
    pub(super) uid: Option<u32>,
    pub(super) cgroup_id: u64,
    pub(super) scope: Option<Scope>,
    pub(super) described: Option<Described>,
}

impl Entry {
    pub(super) fn fresh(generation: u64, epoch: u64) -> Self {
        Self {
            generation,
            epoch,
            reading: Reading::NotAsked,
            doubtful: false,
            program: None,
            origin: None,
            lineage: None,
            uid: None,
            cgroup_id: 0,
            scope: None,
            described: None,
        }
    }

    /// Takes over what /proc says. `mode` decides whether arguments are kept.
    pub(super) fn read(&mut self, facts: ProcessFacts, mode: CommandLineMode) {
        let same = self.program.take().filter(|known| known.comm == facts.comm);
        // Of the same exec its own copy counts, as a process may have overwritten its arguments since.
        let copy = same
            .as_ref()
            .filter(|known| !known.arguments.is_empty() && (!known.cut || facts.arguments.is_empty()));
        let program = Program {
            executable: facts
                .executable
                .or_else(|| same.as_ref().and_then(|known| known.executable.clone())),
            arguments: copy.map_or_else(|| packed(&facts.arguments, mode), |known| known.arguments.clone()),
            cut: copy.map_or(facts.cut, |known| known.cut),
            comm: facts.comm,
            line: OnceLock::new(),
        };
        self.program = Some(Arc::new(program));
        self.uid = Some(facts.uid);
        self.scope = Some(facts.scope);
        let better = self.lineage.as_ref().is_none_or(|known| known.program.is_none());
        if better && let Some(parent) = facts.parent {
            self.lineage = Some(Lineage::from(parent));
        }
        self.described = None;
    }
}

impl From<ParentFacts> for Lineage {
    fn from(parent: ParentFacts) -> Self {
        Self {
            pid: parent.pid,
            link: None,
            program: Some(Arc::new(Program {
                executable: parent.executable,
                comm: parent.comm,
                ..Program::default()
            })),
            uid: Some(parent.uid),
            scope: Some(parent.scope),
            cgroup_id: 0,
        }
    }
}

impl Program {
    /// What exec was given. `before`: what the process ran until then.
    pub(super) fn executed(
        path: Option<&str>,
        arguments: &[String],
        cut: bool,
        comm: Comm,
        before: Option<&Self>,
        mode: CommandLineMode,
    ) -> Self {
        Self {
            executable: path.and_then(|path| executable(path, arguments, before)),
            comm,
            arguments: packed(arguments, mode),
            cut,
            line: OnceLock::new(),
        }
    }

    /// The executable, or the command name while that is not known.
    pub(super) fn label(&self) -> &str {
        self.executable.as_deref().unwrap_or(&self.comm)
    }

    /// The command line as `mode` allows it; `None` when it is not known.
    pub(super) fn command_line(&self, mode: CommandLineMode) -> Option<&str> {
        let line = self.line.get_or_init(|| {
            let arguments = self.arguments.strip_suffix('\0')?;
            let arguments: Vec<String> = arguments.split('\0').map(str::to_owned).collect();
            Some(match mode {
                CommandLineMode::None => return None,
                CommandLineMode::Redacted => shortened(
                    redact(self.executable.as_deref(), &arguments, self.cut).join(" "),
                    self.cut,
                ),
                CommandLineMode::Full => shortened(arguments.join(" "), self.cut),
            })
        });
        line.as_deref()
    }
}

/// The executable as far as the path given to exec tells it; relative paths stay as they are.
fn executable(path: &str, arguments: &[String], before: Option<&Program>) -> Option<String> {
    // A path of full length may have lost its end.
    if path.is_empty() || path.len() >= EXEC_PATH_MAX - 1 {
        return None;
    }
    if path == "/proc/self/exe" {
        return before.and_then(|before| before.executable.clone());
    }
    if path.starts_with("/proc/") || path.starts_with("/dev/fd/") {
        return None;
    }
    // A script: the kernel put the interpreter and at most one argument before the path.
    if let [interpreter, rest @ ..] = arguments
        && interpreter.starts_with('/')
        && interpreter != path
        && rest.iter().take(2).any(|argument| argument == path)
    {
        return Some(interpreter.clone());
    }
    Some(path.to_owned())
}

fn packed(arguments: &[String], mode: CommandLineMode) -> Box<str> {
    if mode == CommandLineMode::None {
        return Box::default();
    }
    let mut packed = String::with_capacity(arguments.iter().map(|argument| argument.len() + 1).sum());
    for argument in arguments {
        packed.push_str(argument);
        packed.push('\0');
    }
    packed.into_boxed_str()
}

fn shortened(mut line: String, cut: bool) -> String {
    let long = line.len() > COMMAND_LINE_OCTETS_MAX;
    if long {
        line.truncate(line.floor_char_boundary(COMMAND_LINE_OCTETS_MAX));
    }
    if long || cut {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(path: &str, arguments: &[&str]) -> Program {
        exec_after(path, arguments, None)
    }

    fn exec_after(path: &str, arguments: &[&str], before: Option<&Program>) -> Program {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.into()).collect();
        Program::executed(
            Some(path),
            &arguments,
            false,
            "comm".into(),
            before,
            CommandLineMode::Redacted,
        )
    }

    #[test]
    fn a_script_is_run_by_its_interpreter_as_proc_says_too() {
        for (path, arguments, executable) in [
            ("./x.sh", &["/bin/sh", "./x.sh", "a"][..], "/bin/sh"),
            (
                "/opt/x.py",
                &["/usr/bin/python3", "-u", "/opt/x.py"],
                "/usr/bin/python3",
            ),
            ("/bin/ls", &["ls", "/bin/ls"], "/bin/ls"),
            ("/bin/ls", &["/bin/ls", "/bin/ls"], "/bin/ls"),
            ("./tool", &["tool"], "./tool"),
            ("/usr/bin/curl", &[], "/usr/bin/curl"),
        ] {
            assert_eq!(
                exec(path, arguments).executable.as_deref(),
                Some(executable),
                "{path}"
            );
        }
    }

    #[test]
    fn a_path_that_names_no_file_is_no_executable() {
        let long = format!("/{}", "x".repeat(EXEC_PATH_MAX));
        for path in ["", "/dev/fd/3", "/proc/self/fd/7", "/proc/12/exe", &long] {
            assert_eq!(exec(path, &[]).executable, None, "{path}");
        }
        let before = exec("/usr/bin/runc", &[]);
        assert_eq!(exec("/proc/self/exe", &[]).executable, None);
        assert_eq!(
            exec_after("/proc/self/exe", &["init"], Some(&before))
                .executable
                .as_deref(),
            Some("/usr/bin/runc")
        );
    }

    #[test]
    fn the_mode_decides_what_a_command_line_tells() {
        let run = |mode| {
            let arguments = ["curl", "--password", "x1"].map(String::from);
            let program = Program::executed(Some("/bin/curl"), &arguments, false, "curl".into(), None, mode);
            program.command_line(mode).map(str::to_owned)
        };
        assert_eq!(run(CommandLineMode::None), None);
        assert_eq!(
            run(CommandLineMode::Redacted).as_deref(),
            Some("curl --password ***")
        );
        assert_eq!(run(CommandLineMode::Full).as_deref(), Some("curl --password x1"));
    }

    #[test]
    fn a_long_command_line_ends_in_an_ellipsis_on_a_character() {
        let arguments = ["ü".repeat(COMMAND_LINE_OCTETS_MAX)];
        let program = Program::executed(None, &arguments, false, "".into(), None, CommandLineMode::Full);
        let line = program
            .command_line(CommandLineMode::Full)
            .expect("it has arguments");
        assert_eq!(line.chars().count(), COMMAND_LINE_OCTETS_MAX / 2 + 1);
        assert!(line.ends_with('…'));
    }
}
