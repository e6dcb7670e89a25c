//! Preflight: what is missing is named, with what mends it, and nothing is left behind.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use crate::program::{WHY502, can_attach, has, run, through, why502};

/// `setpriv` with the given options, running `why502 trace`.
fn without(options: &[&str], program: &str, args: &[&str]) -> Command {
    let mut command = through("setpriv", options);
    command.arg(program).args(args);
    command
}

#[test]
fn no_privileges() {
    if !can_attach() || !has("setpriv") {
        return;
    }
    // Where `nobody` can execute it, whatever the modes of the folders above the build are.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("why502");
    fs::copy(WHY502, &copy).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = copy.to_str().unwrap();
    let nobody =
        ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    for args in [&["trace"][..], &["trace", "--wait", "-o", "json"], &[]] {
        let ended = run(&mut without(&nobody, program, args));
        ended.code(3).no_data().one_line();
        ended.says(&[
            "missing privileges",
            "CAP_BPF",
            "CAP_PERFMON",
            "CAP_SYS_PTRACE",
            "sudo why502",
            "setcap",
        ]);
        assert!(ended.took < Duration::from_secs(1), "took long\n{ended}");
    }
    let ended = run(&mut without(&nobody, program, &["doctor"]));
    ended.code(3).one_line().says(&["CAP_BPF"]);
    assert!(ended.stdout.contains("missing: CAP_BPF"), "{ended}");
}

#[test]
fn only_what_is_missing_is_named() {
    if !can_attach() || !has("setpriv") {
        return;
    }
    let this = std::process::id().to_string();
    let trace = ["trace", "-p", &this];
    for (drop, missing, held) in [
        ("-sys_ptrace", &["CAP_SYS_PTRACE"][..], &["CAP_BPF (", "CAP_PERFMON ("][..]),
        ("-sys_ptrace,-bpf", &["CAP_SYS_PTRACE"], &["CAP_BPF ("]),
        ("-sys_admin,-bpf", &["CAP_BPF"], &["CAP_PERFMON (", "CAP_SYS_PTRACE ("]),
        ("-sys_admin,-bpf,-perfmon", &["CAP_BPF", "CAP_PERFMON"], &["CAP_SYS_PTRACE ("]),
    ] {
        let ended = run(&mut without(&[&format!("--bounding-set={drop}")], WHY502, &trace));
        ended.code(3).no_data().one_line().says(&["missing privileges"]).says(missing);
        for name in held {
            assert!(!ended.stderr.contains(name), "{name} is not missing\n{ended}");
        }
    }
    // CAP_SYS_ADMIN contains both BPF capabilities.
    let ended = run(&mut without(&["--bounding-set=-bpf,-perfmon"], WHY502, &trace));
    ended.code(3).says(&["no nginx has PID"]);
}

#[test]
fn a_pid_namespace_of_its_own() {
    if !can_attach() || !has("unshare") {
        return;
    }
    for subcommand in ["trace", "doctor"] {
        let ended = run(&mut through("unshare", &["--pid", "--fork", "--mount-proc", WHY502, subcommand]));
        ended.code(3).one_line().says(&["PID namespace", "--pid=host"]);
    }
}

#[test]
fn a_process_that_is_not_nginx() {
    if !can_attach() {
        return;
    }
    let this = std::process::id().to_string();
    for output in ["text", "json"] {
        let ended = run(&mut why502(&["trace", "-o", output, "-p", &this]));
        ended.code(3).no_data().one_line().says(&[
            "no nginx has PID",
            &this,
            "title",
            "executable",
            "ps -C nginx",
        ]);
    }
    // PIDs end at 2^22.
    run(&mut why502(&["-p", "4194305", "-p", &this])).code(3).says(&["4194305 or", &this]);
}

#[test]
fn no_nginx_at_all() {
    if !can_attach() || !has("unshare") {
        return;
    }
    // A /proc without processes: other tests' nginx cannot be seen, whenever they start.
    let dir = tempfile::tempdir().unwrap();
    let script = "set -e; mkdir \"$1/real\"; mount -t proc proc \"$1/real\"; mount -t tmpfs none /proc
        for name in self thread-self sys kallsyms mounts filesystems net modules; do ln -s \"$1/real/$name\" /proc/$name; done
        shift; exec \"$@\"";
    let path = dir.path().to_str().unwrap();
    let ended = run(&mut through("unshare", &["--mount", "sh", "-c", script, "sh", path, WHY502, "trace"]));
    ended.code(3).no_data().one_line();
    ended.says(&["no nginx is running", "/proc", "angie, openresty or tengine", "--wait"]);
}

#[test]
fn a_tier_that_the_kernel_refuses() {
    if !can_attach() {
        return;
    }
    let doctor = run(&mut why502(&["doctor"]));
    let this = std::process::id().to_string();
    let best =
        doctor.stdout.lines().find_map(|l| l.strip_prefix("tier ")).map(str::trim_start).unwrap_or_default();
    let refused: &[&str] = match best.split(':').next() {
        Some("full") => &[],
        Some("kprobe") => &["full"],
        _ => &["full", "kprobe"],
    };
    if refused.is_empty() {
        why502_skip::skipped("this kernel has every tier");
    }
    for tier in refused {
        for subcommand in [&["trace", "-p", &this][..], &["doctor"]] {
            let ended = run(why502(subcommand).args(["--tier", tier]));
            ended.code(3).one_line().says(&["--tier", tier, "try --tier auto"]);
        }
    }
    // The lowest one works wherever any does.
    run(&mut why502(&["doctor", "--tier", "tracepoint"])).code(0);
}
