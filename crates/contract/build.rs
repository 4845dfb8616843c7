//! Compiles the `.proto` files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "proto/call.proto",
        "proto/store.proto",
        "proto/trainer.proto",
        "proto/engine.proto",
        "proto/router.proto",
    ];
    let set = protox::compile(files, ["proto"])?;
    #[expect(
        clippy::disallowed_methods,
        reason = "how Cargo tells a build script about features"
    )]
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .build_transport(grpc)
        .compile_fds(set)?;
    Ok(())
}
