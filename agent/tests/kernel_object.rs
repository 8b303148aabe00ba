//! The checked-in kernel object: equal to its sources, to the shared structures, and at home on several kernels.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use aya_obj::Object;
use aya_obj::btf::Btf;
use flowtilla_agent::capture::OBJECT;
use support::Structures;

/// What aya writes in the place of an instruction whose field this kernel lacks.
const POISON: i32 = 0x0BAD_2310;

fn ebpf_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf")
}

#[test]
fn shared_structures_are_laid_out_alike_on_both_sides() {
    let object = Structures::of_object(OBJECT);
    for (name, size, layout) in flowtilla_abi::ALL {
        let (c_size, c_members) = object
            .structure(name)
            .unwrap_or_else(|| panic!("{name} is not in the object's BTF"));
        let wanted: Vec<_> = layout
            .iter()
            .map(|&(field, offset, size)| (field.to_owned(), offset, size))
            .collect();
        assert_eq!((c_size, c_members), (*size, wanted), "{name}");
    }
}

#[test]
fn the_locked_udp_slot_is_read_as_the_shared_entry() {
    let object = Structures::of_object(OBJECT);
    let (slot, entry) = (
        object.structure("udp_slot").unwrap(),
        object.structure("udp_entry").unwrap(),
    );
    assert_eq!(slot, entry);
}

/// The same compiler gives the same octets in any folder; without it the test is skipped and says so.
#[test]
fn the_object_is_what_its_sources_give() {
    if Command::new("clang-16").arg("--version").output().is_err() {
        eprintln!("skipped: clang-16 is not installed (apt-get install clang-16 llvm-16 libbpf-dev)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rebuilt = folder.path().join("rebuilt.o");
    let output = Command::new(ebpf_folder().join("build.sh"))
        .arg(&rebuilt)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let same = std::fs::read(&rebuilt).unwrap() == OBJECT;
    assert!(
        same,
        "ebpf/obj/flowtilla.bpf.o is older than its sources: run ebpf/build.sh and commit the result"
    );
}

/// Pairs of functions of which each kernel has the fields of exactly one: the other is never called there.
const EITHER_OR: [[&str; 2]; 2] = [["ancestor", "ancestor_id"], ["sock_cgroup", "sock_cgroup_5_15"]];

/// Applies the relocations against the types of stored kernels: no kernel and no root needed.
#[test]
fn every_field_is_found_on_every_stored_kernel() {
    let mut kernels = 0;
    for entry in std::fs::read_dir(ebpf_folder().join("btf")).unwrap() {
        let path = entry.unwrap().path();
        let target = Btf::parse_file(&path, object::Endianness::Little).unwrap();
        let mut object = Object::parse(OBJECT).unwrap();
        object
            .relocate_btf(&target)
            .unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        let poisoned: Vec<&str> = object
            .functions
            .values()
            .filter(|function| {
                function
                    .instructions
                    .iter()
                    .any(|i| i.code == 0x85 && i.imm == POISON)
            })
            .map(|function| function.name.as_str())
            .collect();
        for pair in EITHER_OR {
            let absent = pair.iter().filter(|name| poisoned.contains(name)).count();
            assert_eq!(absent, 1, "{pair:?} in {}: {poisoned:?}", path.display());
        }
        assert_eq!(
            poisoned.len(),
            EITHER_OR.len(),
            "{}: {poisoned:?}",
            path.display()
        );
        kernels += 1;
    }
    assert!(kernels >= 3, "{kernels} stored kernels");
}
