//! Notices of what the programs are made of beside Flowtilla's own: crates that are linked into them, Rust's library, and what
//! a linker adds.
//!
//! Which crates: those that `cargo tree` reaches from the programs by normal dependencies, macros left out, with the features
//! that one build of all packages gives. Texts: every file of a crate's source that is one by its name, C parts included; where
//! a crate comes without, that of a crate of the same repository and licence; else the standard text of its licence. The
//! sources are where cargo has unpacked them. Invariant: no crate goes without a text; one of which none is known is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::process::run;

/// How names of files with notices begin, in small letters.
const NAMES: [&str; 6] = [
    "copying",
    "copyright",
    "licence",
    "license",
    "notice",
    "unlicense",
];
/// A folder all of whose files are notices.
const FOLDER: &str = "licenses";
/// Folders in each other that are looked into: C parts have theirs three below a crate's own.
const DEPTH_MAX: usize = 6;
/// Octets of one text at most: the longest known one has 35 thousand.
const TEXT_OCTETS_MAX: u64 = 256 << 10;
/// Texts for crates that come without one, and what in the first is put in place of Flowtilla's authors.
const MIT: &str = include_str!("../../LICENSE-MIT");
const MIT_HOLDER: &str = "Copyright (c) 2026 The Flowtilla authors";
const APACHE: &str = include_str!("../../LICENSE-APACHE");
/// Notices of Rust's library, below the toolchain's folder.
const RUST: &str = "share/doc/rust/COPYRIGHT-library.html";

/// Something that a program holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name and version.
    pub name: String,
    /// What it may be used by, as SPDX writes it.
    pub licence: String,
    /// Its notices.
    pub texts: Vec<String>,
}

impl Part {
    /// One whose notices are in these files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(name: &str, licence: &str, files: &[PathBuf]) -> Result<Self> {
        let texts = files.iter().map(|file| read_text(file));
        Ok(Self {
            name: name.to_owned(),
            licence: licence.to_owned(),
            texts: texts.collect::<Result<_>>()?,
        })
    }
}

/// Name and version of a crate.
type Key = (String, String);

/// Crates of this workspace, where their sources are, and which is linked into which.
#[derive(Debug)]
pub struct Sources {
    crates: BTreeMap<Key, Crate>,
    needs: BTreeMap<Key, BTreeSet<Key>>,
}

/// What `cargo metadata` says of one.
#[derive(Clone, Debug, Deserialize)]
struct Crate {
    name: String,
    version: String,
    /// `None`: it is of this workspace.
    source: Option<String>,
    license: Option<String>,
    repository: Option<String>,
    authors: Vec<String>,
    manifest_path: PathBuf,
    /// What it brings that is not Rust.
    links: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
}

impl Sources {
    /// Asks cargo about what a build of these packages links.
    ///
    /// # Errors
    /// When cargo does not answer, or tells of a crate in one answer only.
    pub fn of(packages: &[&str]) -> Result<Self> {
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let mut tree = cargo(&["tree", "--locked", "--target", &triple]);
        tree.args([
            "--edges",
            "normal,no-proc-macro",
            "--prefix",
            "depth",
            "--format",
            "{p}",
        ]);
        for package in packages {
            tree.args(["--package", package]);
        }
        let needs = needs(&run(&mut tree)?)?;
        let mut metadata = cargo(&["metadata", "--locked", "--format-version", "1"]);
        metadata.args(["--filter-platform", &triple]);
        let told: Metadata =
            serde_json::from_str(&run(&mut metadata)?).context("what cargo metadata says")?;
        let key = |it: Crate| ((it.name.clone(), it.version.clone()), it);
        let crates: BTreeMap<Key, Crate> = told.packages.into_iter().map(key).collect();
        for (name, version) in needs.keys().chain(needs.values().flatten()) {
            let known = crates.contains_key(&(name.clone(), version.clone()));
            ensure!(
                known,
                "cargo metadata does not know {name} {version}, which cargo tree lists"
            );
        }
        Ok(Self { crates, needs })
    }

