//! Links the guest image: freestanding, at a fixed address, by the entry crate's linker script.

use std::env;
use std::path::Path;

fn main() {
    let script = Path::new("../boot/entry/link.ld").canonicalize().expect("boot/entry/link.ld is missing");
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rerun-if-changed=build.rs");
    let script = format!("-T{}", script.display());
    let linker = [
        "-static",
        "--build-id=none",
        "-znorelro",
        "-znoexecstack",
        "--gc-sections",
        "--no-undefined",
        &script,
    ];
    // On the bare target rustc calls the linker itself; elsewhere a C compiler stands in between.
    let bare = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if bare {
        println!("cargo:rustc-link-arg-bin=drayage-guest=--no-pie");
    } else {
        for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
            println!("cargo:rustc-link-arg-bin=drayage-guest={argument}");
        }
    }
    for argument in linker {
        let prefix = if bare { "" } else { "-Wl," };
        println!("cargo:rustc-link-arg-bin=drayage-guest={prefix}{argument}");
    }
}
