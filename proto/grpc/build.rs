//! Makes the services' stubs from the `.proto` files. The messages are those of `flowtilla-proto`.

use std::error::Error;

const ROOT: &str = "../proto";
const FILES: [&str; 3] = [
    "flowtilla/enrol/v1/enrol.proto",
    "flowtilla/session/v1/session.proto",
    "flowtilla/fleet/v1/fleet.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    tonic_prost_build::configure()
        .extern_path(".flowtilla", "::flowtilla_proto::wire::flowtilla")
        .codec_path("crate::codec::SmallCodec")
        .compile_fds(protox::compile(FILES, [ROOT])?)?;
    Ok(())
}
