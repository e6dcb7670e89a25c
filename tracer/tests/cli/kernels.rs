//! Kernels that lack what is needed, made of changed copies of this one's type information.

use std::{fs, path::Path};

use tempfile::NamedTempFile;

use crate::program::{Ended, WHY502, can_attach, has, run, through, why502};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

fn trace_with(btf: &Path) -> Ended {
    let this = std::process::id().to_string();
    run(why502(&["trace", "-p", &this, "--btf"]).arg(btf))
}

fn refused(bytes: &[u8], says: &[&str]) {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let ended = trace_with(file.path());
    ended.code(3).no_data().one_line().says(says);
    assert!(!ended.stderr.contains("panicked"), "{ended}");
    let ended = run(&mut why502(&["doctor", "--btf", &path]));
    ended.code(3).one_line().says(says);
}

/// The kernel's own, with names in its string section changed; each must be there once.
fn renamed(names: &[&str]) -> Vec<u8> {
    let mut data = fs::read(VMLINUX).unwrap();
    for name in names {
        let needle = format!("\0{name}\0").into_bytes();
        let mut places =
            data.windows(needle.len()).enumerate().filter(|(_, w)| *w == needle).map(|(at, _)| at);
        let at = places.next().unwrap_or_else(|| panic!("this kernel's BTF has no string {name}"));
        assert_eq!(places.next(), None, "{name} is there twice");
        data[at + name.len()] = b'X';
    }
    data
}

/// Type information without any type (include/uapi/linux/btf.h).
fn empty() -> Vec<u8> {
    let mut data = Vec::new();
    data.extend(0xeb9f_u16.to_ne_bytes());
    data.extend([1, 0]);
    // Header length, then offset and length of types and of strings.
    for word in [24_u32, 0, 0, 0, 1] {
        data.extend(word.to_ne_bytes());
    }
    data.push(0);
    data
}

#[test]
fn without_type_information() {
    if !can_attach() {
        return;
    }
    let ended = trace_with(Path::new("/nonexistent/btf"));
    ended.code(3).no_data().one_line().says(&[
        "/nonexistent/btf",
        "CONFIG_DEBUG_INFO_BTF",
        "--btf FILE",
        "No such file",
    ]);
    trace_with(Path::new("/")).code(3).one_line().says(&["CONFIG_DEBUG_INFO_BTF", "directory"]);
    if has("unshare") {
        let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
        for subcommand in ["trace", "doctor"] {
            let ended =
                run(&mut through("unshare", &["--mount", "sh", "-c", script, "sh", WHY502, subcommand]));
            ended.code(3).one_line().says(&[VMLINUX, "CONFIG_DEBUG_INFO_BTF"]);
        }
    }
}

#[test]
fn damaged_type_information() {
    if !can_attach() {
        return;
    }
    let whole = fs::read(VMLINUX).unwrap();
    refused(b"", &["cannot use the type information", "bad magic number"]);
    refused(b"\x7fELF garbage garbage garbage garbage", &["bad magic number"]);
    refused(&whole[..10], &["truncated or damaged"]);
    refused(&whole[..1 << 20], &["truncated or damaged"]);
    let mut swapped = whole.clone();
    swapped.swap(0, 1);
    refused(&swapped, &["bad magic number"]);
    // Lengths that run past the end.
    let mut long = whole.clone();
    long[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
    refused(&long, &["truncated or damaged"]);
    // Right at both ends, noise in the middle: any refusal is right, no panic is.
    let mut noise = whole;
    for (index, byte) in noise.iter_mut().enumerate().skip(1000).take(4000) {
        *byte = (index * 31 % 251) as u8;
    }
    refused(&noise, &["type information"]);
}

#[test]
fn unknown_layouts_name_the_field_or_type() {
    if !can_attach() {
        return;
    }
    let layout = "this kernel's layout is not known";
    refused(&renamed(&["sk_err"]), &[layout, "struct sock has no field sk_err", "report"]);
    refused(&renamed(&["sock_exterr_skb"]), &[layout, "no type struct sock_exterr_skb"]);
    refused(
        &renamed(&["sk_err", "sk_err_soft", "icsk_retransmits"]),
        &["field sk_err;", "field sk_err_soft", "field icsk_retransmits"],
    );
    refused(
        &empty(),
        &[layout, "struct sock_common", "struct tcp_sock", "struct task_struct", "struct sk_buff"],
    );
}

#[test]
fn what_is_optional_is_no_obstacle() {
    if !can_attach() {
        return;
    }
    // A kernel without conntrack marks on packets: DNAT is found by asking then.
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), renamed(&["_nfct"])).unwrap();
    let ended = trace_with(file.path());
    ended.code(3).says(&["no nginx has PID"]);
}
