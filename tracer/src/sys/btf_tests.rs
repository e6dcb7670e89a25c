//! Type information that is whole, damaged, and without an end.

use super::*;

/// Builds BTF bytes: types as word lists, strings by name.
struct Builder {
    types: Vec<u32>,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0] }
    }

    fn name(&mut self, name: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn push(&mut self, name: u32, kind: u32, vlen: u32, flag: bool, word: u32, body: &[u32]) {
        self.types.extend([name, kind << 24 | vlen | u32::from(flag) << 31, word]);
        self.types.extend(body);
    }

    fn bytes(&self) -> Vec<u8> {
        let types_len = self.types.len() as u32 * 4;
        let mut out = Vec::new();
        out.extend(MAGIC.to_ne_bytes());
        out.extend([1, 0]);
        for word in [24, 0, types_len, types_len, self.strings.len() as u32] {
            out.extend(word.to_ne_bytes());
        }
        for word in &self.types {
            out.extend(word.to_ne_bytes());
        }
        out.extend(&self.strings);
        out
    }
}

fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let (int, sock, common, anon_field, err, flags) =
        (b.name("int"), b.name("sock"), b.name("common"), b.name("daddr"), b.name("err"), b.name("flags"));
    b.push(int, INT, 0, false, 4, &[0]); // 1
    b.push(0, UNION, 1, false, 4, &[anon_field, 1, 0]); // 2: union { int daddr; }
    b.push(common, STRUCT, 1, false, 8, &[0, 2, 32]); // 3: struct common { <pad>; union at byte 4 }
    // 4: struct sock { struct common common; int err; int flags:3 at bit 99 }
    let (c2, e2) = (common, err);
    b.push(sock, STRUCT, 3, true, 16, &[c2, 3, 0, e2, 1, 64, flags, 1, 3 << 24 | 99]);
    let (reason, first, second) = (b.name("reason"), b.name("R_FIRST"), b.name("R_SECOND"));
    b.push(reason, ENUM, 2, false, 4, &[first, 0, second, 7]); // 5
    let (f, p) = (b.name("tcp_reset"), b.name("skb"));
    b.push(0, FUNC_PROTO, 2, false, 1, &[sock, 1, p, 1]); // 6
    b.push(f, FUNC, 0, false, 6, &[]); // 7
    b.bytes()
}

#[test]
fn finds_fields_through_anonymous_members() {
    let data = sample();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.field("sock.err").unwrap(), Field { offset: 8, size: 4 });
    assert_eq!(btf.field("sock.common.daddr").unwrap(), Field { offset: 4, size: 4 });
    assert_eq!(btf.struct_size("sock").unwrap(), 16);
}

#[test]
fn names_what_is_missing() {
    let data = sample();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.field("sock.gone"), Err(BtfError::NoField("sock".into(), "gone".into())));
    assert_eq!(btf.field("tcp_sock.x"), Err(BtfError::NoStruct("tcp_sock".into())));
    assert_eq!(btf.field("sock.flags"), Err(BtfError::BitField("sock.flags".into())));
}

#[test]
fn reads_enums_and_functions() {
    let data = sample();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.enum_values("reason"), [("R_FIRST".to_owned(), 0), ("R_SECOND".to_owned(), 7)]);
    assert_eq!(btf.params("tcp_reset").unwrap(), ["sock", "skb"]);
    assert_eq!(btf.func("tcp_reset"), Some(7));
    assert_eq!(btf.func("gone"), None);
}

#[test]
fn split_data_continues_the_base() {
    let base_data = sample();
    let base = Btf::parse(&base_data).unwrap();
    let mut b = Builder::new();
    b.strings.clear();
    let shift = base.strings.len() as u32;
    let (name, field) = (b.name("nf_conn") + shift, b.name("tuple") + shift);
    b.push(name, STRUCT, 1, false, 24, &[field, 4, 64]);
    let data = b.bytes();
    let split = Btf::parse_split(&data, &base).unwrap();
    assert_eq!(split.field("nf_conn.tuple").unwrap(), Field { offset: 8, size: 16 });
    assert_eq!(split.field("nf_conn.tuple.err").unwrap().offset, 16);
    assert_eq!(split.field("sock.err").unwrap().offset, 8);
}

#[test]
fn types_that_hold_each_other_have_an_end() {
    let mut b = Builder::new();
    let (outer, twice, hole) = (b.name("outer"), b.name("twice"), b.name("hole"));
    b.push(0, ARRAY, 0, false, 0, &[2, 2, 3]); // 1: an array of type 2
    b.push(0, ARRAY, 0, false, 0, &[1, 1, 3]); // 2: an array of type 1
    b.push(0, ARRAY, 0, false, 0, &[3, 3, 3]); // 3: an array of itself
    b.push(outer, STRUCT, 2, false, 8, &[hole, 1, 0, twice, 3, 0]);
    b.push(twice, STRUCT, 2, false, 8, &[0, 5, 0, 0, 5, 0]); // 5: twice itself, without a name
    let data = b.bytes();
    let btf = Btf::parse(&data).unwrap();
    for array in ["outer.hole", "outer.twice"] {
        assert_eq!(btf.field(array).unwrap().size, 0, "{array}");
        let within = format!("{array}.x");
        assert_eq!(btf.field(&within), Err(BtfError::NoField("outer".into(), "x".into())));
    }
    assert_eq!(btf.field("twice.x"), Err(BtfError::NoField("twice".into(), "x".into())));
}

#[test]
fn damaged_data_is_an_error_and_never_a_panic() {
    let data = sample();
    assert_eq!(Btf::parse(b"").unwrap_err(), BtfError::Magic);
    for len in 2..data.len() {
        let _ = Btf::parse(&data[..len]);
    }
    for at in 0..data.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut broken = data.clone();
            broken[at] = value;
            if let Ok(btf) = Btf::parse(&broken) {
                let _ = btf.field("sock.common.daddr");
                let _ = btf.enum_values("reason");
                let _ = btf.params("tcp_reset");
                let _ = btf.struct_size("sock");
            }
        }
    }
}
