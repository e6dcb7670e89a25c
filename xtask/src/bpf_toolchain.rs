//! Which compiler can build the BPF object on this machine, and what to install if none can.
//!
//! Shared by `tracer/build.rs` (which builds) and `cargo xtask setup` (which installs); standard library
//! only. Two flavours work: a rustup nightly with `rust-src` (builds `core` itself), and a packaged rustc
//! that ships `core` for `bpfel-unknown-none` (Debian's libstd-rust-*-dev-bpf, which fits that rustc alone).

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// The target of the BPF object. Big-endian hosts would need `bpfeb-unknown-none`.
pub const TARGET: &str = "bpfel-unknown-none";

/// A way to get `core` for BPF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flavor {
    /// rustup's nightly builds `core` from `rust-src`.
    Nightly {
        /// Toolchain name, such as `nightly-x86_64-unknown-linux-gnu`.
        toolchain: String,
    },
    /// A rustc whose sysroot holds a ready-made `core` for BPF.
    Packaged {
        /// The compiler.
        rustc: PathBuf,
        /// The cargo to run it with.
        cargo: PathBuf,
    },
}

/// Everything that builds the BPF object.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// Compiler and `core`.
    pub flavor: Flavor,
    /// The linker.
    pub linker: PathBuf,
}

/// What a build of the BPF object lacks here; its `Display` says what to install.
#[derive(Debug, Clone)]
pub struct Missing {
    /// No compiler has `core` for BPF.
    pub compiler: bool,
    /// There is no bpf-linker.
    pub linker: bool,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the BPF object cannot be built on this machine:")?;
        if self.compiler {
            writeln!(
                f,
                "  - no Rust compiler has `core` for {TARGET} (looked for a rustup nightly with rust-src, \
                 $WHY502_BPF_RUSTC, /usr/bin/rustc)"
            )?;
        }
        if self.linker {
            writeln!(f, "  - bpf-linker was found neither in PATH nor in cargo's bin folder")?;
        }
        writeln!(f, "`cargo xtask setup` installs both on Debian and Ubuntu (as root). By hand:")?;
        if self.compiler {
            writeln!(
                f,
                "  with rustup            rustup toolchain install nightly --component rust-src\n  \
                 Debian 12, 13          apt install rustc-web cargo-web libstd-rust-web-dev-bpf\n  \
                 Debian testing, Ubuntu apt install rustc cargo libstd-rust-dev-bpf   (or rustup)\n  \
                 Fedora, Arch           rustup, as above (packages: rustup)"
            )?;
        }
        if self.linker {
            writeln!(
                f,
                "  bpf-linker             cargo install bpf-linker --version 0.13.0   (with LLVM 22 installed, Debian:\n  \
                 \x20                      apt install llvm-22-dev libpolly-22-dev; then\n  \
                 \x20                      PATH=/usr/lib/llvm-22/bin:$PATH LLVM_PREFIX=/usr/lib/llvm-22 cargo install \\\n  \
                 \x20                        bpf-linker --version 0.13.0 --no-default-features --features llvm-22)\n  \
                 Fedora                 dnf install llvm-devel clang, then cargo install bpf-linker\n  \
                 Arch                   pacman -S bpf-linker"
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

/// Finds a complete toolchain.
///
/// # Errors
/// [`Missing`] names what is not there and how to get it.
pub fn detect() -> Result<Toolchain, Missing> {
    match (find_compiler(), find_linker()) {
        (Some(flavor), Some(linker)) => Ok(Toolchain { flavor, linker }),
        (flavor, linker) => Err(Missing { compiler: flavor.is_none(), linker: linker.is_none() }),
    }
}

/// A compiler with `core` for BPF: `$WHY502_BPF_RUSTC`, Debian's package, then a nightly with `rust-src`.
/// The package comes first because it needs no `-Z` flag and does not compile `core` again.
#[must_use]
pub fn find_compiler() -> Option<Flavor> {
    env::var_os("WHY502_BPF_RUSTC")
        .map(PathBuf::from)
        .into_iter()
        .chain([PathBuf::from("/usr/bin/rustc")])
        .find_map(packaged)
        .or_else(nightly)
}

/// bpf-linker from `$WHY502_BPF_LINKER`, PATH or cargo's bin folder.
#[must_use]
pub fn find_linker() -> Option<PathBuf> {
    let cargo_bin = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .map(|home| home.join("bin"));
    env::var_os("WHY502_BPF_LINKER").map(PathBuf::from).filter(|path| path.is_file()).or_else(|| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(cargo_bin)
            .map(|dir| dir.join("bpf-linker"))
            .find(|candidate| candidate.is_file())
    })
}

/// LLVM's major version as a rustc prints it, to choose the matching bpf-linker feature and llvm-N-dev.
#[must_use]
pub fn llvm_major(rustc: &Path) -> Option<u32> {
    output(Command::new(rustc).arg("-vV"))?
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next()?.parse().ok())
}

fn packaged(rustc: PathBuf) -> Option<Flavor> {
    if !rustc.is_file() {
        return None;
    }
    // A rustup proxy at that path would answer for whatever toolchain the folder asks for.
    let sysroot =
        PathBuf::from(output(clean(&mut Command::new(&rustc)).args(["--print", "sysroot"]))?.trim());
    let lib = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let has_core = std::fs::read_dir(lib).ok()?.flatten().any(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("libcore-")
    });
    let beside = rustc.with_file_name("cargo");
    let cargo = if beside.is_file() { beside } else { PathBuf::from("cargo") };
    has_core.then_some(Flavor::Packaged { rustc, cargo })
}

