//! Who holds a lock on a file, without trying it: an agent that starts at this moment must find its lock free.
//!
//! Source: proc_locks(5).

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A file: major and minor number of its device, inode.
type FileId = (u32, u32, u64);

/// The flock(2) locks of this host, as far as this PID namespace sees them.
#[derive(Debug, Default)]
pub(super) struct Locks(HashMap<FileId, u32>);

impl Locks {
    /// Reads them; none when the kernel does not tell.
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/locks").unwrap_or_default())
    }

    /// Process that holds a lock on the file.
    pub(super) fn holder(&self, path: &Path) -> Option<u32> {
        let metadata = fs::metadata(path).ok()?;
        let device = metadata.dev();
        let id = (
            rustix::fs::major(device),
            rustix::fs::minor(device),
            metadata.ino(),
        );
        self.0.get(&id).copied()
    }

    fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(parse_line).collect())
    }
}

/// `1: FLOCK  ADVISORY  WRITE 4242 fe:01:131 0 EOF`. One that waits has `->` after its number.
fn parse_line(line: &str) -> Option<(FileId, u32)> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let process = words.nth(2)?.parse().ok()?;
    let mut id = words.next()?.split(':');
    let major = u32::from_str_radix(id.next()?, 16).ok()?;
    let minor = u32::from_str_radix(id.next()?, 16).ok()?;
    Some(((major, minor, id.next()?.parse().ok()?), process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_that_are_held_are_told_and_those_that_wait_are_not() {
        let locks = Locks::parse(
            "1: FLOCK  ADVISORY  WRITE 4242 fe:01:131 0 EOF\n\
             1: -> FLOCK  ADVISORY  WRITE 4243 fe:01:132 0 EOF\n\
             2: POSIX  ADVISORY  WRITE 4244 fe:01:133 0 EOF\n\
             3: FLOCK\n",
        );
        assert_eq!(locks.0, HashMap::from([((0xfe, 1, 131), 4242)]));
    }

    #[test]
    fn this_process_is_found_by_its_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Locks::read().holder(file.path()), None);
        file.as_file().try_lock().unwrap();
        assert_eq!(Locks::read().holder(file.path()), Some(std::process::id()));
    }
}
