//! Makes the wire types from the `.proto` files, without `protoc`.

use std::error::Error;

const ROOT: &str = "proto";
const FILES: [&str; 1] = ["proto/flowtilla/policy/v1/policy.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let files = protox::compile(FILES, [ROOT])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
