//! What passed, what failed, what was skipped and why: read from the lines that cargo and its tests print.

use integration::need::SKIPPED;

/// The count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    skips: Vec<String>,
    /// Of `skips`, those that cargo counts as passed.
    skipped_tests: u64,
    failures: Vec<String>,
    /// Tests that failed, and passed when they were run once more.
    unsteady: Vec<String>,
    /// cargo's own closing line of each test binary.
    closing: Vec<String>,
    /// Test binaries that have begun.
    begun: usize,
    /// The test whose output is read.
    test: String,
    part: Part,
    cargo_failed: bool,
}

/// Where in the output of a test binary a line stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    /// Names and verdicts.
    #[default]
    Verdicts,
    /// What passed tests printed.
    Passed,
    /// What failed tests printed.
    Failed,
}

impl Tally {
    /// A step besides the tests ended.
    pub(crate) fn step(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(format!("step {name}"));
        }
    }

    /// Something was left out.
    pub(crate) fn skip(&mut self, what: &str, reason: &str) {
        println!("{what}: {SKIPPED}{reason}");
        self.skips.push(format!("{what}: {reason}"));
    }

    /// Takes a line of the tests' output; whether it is to be shown.
    ///
    /// What passed tests print is read for skips and not shown.
    pub(crate) fn take(&mut self, line: &str) -> bool {
        match line.trim_end() {
            "successes:" => self.part = Part::Passed,
            "failures:" => self.part = Part::Failed,
            _ if line.starts_with("test result: ") => self.take_result(line),
            begin if begins_binary(begin) => {
                self.begun += 1;
                self.part = Part::Verdicts;
            }
            _ => self.take_within(line),
        }
        self.part != Part::Passed
    }

    /// cargo test ended. When it failed although no test did, that is a failure too, and so is a binary without a result.
    pub(crate) fn cargo_ended(&mut self, success: bool) {
        if !success && self.failures.is_empty() {
            self.failed += 1;
            self.failures.push("cargo test itself".to_owned());
        } else if !success && self.begun > self.closing.len() {
            self.failed += 1;
            self.failures
                .push("a test binary that ended without a result".to_owned());
        }
        self.cargo_failed = !success;
    }

    /// Names of the tests that failed; empty when something else did too, such as a step.
    pub(crate) fn failed_tests(&self) -> Vec<String> {
        let names = self.failures.iter().map(|name| name.strip_prefix("test "));
        names
            .map(|name| name.map(str::to_owned))
            .collect::<Option<_>>()
            .unwrap_or_default()
    }

    /// Whether one test ran here, and passed.
    pub(crate) fn is_one_pass(&self) -> bool {
        self.passed == 1 && self.failed == 0 && self.skips.is_empty() && !self.cargo_failed
    }

    /// A test that had failed passed when it was run once more.
    pub(crate) fn passed_again(&mut self, name: &str) {
        self.failures.retain(|failure| failure != &format!("test {name}"));
        self.unsteady.push(format!("test {name}"));
        self.failed -= 1;
        // cargo failed for its failed tests.
        self.cargo_failed &= self.failed > 0;
    }

    /// Prints the end; whether all passed.
    pub(crate) fn tell(&self) -> bool {
        if !self.skips.is_empty() {
            println!("\nskipped:");
            for skip in &self.skips {
                println!("  {skip}");
            }
        }
        if !self.unsteady.is_empty() {
            println!("\nunsteady: failed, and passed when run once more (see above for what they said):");
            for test in &self.unsteady {
                println!("  {test}");
            }
        }
        if !self.failures.is_empty() {
            println!("\nfailed:");
            for failure in &self.failures {
                println!("  {failure}");
            }
        }
        println!();
        for line in &self.closing {
            println!("{line}");
        }
        println!("{}", self.summary());
        self.is_passed()
    }

    fn is_passed(&self) -> bool {
        self.failed == 0 && !self.cargo_failed
    }

    fn summary(&self) -> String {
        let unsteady = match self.unsteady.len() {
            0 => String::new(),
            n => format!(", {n} unsteady"),
        };
        format!(
            "{} passed, {} failed{unsteady}, {} skipped",
            // A test that skips itself is one that passed to cargo.
            self.passed.saturating_sub(self.skipped_tests),
            self.failed,
            self.skips.len()
        )
    }

    fn take_result(&mut self, line: &str) {
        self.part = Part::Verdicts;
        self.closing.push(line.to_owned());
        let count = |what: &str| -> u64 {
            let words: Vec<&str> = line.split([' ', ';']).filter(|word| !word.is_empty()).collect();
            let at = words.iter().position(|word| *word == what);
            at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok())
                .unwrap_or(0)
        };
        self.passed += count("passed");
        self.failed += count("failed");
    }

    fn take_within(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            name.clone_into(&mut self.test);
        } else if let Some(at) = line.find(SKIPPED).filter(|_| self.part == Part::Passed) {
            let reason = &line[at + SKIPPED.len()..];
            self.skips.push(format!("test {}: {reason}", self.test));
            self.skipped_tests += 1;
        } else if self.part == Part::Verdicts
            && let Some(name) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(format!("test {name}"));
        } else if self.part == Part::Verdicts
            && let Some((name, reason)) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.split_once(" ... ignored"))
        {
            let reason = reason.trim_start_matches([',', ' ']);
            let reason = if reason.is_empty() {
                "marked so in its source"
            } else {
                reason
            };
            self.skips.push(format!("test {name}: ignored, {reason}"));
        }
    }
}

