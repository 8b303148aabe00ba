//! Makes the services' stubs from the `.proto` files. The messages are those of `flowtilla-proto`; those of Kubernetes'
//! runtimes are made here, with their stubs.

use std::error::Error;

const ROOT: &str = "../proto";
const FILES: [&str; 3] = [
    "flowtilla/enrol/v1/enrol.proto",
    "flowtilla/session/v1/session.proto",
    "flowtilla/fleet/v1/fleet.proto",
];
const CRI: &str = "cri";
const CRI_FILES: [&str; 1] = ["runtime.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    println!("cargo::rerun-if-changed={CRI}");
    tonic_prost_build::configure()
        .extern_path(".flowtilla", "::flowtilla_proto::wire::flowtilla")
        .codec_path("crate::codec::SmallCodec")
        .compile_fds(protox::compile(FILES, [ROOT])?)?;
    tonic_prost_build::configure()
        .btree_map(".")
        .codec_path("crate::codec::SmallCodec")
        .compile_fds(protox::compile(CRI_FILES, [CRI])?)?;
    Ok(())
}
