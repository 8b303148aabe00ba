//! Names of users and groups: the host's, and those of other root file systems.
//!
//! In: the folder of a process, ids. Out: the [`Scope`] the process sees, and names in it. A process in our mount namespace
//! and root, or with the same passwd file, is in the host's scope. For any other its own `/etc/passwd` and `/etc/group` are
//! read once, kept by the identity of the file (device, inode, size, times) and its user namespace's id maps, and given a
//! number that is never used again; so a changed file is another scope.
//!
//! A container's files are hostile input: found below its root without following any link (`openat2`), only when the
//! mounts on the way are of local file systems (a FUSE server could make us wait; an overlay that a user namespace has mounted may
//! lie on one), only when they are regular files, at most [`LIST_OCTETS_MAX`]. What is kept of them is bounded
//! ([`NAMES_MAX`], [`KEPT_OCTETS_MAX`]). Ids are those of the kernel's first user namespace, mapped as the process's maps say.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use flowtilla_agent_core::enrich::Scope;
use nix::unistd::{Gid, Group, Uid, User};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::folder::{Proc, ProcessFolder};
use super::{PASS, mounts, open_to_read, read_at_most, unescaped};

/// Most octets of a passwd or group file. About 10,000 users; what is larger counts as unreadable.
const LIST_OCTETS_MAX: usize = 1 << 20;
/// Most lists kept; the oldest goes. A node has at most some hundred containers, most of few images.
const LISTS_MAX: usize = 256;
/// Most names kept of a list, the first ones. An image has some thirty.
const NAMES_MAX: usize = 4_096;
/// Longest name kept, in octets. Source: Linux `LOGIN_NAME_MAX`.
const NAME_OCTETS_MAX: usize = 255;
/// Most octets that all lists together take, about; the oldest goes. Lists of 256 images with a hundred names each.
const KEPT_OCTETS_MAX: usize = 4 << 20;
/// What an entry takes beside its name, about.
const ENTRY_OCTETS: usize = 64;
/// Most octets of an id map: 340 lines, as many as the kernel takes.
const MAP_OCTETS_MAX: usize = 16 << 10;
/// Most octets of mountinfo: about 2,000 mounts; with more, a scope counts as unreadable.
const MOUNTINFO_OCTETS_MAX: usize = 256 << 10;

/// File systems that answer by themselves.
const LOCAL: &[&str] = &[
    "aufs", "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "iso9660", "overlay", "ramfs",
    "rootfs", "squashfs", "tmpfs", "xfs", "zfs",
];
/// The one among them whose layers may be of any other.
const LAYERED: &str = "overlay";
/// Mount points on the way to the files.
const ON_THE_WAY: &[&str] = &["/", "/etc", "/etc/passwd", "/etc/group"];

/// What makes two lists the same.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    passwd: FileId,
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
}

/// A file as it was: a write changes its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

/// Names by id.
#[derive(Debug, Default)]
struct Lists {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Lists {
    /// What they take, about.
    fn octets(&self) -> usize {
        let names = self.users.values().chain(self.groups.values());
        names.map(|name| ENTRY_OCTETS + name.len()).sum()
    }
}

/// Mount namespace and root of a process, as /proc has them.
type View = (Vec<u8>, Vec<u8>);

/// Lists of users and groups.
pub(super) struct Users {
    /// Our own view, and that of the host's first process where its users are ours: a service may have mounts of its own.
    host: [Option<View>; 2],
    /// The user namespace of the host's first process.
    namespace: Option<Vec<u8>>,
    lists: VecDeque<(Identity, u64, Lists)>,
    last: u64,
}

impl Users {
    pub(super) fn of_this_host(proc: &Proc) -> Self {
        let link = |name: &str| {
            rustix::fs::readlinkat(proc.as_fd(), name, Vec::new())
                .ok()
                .map(std::ffi::CString::into_bytes)
        };
        let first = proc.pid(1).filter(|first| {
            let passwd = root(first).and_then(|root| regular(&root, "etc/passwd"));
            let ids = |file: FileId| (file.device, file.inode);
            passwd.map(|(_, id)| ids(id)) == own_passwd().map(ids)
        });
        Self {
            host: [
                link("self/ns/mnt").zip(link("self/root")),
                first.as_ref().and_then(view),
            ],
            namespace: link("1/ns/user"),
            lists: VecDeque::new(),
            last: 0,
        }
    }

    /// Whose users and groups a process sees.
    pub(super) fn scope(&mut self, proc: &Proc, folder: &ProcessFolder) -> Scope {
        match view(folder) {
            None => Scope::Unreadable,
            view if self.host.contains(&view) => Scope::Host,
            _ => self.other(proc, folder).unwrap_or(Scope::Unreadable),
        }
    }

    /// The user's name in a scope.
    pub(super) fn user(&self, scope: Scope, uid: u32) -> Option<String> {
        match scope {
            Scope::Host => User::from_uid(Uid::from_raw(uid))
                .ok()
                .flatten()
                .map(|user| user.name),
            Scope::Other(number) => self.list(number)?.users.get(&uid).cloned(),
            Scope::Unreadable => None,
        }
    }