fn nightly() -> Option<Flavor> {
    let list = output(clean(&mut Command::new("rustup")).args(["toolchain", "list"]))?;
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .find(|name| {
            let Some(sysroot) =
                output(clean(&mut Command::new("rustup")).args(["run", name, "rustc", "--print", "sysroot"]))
            else {
                return false;
            };
            Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
        })
        .map(|name| Flavor::Nightly { toolchain: name.to_owned() })
}

/// Removes what the surrounding cargo put into the environment for another compiler.
pub fn clean(command: &mut Command) -> &mut Command {
    let names: Vec<OsString> = env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| {
            let name = name.to_string_lossy();
            name.starts_with("CARGO_") && name != "CARGO_HOME"
                || matches!(
                    &*name,
                    "RUSTC"
                        | "RUSTDOC"
                        | "RUSTFLAGS"
                        | "RUSTC_WRAPPER"
                        | "RUSTC_WORKSPACE_WRAPPER"
                        | "CARGO"
                        | "RUSTUP_TOOLCHAIN"
                        | "RUST_RECURSION_COUNT"
                        | "MAKEFLAGS"
                )
        })
        .collect();
    for name in names {
        command.env_remove(name);
    }
    command
}

/// The command that builds package `tracer-ebpf` of the workspace at `root` into `target_dir`; the object
/// is then at [`object_path`].
#[must_use]
pub fn build_command(toolchain: &Toolchain, root: &Path, target_dir: &Path) -> Command {
    let mut command = match &toolchain.flavor {
        Flavor::Nightly { toolchain } => {
            let mut command = Command::new("rustup");
            clean(&mut command).args(["run", toolchain, "cargo", "build", "-Z", "build-std=core"]);
            command
        }
        Flavor::Packaged { rustc, cargo } => {
            let mut command = Command::new(cargo);
            // aya-ebpf uses an unstable feature (asm_experimental_arch).
            clean(&mut command).env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("build");
            command
        }
    };
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
    ];
    command
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["--package", "tracer-ebpf", "--bin", "why502-bpf", "--features", "bpf"])
        .args(["--profile", "bpf", "--target", TARGET, "--target-dir"])
        .arg(target_dir);
    command
}

/// Where [`build_command`] leaves the object.
#[must_use]
pub fn object_path(target_dir: &Path) -> PathBuf {
    target_dir.join(TARGET).join("bpf/why502-bpf")
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
