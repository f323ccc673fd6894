//! The build script of every program that stays running: how an optimised one is linked.
//!
//! What an idle program has resident is mostly itself, so that is what this makes small. Linked to a fixed address, as
//! Go's programs are, nothing has to be relocated at the start, which would read a megabyte and write most of another.
//! And the functions that run lie together: see `xtask/src/layout.rs`, which makes the lists. Debug builds are left alone.

use std::{env, path::Path};

fn main() {
    let package = variable("CARGO_PKG_NAME");
    let layout = match &*package {
        "activator" | "queue-proxy" => &package,
        // They have its roles.
        _ => "control-plane",
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("packages are in folders").join("layout");
    let layout = folder.join(format!("{layout}.ld"));
    println!("cargo::rerun-if-changed={}", folder.join("link.rs").display());
    println!("cargo::rerun-if-changed={}", layout.display());
    // The linkers of GNU and LLVM take this, these do not.
    let other = ["fuse-ld=mold", "fuse-ld=gold", "fuse-ld=wild"];
    let is_known = variable("CARGO_CFG_TARGET_OS") == "linux"
        && variable("CARGO_CFG_TARGET_ENV") == "gnu"
        && !other.iter().any(|other| variable("CARGO_ENCODED_RUSTFLAGS").contains(other));
    // The profile that an image's inherits from.
    if variable("PROFILE") == "release" && is_known {
        println!("cargo::rustc-link-arg-bins=-no-pie");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", layout.display());
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