    /// The group's name in a scope.
    pub(super) fn group(&self, scope: Scope, gid: u32) -> Option<String> {
        match scope {
            Scope::Host => Group::from_gid(Gid::from_raw(gid))
                .ok()
                .flatten()
                .map(|group| group.name),
            Scope::Other(number) => self.list(number)?.groups.get(&gid).cloned(),
            Scope::Unreadable => None,
        }
    }

    fn list(&self, number: u64) -> Option<&Lists> {
        self.lists
            .iter()
            .find(|(_, other, _)| *other == number)
            .map(|(_, _, lists)| lists)
    }

    fn other(&mut self, proc: &Proc, folder: &ProcessFolder) -> Option<Scope> {
        let of_the_host = self.namespace.is_some() && folder.link("ns/user").ok() == self.namespace;
        if !only_local_mounts(folder, of_the_host) {
            return None;
        }
        let root = root(folder)?;
        let (passwd, id) = regular(&root, "etc/passwd")?;
        if own_passwd().is_some_and(|own| (own.device, own.inode) == (id.device, id.inode)) {
            return Some(Scope::Host);
        }
        let map = |name| Some(folder.read(name, MAP_OCTETS_MAX).ok()?.0);
        let identity = Identity {
            passwd: id,
            uid_map: map("uid_map")?,
            gid_map: map("gid_map")?,
        };
        if let Some((_, number, _)) = self.lists.iter().find(|(known, _, _)| *known == identity) {
            return Some(Scope::Other(*number));
        }
        let lists = Lists {
            users: names(&contents(proc, &passwd)?, &identity.uid_map),
            groups: regular(&root, "etc/group")
                .and_then(|(group, _)| contents(proc, &group))
                .map(|octets| names(&octets, &identity.gid_map))
                .unwrap_or_default(),
        };
        Some(Scope::Other(self.keep(identity, lists)))
    }

    /// Keeps lists within the bounds; their number.
    fn keep(&mut self, identity: Identity, lists: Lists) -> u64 {
        let mut octets = lists.octets() + self.octets();
        while self.lists.len() >= LISTS_MAX || octets > KEPT_OCTETS_MAX {
            let Some((_, _, oldest)) = self.lists.pop_front() else {
                break;
            };
            octets -= oldest.octets();
        }
        self.last += 1;
        self.lists.push_back((identity, self.last, lists));
        self.last
    }

    /// What all lists take, about.
    fn octets(&self) -> usize {
        self.lists.iter().map(|(_, _, lists)| lists.octets()).sum()
    }
}

/// The view of a process.
fn view(folder: &ProcessFolder) -> Option<View> {
    folder.link("ns/mnt").ok().zip(folder.link("root").ok())
}

fn root(folder: &ProcessFolder) -> Option<OwnedFd> {
    rustix::fs::openat(folder.as_fd(), "root", PASS | OFlags::DIRECTORY, Mode::empty()).ok()
}

/// Whether every mount on the way to a process's passwd file is of a file system that answers by itself. `of_the_host`: the process
/// is in the host's user namespace, so that nobody but root has mounted what it sees.
fn only_local_mounts(folder: &ProcessFolder, of_the_host: bool) -> bool {
    let Ok((octets, false)) = folder.read("mountinfo", MOUNTINFO_OCTETS_MAX) else {
        return false;
    };
    are_local(&String::from_utf8_lossy(&octets), of_the_host)
}

fn are_local(mountinfo: &str, of_the_host: bool) -> bool {
    mounts(mountinfo)
        .filter(|mount| {
            let point = unescaped(mount.point);
            ON_THE_WAY.iter().any(|way| point == Path::new(way))
        })
        .all(|mount| LOCAL.contains(&mount.kind) && (of_the_host || mount.kind != LAYERED))
}

/// A regular file below a root, opened without touching it; no link on the way is followed.
fn regular(root: &OwnedFd, path: &str) -> Option<(OwnedFd, FileId)> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(root, path, PASS, Mode::empty(), resolve).ok()?;
    let id = file_id(&file)?;
    Some((file, id))
}

fn file_id(file: impl AsFd) -> Option<FileId> {
    let stat = rustix::fs::fstat(file).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(FileId {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    })
}

fn own_passwd() -> Option<FileId> {
    file_id(rustix::fs::open("/etc/passwd", PASS, Mode::empty()).ok()?)
}

/// What a file holds that was opened without touching it; `None` when that is too much.
fn contents(proc: &Proc, file: &OwnedFd) -> Option<Vec<u8>> {
    let again = open_to_read(proc.as_fd(), &format!("self/fd/{}", file.as_raw_fd())).ok()?;
    match read_at_most(again, LIST_OCTETS_MAX) {
        Ok((octets, false)) => Some(octets),
        _ => None,
    }
}

