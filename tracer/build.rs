//! Builds the BPF object with whatever toolchain this machine has and hands its path to `include_bytes!`.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
};

#[path = "../xtask/src/bpf_toolchain.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with xtask, which uses the rest")]
mod bpf_toolchain;

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest.parent().ok_or("the tracer package has no parent folder")?;
    for input in ["tracer-ebpf/src", "tracer-ebpf/Cargo.toml", "Cargo.lock", "xtask/src/bpf_toolchain.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    for name in ["WHY502_BPF_RUSTC", "WHY502_BPF_LINKER", "WHY502_BPF_OBJECT"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // Packagers may bring an object built elsewhere.
    let object = match env::var_os("WHY502_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => build(root)?,
    };
    println!("cargo::rustc-env=WHY502_BPF_OBJECT_PATH={}", object.display());
    Ok(())
}

fn build(root: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // One object for all profiles: <target>/<profile>/build/tracer-<hash>/out → <target>/bpf. It has its
    // own lock there, as the outer cargo holds the one of <target>/<profile>.
    let target = out.ancestors().nth(4).ok_or("OUT_DIR is not inside a target folder")?.join("bpf");
    let toolchain = match bpf_toolchain::detect() {
        Ok(toolchain) => toolchain,
        Err(missing) => {
            for line in missing.to_string().lines() {
                println!("cargo::error={line}");
            }
            return Ok(PathBuf::new());
        }
    };
    let output = bpf_toolchain::build_command(&toolchain, root, &target)
        .output()
        .map_err(|e| format!("cannot run the compiler of the BPF object ({:?}): {e}", toolchain.flavor))?;
    if !output.status.success() {
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            println!("cargo::error={line}");
        }
        return Err(format!("the BPF object does not compile with {:?}", toolchain.flavor).into());
    }
    Ok(bpf_toolchain::object_path(&target))
}
