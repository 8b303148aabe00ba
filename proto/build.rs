//! Makes the wire types from the `.proto` files, without `protoc`.
//!
//! Messages only: the stubs of the services are made by `flowtilla-grpc`, so that nothing here reaches a network. The
//! descriptors of the objects, comments included, are kept beside them: the operator's files are read by them.

use std::error::Error;
use std::path::PathBuf;

const ROOT: &str = "proto";
const OBJECTS: &str = "flowtilla/policy/v1/policy.proto";
const FILES: [&str; 4] = [
    OBJECTS,
    "flowtilla/enrol/v1/enrol.proto",
    "flowtilla/session/v1/session.proto",
    "flowtilla/fleet/v1/fleet.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut objects = protox::Compiler::new([ROOT])?;
    objects.include_source_info(true).open_file(OBJECTS)?;
    std::fs::write(
        out.join("objects.descriptors"),
        objects.encode_file_descriptor_set(),
    )?;
    prost_build::Config::new()
        .btree_map(["."])
        .include_file("wire.rs")
        .compile_fds(protox::compile(FILES, [ROOT])?)?;
    Ok(())
}
