//! What is delivered with the real programs, and what becomes of crates that come without a text.

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
        // The controller's allocator; agentctl has the rest of the controller.
        let allocator = package != "flowtilla-agent";
        let brought: &[&str] = match allocator {
            true => &["libmimalloc-sys", "ring"],
            false => &["ring"],
        };
        assert_eq!(foreign, brought, "{package}");
        let text = render(package, &parts, &library);
        assert_eq!(
            text.contains("Microsoft Corporation, Daan Leijen"),
            allocator,
            "{package}"
        );
        for part in [
            "sourced from BoringSSL",
            "fiat-crypto authors",
            "is hereby granted",
        ] {
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
