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
mod tests {
    use super::*;
    use crate::package::{PACKAGES, programs};

    fn made(folder: &Path, name: &str, license: &str) -> Crate {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).expect("a folder");
        Crate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            source: Some("registry".to_owned()),
            license: Some(license.to_owned()),
            repository: Some("https://host.test/them/both/tree/main/one".to_owned()),
            authors: vec!["A. Author".to_owned()],
            manifest_path: folder.join("Cargo.toml"),
            links: None,
        }
    }

    fn sources(crates: &[&Crate]) -> Sources {
        let key = |it: &Crate| (it.name.clone(), it.version.clone());
        Sources {
            crates: crates.iter().map(|&it| (key(it), it.clone())).collect(),
            needs: crates.iter().map(|it| (key(it), BTreeSet::new())).collect(),
        }
    }

    /// The claim about the real programs: it fails when a crate comes in that has no notice.
    #[test]
    fn every_crate_that_is_linked_into_a_program_has_its_notices_and_no_other_is_named() {
        let sources = Sources::of(&PACKAGES).expect("cargo answers");
        let library = rust_library().expect("the toolchain has it");
        assert!(
            library.contains("hashbrown"),
            "Rust's library has dependencies of its own"
        );
        for package in PACKAGES {
            let parts = sources.parts(programs(package)).expect("each has a notice");
            // Some have a file with the name of the licence beside that with its text.
            for part in &parts {
                assert!(part.texts.iter().any(|text| text.len() > 400), "{part:?}");
            }
            let named = |name: &str| {
                let start = format!("{name} ");
                parts.iter().any(|part| part.name.starts_with(&start))
            };
            for linked in ["ring", "tokio", "rustls", "sled", "fxhash"] {
                assert!(named(linked), "{package} holds {linked}");
            }
            // A macro, what builds, what tests, ours.
            for other in [
                "serde_derive",
                "prost-build",
                "cargo-deb",
                "proptest",
                "flowtilla-proto",
            ] {
                assert!(!named(other), "{package} does not hold {other}");
            }
            // The agent's tests have it too.
            assert_eq!(named("zeromq"), package == "agentctl", "{package}");
            // Whoever brings another sees that the notices of its C are found.
            let foreign = sources.foreign(programs(package)).expect("it is one");
            assert_eq!(foreign, ["ring"], "{package}");
            let text = render(package, &parts, &library);
            for part in ["OpenSSL", "fiat-crypto", "Permission is hereby granted"] {
                assert!(text.contains(part), "{package}: {part}");
            }
            assert_eq!(text.matches("\n======== [1]\n").count(), 1);
        }
    }

    #[test]
    fn a_crate_without_a_text_whose_licence_is_not_known_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        for licence in ["MPL-2.0", "MIT AND Zlib", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
            let lone = made(folder.path(), "lone", licence);
            let refused = sources(&[&lone]).parts(&["lone"]).expect_err("it has none");
            let said = refused.to_string();
            assert!(
                said.starts_with("lone 1.0.0 comes without") && said.contains(licence),
                "{said}"
            );
        }
    }

    #[test]
    fn a_crate_without_a_text_has_its_siblings_or_the_standard_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let lone = made(folder.path(), "lone", "MIT");
        let told = |all: &[&Crate]| {
            sources(all).parts(&["lone"]).expect("it has one")[0]
                .texts
                .clone()
        };
        let standard = told(&[&lone]).concat();
        let holder = "Copyright (c) A. Author (https://host.test/them/both/tree/main/one)";
        assert!(
            standard.contains(holder) && !standard.contains("Flowtilla"),
            "{standard}"
        );
        assert_eq!(told(&[&made(folder.path(), "lone", "Apache-2.0/MIT")]), [APACHE]);

        let mut sibling = made(folder.path(), "sibling", "MIT");
        sibling.repository = Some("https://host.test/them/both.git".to_owned());
        fs::write(sibling.folder().join("LICENSE.md"), "theirs").expect("written");
        assert_eq!(told(&[&lone, &sibling]), ["theirs"]);
        sibling.license = Some("ISC".to_owned());
        assert_ne!(told(&[&lone, &sibling]), ["theirs"], "under another licence");
    }

    #[test]
    fn notices_are_found_by_name_wherever_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let it = made(folder.path(), "it", "MIT");
        for (path, text) in [
            ("COPYING", "a"),
            ("third_party/fiat/LICENSE", "b"),
            (".licenses/Somebody-MIT", "c"),
            ("src/license.rs", "code"),
            ("src/lib.rs", "code"),
        ] {
            let path = it.folder().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        let mut texts = own_texts(&it).expect("they can be read");
        texts.sort();
        assert_eq!(texts, ["a", "b", "c"]);
    }

    #[test]
    fn what_was_printed_before_keeps_what_it_needs() {
        let tree = "0one v0.1.0 (/here)\n1a v1.0.0\n2b v2.0.0+x\n1c v3.0.0\n2a v1.0.0 (*)\n\n0two v0.1.0 (/there)\n1c v3.0.0 (*)\n";
        let needs = needs(tree).expect("it is a tree");
        let of = |name: &str| {
            let found = needs.iter().find(|((it, _), _)| it == name).expect("it is there");
            found
                .1
                .iter()
                .map(|(name, version)| format!("{name} {version}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("one"), ["a 1.0.0", "c 3.0.0"]);
        assert_eq!(of("a"), ["b 2.0.0+x"]);
        assert_eq!(of("c"), ["a 1.0.0"]);
        assert_eq!(of("two"), ["c 3.0.0"]);
        for wrong in ["one v1", "0one", "1a v1.0.0"] {
            super::needs(wrong).expect_err("it is none");
        }
    }

    #[test]
    fn a_text_of_several_is_there_once_however_it_is_laid_out() {
        let part = |name: &str, texts: &[&str]| Part {
            name: name.to_owned(),
            licence: "MIT".to_owned(),
            texts: texts.iter().map(|&text| text.to_owned()).collect(),
        };
        let parts = [part("a 1", &["x\ny\n", "z"]), part("b 2", &["x  y"])];
        let text = render("it", &parts, &plain("<p>Rust&#39;s <b>own</b></p>\n\n"));
        let (_, rest) = text.split_once("a 1: ").expect("the list");
        let whole = "MIT [1, 2]\nb 2: MIT [1]\n\n======== [1]\n\nx\ny\n\n======== [2]\n\nz\n\n======== Rust's library\n\nRust's own\n";
        assert_eq!(rest, whole);
    }
}
