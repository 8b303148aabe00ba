//! Where root makes no state: below a directory that is private to another user, whose controller could not use it.
//!
//! A service has its state there (`StateDirectoryMode=0700`). A directory that others may enter says nothing about who is to use what
//! is made in it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::StateError;

/// Looks at the directory that a state is to be made in.
///
/// # Errors
///
/// [`StateError::Foreign`]: it is private to another user, and we are root.
pub(super) fn check(state: &Path) -> Result<(), StateError> {
    let parent = state.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    // What is not there is told by whoever makes something in it.
    let Ok(facts) = fs::metadata(parent) else {
        return Ok(());
    };
    let (owner, user) = (facts.uid(), rustix::process::geteuid().as_raw());
    match is_anothers(facts.mode(), owner, user) {
        true => Err(StateError::Foreign {
            path: parent.to_owned(),
            owner,
            user,
        }),
        false => Ok(()),
    }
}

/// Whether a directory of this mode and owner is private to another user, and open to us because we are root.
fn is_anothers(mode: u32, owner: u32, user: u32) -> bool {
    user == 0 && owner != 0 && mode & 0o077 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_to_another_user_is_not_roots_to_use() {
        assert!(is_anothers(0o40_700, 998, 0));
        for (mode, owner, user) in [
            (0o40_700, 0, 0),
            (0o40_700, 998, 998),
            (0o40_755, 998, 0),
            (0o41_777, 998, 0),
        ] {
            assert!(!is_anothers(mode, owner, user), "{mode:o} {owner} {user}");
        }
    }
}