    /// Crates of others that programs hold, in order.
    ///
    /// # Errors
    /// A crate without a notice, or one that cannot be read.
    pub fn parts(&self, programs: &[&str]) -> Result<Vec<Part>> {
        let part = |it: &Crate| {
            Ok(Part {
                name: format!("{} {}", it.name, it.version),
                licence: it.licence(),
                texts: self.texts(it)?,
            })
        };
        self.linked(programs)?.into_iter().map(part).collect()
    }

    /// What these programs hold that is not Rust: crates that bring it.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn foreign(&self, programs: &[&str]) -> Result<Vec<&str>> {
        let linked = self.linked(programs)?.into_iter();
        Ok(linked
            .filter(|it| it.links.is_some())
            .map(|it| it.name.as_str())
            .collect())
    }

    fn linked(&self, programs: &[&str]) -> Result<Vec<&Crate>> {
        let mut reached = BTreeSet::new();
        for &program in programs {
            let key = self.needs.keys().find(|(name, _)| name == program);
            let mut waiting = vec![key.with_context(|| format!("{program} is no package of this build"))?];
            while let Some(key) = waiting.pop() {
                if reached.insert(key) {
                    waiting.extend(self.needs.get(key).into_iter().flatten());
                }
            }
        }
        let known = reached.into_iter().filter_map(|key| self.crates.get(key));
        Ok(known.filter(|it| it.source.is_some()).collect())
    }

    fn texts(&self, of: &Crate) -> Result<Vec<String>> {
        let own = own_texts(of)?;
        if !own.is_empty() {
            return Ok(own);
        }
        if let Some(repository) = of.repository() {
            let same = |it: &&Crate| it.repository() == Some(repository) && it.licence() == of.licence();
            for sibling in self.crates.values().filter(same) {
                let texts = own_texts(sibling)?;
                if !texts.is_empty() {
                    return Ok(texts);
                }
            }
        }
        let (name, version, licence) = (&of.name, &of.version, of.licence());
        let standard = standard(of).with_context(|| {
            format!(
                "{name} {version} comes without the text of its licence, \"{licence}\", and neither has one of its repository: do \
                 without the crate, or have integration/src/notices.rs know the text"
            )
        })?;
        Ok(vec![standard])
    }
}

impl Crate {
    /// As SPDX writes it; crates from before wrote a stroke for "or".
    fn licence(&self) -> String {
        let written = self.license.as_deref().unwrap_or("see its text");
        let parts: Vec<&str> = written.split('/').map(str::trim).collect();
        parts.join(" OR ")
    }

    /// Without what names a part of it.
    fn repository(&self) -> Option<&str> {
        let whole = self.repository.as_deref()?;
        let whole = whole.split_once("/tree/").map_or(whole, |(whole, _)| whole);
        Some(whole.trim_end_matches('/').trim_end_matches(".git"))
    }

    fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("/"))
    }
}

/// A text of the choices that a crate gives; `None`: none of them is known here.
fn standard(of: &Crate) -> Option<String> {
    let licence = of.licence();
    let choices: Vec<&str> = licence.split(" OR ").collect();
    if choices.contains(&"Apache-2.0") {
        return Some(APACHE.to_owned());
    }
    choices.contains(&"MIT").then(|| {
        let who = match of.authors.is_empty() {
            true => format!("the authors of {}", of.name),
            false => of.authors.join(", "),
        };
        let place = of
            .repository
            .as_ref()
            .map_or_else(String::new, |at| format!(" ({at})"));
        MIT.replace(MIT_HOLDER, &format!("Copyright (c) {who}{place}"))
    })
}

/// Who needs whom, of a tree whose lines begin with their depth. What was printed before is printed without what it needs.
fn needs(tree: &str) -> Result<BTreeMap<Key, BTreeSet<Key>>> {
    let mut needs: BTreeMap<Key, BTreeSet<Key>> = BTreeMap::new();
    let mut above: Vec<Key> = Vec::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let read = || {
            let digits = line.find(|c: char| !c.is_ascii_digit())?;
            let depth: usize = line[..digits].parse().ok()?;
            let (name, rest) = line[digits..].split_once(" v")?;
            let version = rest.split(' ').next()?;
            (depth <= above.len()).then(|| (depth, (name.to_owned(), version.to_owned())))
        };
        let (depth, key) = read().with_context(|| format!("cargo tree says \"{line}\""))?;
        above.truncate(depth);
        if let Some(parent) = above.last() {
            needs.entry(parent.clone()).or_default().insert(key.clone());
        }
        needs.entry(key.clone()).or_default();
        above.push(key);
    }
    Ok(needs)
}