/// `NAME:PASSWORD:ID:…`, ids mapped to those of the kernel. The first name of an id counts, as it does for getpwuid(3).
fn names(list: &[u8], map: &[u8]) -> HashMap<u32, String> {
    let map = ranges(map);
    let mut names = HashMap::new();
    for line in list.split(|&octet| octet == b'\n') {
        let mut fields = line.split(|&octet| octet == b':');
        let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else {
            continue;
        };
        if names.len() >= NAMES_MAX {
            break;
        }
        if name.len() > NAME_OCTETS_MAX {
            continue;
        }
        let id = std::str::from_utf8(id)
            .ok()
            .and_then(|id| id.parse().ok())
            .and_then(|id| outside(&map, id));
        if let Some(id) = id.filter(|_| !name.is_empty() && name[0] != b'#') {
            names
                .entry(id)
                .or_insert_with(|| String::from_utf8_lossy(name).into_owned());
        }
    }
    names
}

/// Lines `INSIDE OUTSIDE COUNT`. Source: user_namespaces(7).
fn ranges(map: &[u8]) -> Vec<[u32; 3]> {
    String::from_utf8_lossy(map)
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
            Some([numbers.next()??, numbers.next()??, numbers.next()??])
        })
        .collect()
}

fn outside(map: &[[u32; 3]], id: u32) -> Option<u32> {
    map.iter().find_map(|&[inside, outside, count]| {
        let offset = id.checked_sub(inside).filter(|&offset| offset < count)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"         0          0 4294967295\n";

    #[test]
    fn an_overlay_is_believed_to_answer_where_none_but_root_has_mounted_it() {
        let mount = |point: &str, kind: &str| format!("1 2 0:3 / {point} rw - {kind} none rw\n");
        let all = |mounts: &[(&str, &str)]| {
            mounts
                .iter()
                .map(|(point, kind)| mount(point, kind))
                .collect::<String>()
        };
        for (mounts, of_the_host, of_another) in [
            (&[("/", "ext4"), ("/etc", "tmpfs")][..], true, true),
            (&[("/", "overlay")], true, false),
            (&[("/", "ext4"), ("/etc", "overlay")], true, false),
            (&[("/", "overlay"), ("/etc/passwd", "fuse.x")], false, false),
            (
                &[("/", "ext4"), ("/srv", "nfs4"), ("/srv/b", "overlay")],
                true,
                true,
            ),
        ] {
            let text = all(mounts);
            assert_eq!(are_local(&text, true), of_the_host, "{text}");
            assert_eq!(are_local(&text, false), of_another, "{text}");
        }
    }

    #[test]
    fn lists_of_strangers_take_no_more_than_their_bounds() {
        let many: String = (0..2 * NAMES_MAX).map(|id| format!("n{id}:x:{id}:\n")).collect();
        let long = "n".repeat(NAME_OCTETS_MAX + 1);
        let text = format!("{long}:x:1:\nfits:x:1:\n{many}");
        let found = names(text.as_bytes(), WHOLE);
        assert_eq!((found.len(), found[&1].as_str()), (NAMES_MAX, "fits"));

        let mut users = Users {
            host: [None, None],
            namespace: None,
            lists: VecDeque::new(),
            last: 0,
        };
        for inode in 0..1_000 {
            let file = FileId {
                device: 1,
                inode,
                size: 1,
                modified: (0, 0),
                changed: (0, 0),
            };
            let identity = Identity {
                passwd: file,
                uid_map: WHOLE.to_vec(),
                gid_map: WHOLE.to_vec(),
            };
            let lists = Lists {
                users: names(text.as_bytes(), WHOLE),
                groups: HashMap::new(),
            };
            let number = users.keep(identity, lists);
            assert!(users.octets() <= KEPT_OCTETS_MAX, "{}", users.octets());
            assert_eq!(
                users.user(Scope::Other(number), 1).as_deref(),
                Some("fits"),
                "the newest is kept"
            );
        }
    }

    #[test]
    fn the_first_name_of_an_id_counts_and_nonsense_is_skipped() {
        let names = names(
            b"root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\n#a:x:5:\n:x:6:\nbad\nneg:x:-1:\nbig:x:99999999999:\n\
              \xffme:x:1000:\nend:x:7:7",
            WHOLE,
        );
        assert_eq!(names.len(), 3);
        assert_eq!(names[&0], "root");
        assert_eq!(names[&1000], "\u{fffd}me");
        assert_eq!(names[&7], "end");
    }

    #[test]
    fn ids_of_a_user_namespace_are_the_kernel_s() {
        let list = b"root:x:0:\nbob:x:1000:\nnobody:x:65534:\n";
        let names = names(list, b"0 1000 1\n1 100000 65536\n");
        assert_eq!(names.get(&1000).map(String::as_str), Some("root"));
        assert_eq!(names.get(&100_999).map(String::as_str), Some("bob"));
        assert_eq!(names.get(&0), None);
        assert!(super::names(list, b"").is_empty(), "a map that is not set");
        assert!(super::names(list, b"0 4294967295 1\n0 x 1\n9").len() <= 1);
    }
}
