//! Compiles the `.proto` files without protoc.

use std::path::PathBuf;

use protox::prost::Message as _;

#[expect(
    clippy::disallowed_methods,
    reason = "how Cargo tells a build script what to build and where"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "proto/call.proto",
        "proto/store.proto",
        "proto/trainer.proto",
        "proto/engine.proto",
        "proto/router.proto",
        "proto/inference.proto",
    ];
    let set = protox::compile(files, ["proto"])?;
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .build_transport(grpc)
        .compile_fds(set)?;
    // What reflection shows: what clients call, and not what the operator does.
    let shown = protox::compile(["proto/inference.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("inference.bin"), shown.encode_to_vec())?;
    Ok(())
}