fn own_texts(of: &Crate) -> Result<Vec<String>> {
    let mut files = Vec::new();
    find(of.folder(), DEPTH_MAX, &mut files)
        .with_context(|| format!("look into {}", of.folder().display()))?;
    files.sort();
    files.iter().map(|file| read_text(file)).collect()
}

/// Files with notices in a folder and those in it; links are not followed.
fn find(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let all = folder.file_name().is_some_and(|name| {
        let name = name.to_string_lossy().to_lowercase();
        name.trim_start_matches('.') == FOLDER
    });
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && depth > 0 {
            find(&path, depth - 1, found)?;
        }
        let name = entry.file_name().to_string_lossy().to_lowercase();
        let named = NAMES.iter().any(|start| name.starts_with(start));
        if kind.is_file() && (all || named) && !name.ends_with(".rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn read_text(file: &Path) -> Result<String> {
    let shown = file.display();
    let octets = fs::metadata(file).with_context(|| format!("read {shown}"))?.len();
    ensure!(
        octets <= TEXT_OCTETS_MAX,
        "{shown} has {octets} octets, too many for a notice"
    );
    let octets = fs::read(file).with_context(|| format!("read {shown}"))?;
    Ok(String::from_utf8_lossy(&octets).into_owned())
}

/// Notices of Rust's own library, as the toolchain brings them.
///
/// # Errors
/// When it brings none.
pub fn rust_library() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let root = run(Command::new(rustc)
        .current_dir(root())
        .args(["--print", "sysroot"]))?;
    let path = Path::new(root.trim()).join(RUST);
    let html = fs::read_to_string(&path)
        .with_context(|| format!("read {}: rustup's toolchains have it", path.display()))?;
    Ok(plain(&html))
}

/// What a page says, without its marks and without empty lines.
fn plain(html: &str) -> String {
    let mut text = String::new();
    for (n, piece) in html.split('<').enumerate() {
        let shown = match n {
            0 => piece,
            _ => piece.split_once('>').map_or("", |(_, shown)| shown),
        };
        text.push_str(shown);
    }
    for (written, meant) in [
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#60;", "<"),
        ("&#62;", ">"),
        ("&#x27;", "'"),
        ("&quot;", "\""),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#38;", "&"),
        ("&amp;", "&"),
    ] {
        text = text.replace(written, meant);
    }
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// One text: what a package's programs hold, and each notice once, under a number by which those that have it name it.
#[must_use]
pub fn render(package: &str, parts: &[Part], rust_library: &str) -> String {
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut texts = Vec::new();
    let mut list = String::new();
    for part in parts {
        let mut own = BTreeSet::new();
        for text in &part.texts {
            let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
            let next = numbers.len() + 1;
            // The same text is laid out in many ways.
            let words: Vec<&str> = text.split_whitespace().collect();
            let number = *numbers.entry(words.join(" ")).or_insert_with(|| {
                texts.push(lines.join("\n"));
                next
            });
            own.insert(number);
        }
        let own: Vec<String> = own.iter().map(usize::to_string).collect();
        let _ = writeln!(list, "{}: {} [{}]", part.name, part.licence, own.join(", "));
    }
    let mut text = format!(
        "What {package} is made of beside Flowtilla's own, whose licence is in the file copyright.\n\n\
         Each line: name and version, licence, and in brackets the numbers of its notices below. The notices of Rust's\n\
         library are at the end.\n\n{list}"
    );
    for (n, notice) in texts.iter().enumerate() {
        let _ = write!(text, "\n======== [{}]\n\n{notice}\n", n + 1);
    }
    let _ = write!(text, "\n======== Rust's library\n\n{rust_library}");
    text
}

/// The cargo that started this process, or the one on the PATH.
fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(words);
    command
}

fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

#[cfg(test)]
mod tests;