/// Whether a line is what a test binary says first: `running 3 tests`.
fn begins_binary(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    matches!(words[..], ["running", count, "test" | "tests"] if count.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_of_passed_tests_are_counted_apart() {
        let mut tally = Tally::default();
        let output = "\nrunning 4 tests\ntest d ... ignored, slow\ntest a ... ok\ntest b ... ok\ntest c ... FAILED\n\nsuccesses:\n\n---- b stdout ----\n\
                      skipped: needs root\n\nsuccesses:\n    a\n    b\n\nfailures:\n\n---- c stdout ----\nskipped: no\n\n\
                      failures:\n    c\n\ntest result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; \
                      finished in 0.00s\n";
        let shown: Vec<&str> = output.lines().filter(|line| tally.take(line)).collect();
        assert_eq!(tally.summary(), "1 passed, 1 failed, 2 skipped");
        assert_eq!(tally.skips[0], "test d: ignored, slow");
        assert!(!shown.contains(&"skipped: needs root") && shown.contains(&"skipped: no"));
        assert_eq!(tally.failures, ["test c"]);
    }

    #[test]
    fn a_test_that_passes_once_more_is_told_and_fails_nothing() {
        let mut tally = Tally::default();
        let output = "running 2 tests\ntest a ... ok\ntest b::c ... FAILED\n\nsuccesses:\n    a\n\nfailures:\n\n---- b::c stdout \
                      ----\nError: late\n\nfailures:\n    b::c\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; \
                      0 filtered out; finished in 0.00s\n";
        for line in output.lines() {
            tally.take(line);
        }
        tally.cargo_ended(false);
        assert_eq!(tally.failed_tests(), ["b::c"]);
        let mut second = Tally::default();
        assert!(!second.is_one_pass());
        for line in [
            "running 0 tests",
            "test result: ok. 0 passed; 0 failed",
            "running 1 test",
        ] {
            second.take(line);
        }
        assert!(!second.is_one_pass());
        second.take("test result: ok. 1 passed; 0 failed");
        second.cargo_ended(true);
        assert!(second.is_one_pass());
        tally.passed_again("b::c");
        assert_eq!(tally.summary(), "1 passed, 0 failed, 1 unsteady, 0 skipped");
        assert!(tally.is_passed());
        tally.failures.push("step lints".to_owned());
        assert!(tally.failed_tests().is_empty());
    }

    #[test]
    fn a_binary_that_dies_beside_a_failed_test_lets_nothing_run_once_more() {
        let mut tally = Tally::default();
        for line in [
            "running 2 tests",
            "test a ... FAILED",
            "test result: FAILED. 1 passed; 1 failed",
            "running 7 tests",
            "test b ... ok",
        ] {
            tally.take(line);
        }
        tally.cargo_ended(false);
        assert!(tally.failed_tests().is_empty(), "{:?}", tally.failures);
        assert_eq!(tally.summary(), "1 passed, 2 failed, 0 skipped");
    }

    #[test]
    fn death_of_cargo_without_a_result_is_a_failure() {
        let mut tally = Tally::default();
        tally.step("build", true);
        tally.cargo_ended(false);
        assert_eq!(tally.summary(), "1 passed, 1 failed, 0 skipped");
        assert!(!tally.tell());
    }
}
