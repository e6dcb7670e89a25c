//! Any bytes are a kernel's type information, and that of a module which continues it. Questions end, and their answers are the
//! same each time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::sys::btf::{Btf, BtfError};

/// Most names that are asked for.
const MOST: usize = 12;

fuzz_target!(|bytes: &[u8]| {
    // A module's information follows the kernel's, both behind the first one's length.
    let (base, module) = match bytes.split_first_chunk::<2>() {
        Some((len, rest)) => rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len())),
        None => (bytes, &[][..]),
    };
    let names: Vec<&str> = base
        .split(|byte| *byte == 0)
        .chain(module.split(|byte| *byte == 0))
        .filter_map(|word| std::str::from_utf8(word).ok())
        .filter(|word| word.len() > 1 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .take(MOST)
        .collect();
    match Btf::parse(base) {
        Ok(kernel) => {
            ask(&kernel, &names);
            if let Ok(both) = Btf::parse_split(module, &kernel) {
                assert!(both.next_id() >= kernel.next_id());
                ask(&both, &names);
            }
        }
        Err(error) => assert!(matches!(error, BtfError::Magic | BtfError::Truncated), "{error}"),
    }
});

fn ask(btf: &Btf<'_>, names: &[&str]) {
    for one in names {
        let _ = (btf.struct_size(one), btf.enum_values(one), btf.params(one), btf.tracepoint_params(one));
        assert!(btf.func(one).is_none_or(|id| (1..btf.next_id()).contains(&id)));
        for other in names {
            let path = format!("{one}.{other}");
            assert_eq!(btf.field(&path), btf.field(&path));
            let _ = btf.field(&format!("{path}.{one}"));
        }
    }
}
