//! Reads the rule file and answers what a name, a flag or a word means.
//!
//! In: `redact_rules.txt`, whose head specifies the format. Out: [`Rules`], made once. Decides nothing about positions.

use std::sync::LazyLock;

const FILE: &str = include_str!("../redact_rules.txt");

/// Most short options that are looked through in one word; curl is called with six.
const CLUSTER_MAX: usize = 12;

/// Why a line of the rule file is no rule.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum RuleError {
    #[error("line {line}: no such kind of rule: {kind:?}")]
    Kind { line: usize, kind: String },
    #[error("line {line}: a flag rule is PROGRAM,… FLAG,… joined|next|both|cluster")]
    Flag { line: usize },
    #[error("line {line}: a rule without words")]
    Empty { line: usize },
}

/// Where a program's flag has its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Joined,
    Next,
    Both,
    /// In the next word, behind other short options too: `-xw SECRET`.
    Cluster,
}

#[derive(Debug, PartialEq, Eq)]
struct Flag {
    programs: Vec<String>,
    flags: Vec<String>,
    mode: Mode,
}

/// The rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    contains: Vec<String>,
    ends: Vec<String>,
    words: Vec<String>,
    plain: Vec<String>,
    bare: Vec<String>,
    schemes: Vec<String>,
    userpass: Vec<String>,
    prefixes: Vec<String>,
    blocks: Vec<String>,
    long: Vec<String>,
    flags: Vec<Flag>,
}

/// The rules of `redact_rules.txt`.
pub(super) fn rules() -> &'static Rules {
    static RULES: LazyLock<Rules> =
        LazyLock::new(|| Rules::parse(FILE).expect("a test parses the rule file that is compiled in"));
    &RULES
}

impl Rules {
    pub(super) fn parse(file: &str) -> Result<Self, RuleError> {
        let mut rules = Self::default();
        for (at, text) in file.lines().enumerate() {
            let line = at + 1;
            let text = text.split('#').next().unwrap_or_default();
            let mut words = text.split_whitespace().map(str::to_owned);
            let Some(kind) = words.next() else { continue };
            let words: Vec<String> = words.collect();
            if words.is_empty() {
                return Err(RuleError::Empty { line });
            }
            let list = match kind.as_str() {
                "contains" => &mut rules.contains,
                "ends" => &mut rules.ends,
                "word" => &mut rules.words,
                "plain" => &mut rules.plain,
                "bare" => &mut rules.bare,
                "scheme" => &mut rules.schemes,
                "userpass" => &mut rules.userpass,
                "prefix" => &mut rules.prefixes,
                "block" => &mut rules.blocks,
                "long" => &mut rules.long,
                "flag" => {
                    rules
                        .flags
                        .push(Flag::parse(&words).ok_or(RuleError::Flag { line })?);
                    continue;
                }
                _ => return Err(RuleError::Kind { line, kind }),
            };
            list.extend(words);
        }
        Ok(rules)
    }

    /// Whether what is called `name` is a secret.
    pub(super) fn is_secret_name(&self, name: &str) -> bool {
        let packed = pack(name);
        if packed.is_empty() || self.plain.contains(&packed) {
            return false;
        }
        self.contains.iter().any(|word| packed.contains(word.as_str()))
            || self.ends.iter().any(|word| packed.ends_with(word.as_str()))
            || words(name).any(|word| self.words.contains(&word))
    }

    /// Whether the word after this one, which is no option, is a secret.
    pub(super) fn is_bare(&self, word: &str) -> bool {
        let packed = pack(word);
        self.bare.contains(&packed)
    }

    /// Whether the word after this one is a secret: `Bearer`.
    pub(super) fn is_scheme(&self, word: &str) -> bool {
        self.schemes
            .iter()
            .any(|scheme| scheme.eq_ignore_ascii_case(word))
    }

