//! Finds the files that an operator names, and reads them.
//!
//! A path is a file, a directory (its `*.yaml` and `*.yml`, in the order of their names, not deeper), or `-`: stdin.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{TEXT_OCTETS_MAX, Text};
use crate::exit::UsageError;
use crate::output::harmless;

/// Most files of all paths together.
///
/// Half of it refuses a fleet of a directory a site; double it, and a wrong directory is read for longer.
const FILES_MAX: usize = 1_000;

/// Reads all of them. `stdin`: what `-` stands for.
///
/// # Errors
///
/// Each path that cannot be read, one line each.
pub(crate) fn read(paths: &[PathBuf], mut stdin: impl Read) -> Result<Vec<Text>, UsageError> {
    let mut lines = Vec::new();
    let mut texts = Vec::new();
    let mut taken = Vec::new();
    let mut stdin_taken = false;
    for path in paths {
        if path == Path::new("-") {
            if std::mem::replace(&mut stdin_taken, true) {
                lines.push("-f: \"-\" is there twice; stdin is read once".to_owned());
                continue;
            }
            keep("stdin", content(&mut stdin), &mut texts, &mut lines);
            continue;
        }
        match expand(path) {
            Ok(files) => taken.extend(files),
            Err(line) => lines.push(line),
        }
    }
    if taken.len() > FILES_MAX {
        let n = taken.len();
        lines.push(format!("-f: there are {n} files; name at most {FILES_MAX}"));
        taken.clear();
    }
    for path in taken {
        let read = File::open(&path).and_then(content);
        keep(&path.to_string_lossy(), read, &mut texts, &mut lines);
    }
    match lines.is_empty() {
        true => Ok(texts),
        false => Err(UsageError(lines)),
    }
}

fn keep(name: &str, read: io::Result<String>, texts: &mut Vec<Text>, lines: &mut Vec<String>) {
    match read {
        Ok(content) => texts.push(Text {
            name: name.to_owned(),
            content,
        }),
        Err(error) => lines.push(format!(
            "-f: {:?} cannot be read ({error}); name a YAML file",
            harmless(name)
        )),
    }
}

/// One octet more than is allowed shows that a text is too long.
fn content(source: impl Read) -> io::Result<String> {
    let mut octets = Vec::new();
    source.take(TEXT_OCTETS_MAX as u64 + 1).read_to_end(&mut octets)?;
    if octets.len() > TEXT_OCTETS_MAX {
        let why = format!("it is longer than {} KiB", TEXT_OCTETS_MAX >> 10);
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    String::from_utf8(octets).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// The path itself, or the files of a directory.
fn expand(path: &Path) -> Result<Vec<PathBuf>, String> {
    let shown = harmless(&path.to_string_lossy());
    let refused = |error: io::Error| {
        format!("-f: {shown:?} cannot be read ({error}); name a file, a directory, or - for stdin")
    };
    if !std::fs::metadata(path).map_err(refused)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(refused)? {
        let file = entry.map_err(refused)?.path();
        let hidden = file
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = file
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden && file.is_file() {
            files.push(file);
        }
        if files.len() > FILES_MAX {
            return Err(format!(
                "-f: {shown:?} has more than {FILES_MAX} files; name some of them"
            ));
        }
    }
    if files.is_empty() {
        return Err(format!(
            "-f: {shown:?} has no *.yaml and no *.yml in it; name a directory that has"
        ));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_its_yaml_files_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["b.yaml", "a.yml", "c.txt", ".hidden.yaml"] {
            std::fs::write(dir.path().join(name), name).expect("written");
        }
        std::fs::create_dir(dir.path().join("d.yaml")).expect("made");
        let texts = read(&[dir.path().to_owned(), "-".into()], &b"piped"[..]).expect("readable");
        let contents: Vec<_> = texts.iter().map(|text| text.content.as_str()).collect();
        assert_eq!(contents, ["piped", "a.yml", "b.yaml"]);
        assert_eq!(texts[0].name, "stdin");
    }

    #[test]
    fn what_cannot_be_read_is_told_all_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (long, binary) = (dir.path().join("long.yaml"), dir.path().join("binary.yaml"));
        std::fs::write(&long, vec![b'#'; TEXT_OCTETS_MAX + 1]).expect("written");
        std::fs::write(&binary, [0xff]).expect("written");
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).expect("made");
        let paths = [
            long,
            binary,
            empty,
            dir.path().join("none"),
            "-".into(),
            "-".into(),
        ];
        let refused = read(&paths, &b""[..]).expect_err("each is refused");
        assert_eq!(refused.0.len(), 5, "{refused}");
        assert!(
            refused
                .0
                .iter()
                .all(|line| line.starts_with("-f: ") && line.contains("; ")),
            "{refused}"
        );
    }
}