    /// What follows an option with `user:secret` in the same word; empty when that is the next word. A short option may stand behind
    /// others: `-su user:secret`, `-suuser:secret`.
    pub(super) fn after_userpass<'a>(&self, unit: &'a str) -> Option<&'a str> {
        self.userpass_at_the_front(unit)
            .or_else(|| self.userpass_behind_others(unit))
    }

    fn userpass_behind_others<'a>(&self, unit: &'a str) -> Option<&'a str> {
        let body = unit.strip_prefix('-')?;
        let letters = body
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(body.len());
        let is_one = |at: usize| {
            let letter = &body[at..=at];
            self.userpass
                .iter()
                .any(|flag| flag.strip_prefix('-') == Some(letter))
        };
        let at = (1..letters.min(CLUSTER_MAX)).find(|at| is_one(*at))?;
        let rest = &body[at + 1..];
        let is_pair = rest
            .split_once([':', '%', ','])
            .is_some_and(|(user, _)| !user.contains('='));
        // Anything else is some other word.
        (rest.is_empty() || is_pair).then_some(rest)
    }

    fn userpass_at_the_front<'a>(&self, unit: &'a str) -> Option<&'a str> {
        self.userpass.iter().find_map(|flag| {
            let rest = unit.strip_prefix(flag.as_str())?;
            if flag.starts_with("--") && !rest.is_empty() {
                return rest.strip_prefix('=').filter(|rest| !rest.is_empty());
            }
            Some(rest)
        })
    }

    /// The beginning that betrays a secret, if `word` has one.
    pub(super) fn prefix_of(&self, word: &str) -> Option<&str> {
        self.prefixes
            .iter()
            .map(String::as_str)
            .find(|prefix| word.starts_with(prefix))
    }

    /// Where text begins whose whole rest is a secret.
    pub(super) fn block_in(&self, text: &str) -> Option<usize> {
        self.blocks
            .iter()
            .filter_map(|block| text.find(block.as_str()))
            .min()
    }

    /// Whether this is a whole option that only looks like `-pVALUE`.
    pub(super) fn is_long(&self, unit: &str) -> bool {
        let option = unit.split(['=', ':']).next().unwrap_or_default();
        self.long.iter().any(|long| long == option)
    }

    /// Adds the number of each flag rule of this program.
    pub(super) fn activate(&self, program: &str, active: &mut Vec<usize>) {
        for (at, flag) in self.flags.iter().enumerate() {
            if flag.is_of(program) && !active.contains(&at) {
                active.push(at);
            }
        }
    }

    /// What is left of `unit` after a flag of the active rules, and where that flag has its secret.
    pub(super) fn after_flag<'a>(
        &'a self,
        unit: &'a str,
        active: &'a [usize],
    ) -> impl Iterator<Item = (&'a str, Mode)> {
        active.iter().flat_map(move |&at| {
            let rule = &self.flags[at];
            rule.flags
                .iter()
                .filter_map(move |flag| Some((rule.mode.after(unit, flag)?, rule.mode)))
        })
    }
}

impl Mode {
    /// What of a word follows this flag.
    fn after<'a>(self, unit: &'a str, flag: &str) -> Option<&'a str> {
        if self != Self::Cluster {
            return unit.strip_prefix(flag);
        }
        let others = unit.strip_prefix('-')?.strip_suffix(flag.strip_prefix('-')?)?;
        others
            .bytes()
            .all(|octet| octet.is_ascii_alphabetic())
            .then_some("")
    }
}

impl Flag {
    fn parse(words: &[String]) -> Option<Self> {
        let [programs, flags, mode] = words else {
            return None;
        };
        let list = |text: &str| text.split(',').map(str::to_owned).collect();
        Some(Self {
            programs: list(programs),
            flags: list(flags),
            mode: match mode.as_str() {
                "joined" => Mode::Joined,
                "next" => Mode::Next,
                "both" => Mode::Both,
                "cluster" => Mode::Cluster,
                _ => return None,
            },
        })
    }

    fn is_of(&self, program: &str) -> bool {
        self.programs.iter().any(|name| match name.strip_suffix('*') {
            Some(begin) => program.starts_with(begin),
            None => program == name,
        })
    }
}

/// The name in lower case, letters and digits only.
fn pack(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// The words of `DB_PASS`, `x-auth-user` and `authToken`, in lower case.
fn words(name: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut before_lower = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || (c.is_ascii_uppercase() && before_lower) {
            words.push(String::new());
        }
        before_lower = c.is_ascii_lowercase();
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.into_iter().filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_file_is_sound() {
        let rules = Rules::parse(FILE).expect("every line is a rule");
        for list in [
            &rules.contains,
            &rules.ends,
            &rules.words,
            &rules.plain,
            &rules.bare,
        ] {
            assert!(!list.is_empty());
            assert!(
                list.iter().all(|word| pack(word) == *word),
                "compared packed, so written packed: {list:?}"
            );
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let parse = |file| Rules::parse(file).expect_err("not a rule");
        assert_eq!(
            parse("# ok\nname x"),
            RuleError::Kind {
                line: 2,
                kind: "name".into()
            }
        );
        assert_eq!(parse("word"), RuleError::Empty { line: 1 });
        assert_eq!(parse("flag mysql -p"), RuleError::Flag { line: 1 });
        assert_eq!(parse("flag mysql -p sometimes"), RuleError::Flag { line: 1 });
    }

    #[test]
    fn names_of_secrets_are_known_and_others_are_not() {
        let rules = rules();
        for name in [
            "password",
            "PGPASSWORD",
            "MYSQL_PWD",
            "AWS_SECRET_ACCESS_KEY",
            "api-key",
            "apiKey",
            "X-Api-Key",
            "authToken",
            "DB_PASS",
            "Authorization",
            "key",
        ] {
            assert!(rules.is_secret_name(name), "{name}");
        }
        for name in [
            "",
            "-",
            "user",
            "host",
            "port",
            "output",
            "passive",
            "keyboard",
            "PATH",
            "password-stdin",
            "no-password",
        ] {
            assert!(!rules.is_secret_name(name), "{name}");
        }
    }
}
