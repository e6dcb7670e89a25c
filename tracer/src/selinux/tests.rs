//! Against tests/data/selinux/small.cil, compiled by secilc, and damaged copies of it. Debian's whole policy is asked in
//! tests/selinux.rs.

use super::*;

const SMALL: &[u8] = include_bytes!("../../tests/data/selinux/small.33");

fn small() -> Policy {
    Policy::read(SMALL).unwrap()
}

struct Asked {
    policy: Policy,
    source: Context,
    target: Context,
    class: u16,
}

fn ask(source: &str, target: &str, class: &str) -> Asked {
    let policy = small();
    let source = policy.parse_context(source).unwrap();
    let target = policy.parse_context(target).unwrap();
    let class = policy.class(class).unwrap();
    Asked { policy, source, target, class }
}

impl Asked {
    fn bits(&self, names: &[&str]) -> u32 {
        self.policy.permissions(self.class, names.iter().copied()).unwrap()
    }

    fn access(&self) -> Access {
        self.policy.access(&self.source, &self.target, self.class)
    }

    fn remedies(&self, names: &[&str]) -> Vec<Remedy> {
        self.policy.remedies(&self.source, &self.target, self.class, self.bits(names))
    }
}

const HTTPD: &str = "system_u:system_r:httpd_t:s0";

fn port(name: &str) -> String {
    format!("system_u:object_r:{name}:s0")
}

#[test]
fn attributes_and_aliases_lead_to_rules() {
    for source in [HTTPD, "system_u:system_r:old_t:s0", "system_u:system_r:other_t:s0"] {
        let asked = ask(source, &port("web_port_t"), "tcp_socket");
        assert_eq!(asked.access().granted(), asked.bits(&["name_connect"]), "{source}");
    }
    let own = ask(HTTPD, HTTPD, "tcp_socket");
    assert_eq!(own.access().granted(), own.bits(&["connect"]), "a permission of the common set");
    let none = ask(&port("sock_t"), &port("web_port_t"), "tcp_socket");
    assert_eq!(none.access().granted(), 0);
}

#[test]
fn the_narrowest_boolean_comes_first() {
    let asked = ask(HTTPD, &port("db_port_t"), "tcp_socket");
    assert_eq!(asked.access().granted(), 0);
    let found = asked.remedies(&["name_connect"]);
    let named: Vec<_> = found.iter().map(|r| (r.boolean.as_str(), r.value, r.own, r.others)).collect();
    // net_all switches on both conditionals: three ports, the database's among them.
    assert_eq!(named, [("net_db", true, 1, 0), ("net_all", true, 3, 0)]);
}

#[test]
fn what_others_get_makes_a_boolean_wide() {
    let asked = ask(HTTPD, &port("any_port_t"), "tcp_socket");
    let found = asked.remedies(&["name_connect"]);
    let named: Vec<_> = found.iter().map(|r| (r.boolean.as_str(), r.value, r.own, r.others)).collect();
    // web_off gives two permissions on one port to four domains, net_all one on three to this one.
    assert_eq!(named, [("net_all", true, 3, 0), ("web_off", false, 2, 6)]);
    assert_eq!(asked.remedies(&["name_connect", "bind"])[0].boolean, "web_off");
    assert!(asked.remedies(&["name_connect", "node_bind"]).is_empty());
}

#[test]
fn no_single_boolean_opens_a_condition_of_two() {
    let asked = ask(HTTPD, &port("sock_t"), "sock_file");
    assert!(asked.remedies(&["read"]).is_empty());
    assert_eq!((asked.policy.boolean("twin_a"), asked.policy.boolean("nope")), (Some(false), None));
}

#[test]
fn dontaudit_holds_while_its_condition_does() {
    let asked = ask(HTTPD, &port("any_port_t"), "tcp_socket");
    assert_eq!(asked.access().silent, asked.bits(&["name_connect"]));
    let quiet = ask("system_u:system_r:quiet_t:s0", &port("sock_t"), "sock_file");
    assert_eq!(quiet.access().silent, quiet.bits(&["write"]));
    let loud = ask(HTTPD, &port("db_port_t"), "tcp_socket");
    assert_eq!(loud.access().silent, 0);
}

#[test]
fn levels_and_users_constrain() {
    let write = |source: &str, target: &str| {
        let asked = ask(source, target, "sock_file");
        assert_eq!(asked.access().allowed, asked.bits(&["write"]));
        asked.access().granted() != 0
    };
    assert!(write(HTTPD, "system_u:object_r:sock_t:s0"));
    assert!(!write(HTTPD, "system_u:object_r:sock_t:s0:c1"));
    assert!(write("system_u:system_r:httpd_t:s0-s0:c0.c3", "system_u:object_r:sock_t:s0:c1,c3"));
    assert!(!write("system_u:system_r:httpd_t:s0-s0:c0,c2", "system_u:object_r:sock_t:s0:c1"));
    assert!(!write("system_u:system_r:httpd_t:s0:c0.c3", "system_u:object_r:sock_t:s1"));
    let odd = |target: &str| {
        let asked = ask(HTTPD, target, "odd");
        (asked.access().granted(), asked.bits(&["a"]), asked.bits(&["a", "b"]))
    };
    let (granted, _, both) = odd("system_u:object_r:web_port_t:s0");
    assert_eq!(granted, both);
    let (granted, a, _) = odd("user_u:object_r:web_port_t:s0");
    assert_eq!(granted, a);
}

#[test]
fn ports_take_the_first_line_that_fits() {
    let policy = small();
    let label = |protocol, port| policy.show(policy.port_context(protocol, port).unwrap()).unwrap();
    assert_eq!(label(TCP, 5432), "system_u:object_r:db_port_t");
    assert_eq!(label(TCP, 80), "system_u:object_r:web_port_t");
    assert_eq!(label(TCP, 89), "system_u:object_r:web_port_t");
    assert_eq!(label(TCP, 90), "system_u:object_r:any_port_t", "the initial context of ports");
    assert_eq!(label(17, 53), "system_u:object_r:web_port_t");
    assert_eq!(label(TCP, 53), "system_u:object_r:any_port_t");
    let line = policy.port_line(TCP, 85).unwrap();
    assert_eq!((line.low, line.high), (80, 89));
    let types: Vec<&str> = policy.port_types(TCP).into_iter().map(|(name, _)| name).collect();
    assert_eq!(types, ["db_port_t", "web_port_t"]);
}

#[test]
fn permissive_domains_are_known() {
    let policy = small();
    let permissive = |context: &str| policy.is_permissive(&policy.parse_context(context).unwrap());
    assert!(permissive("system_u:system_r:lax_t:s0"));
    assert!(!permissive(HTTPD));
    assert!(!policy.allow_unknown);
    assert_eq!(policy.version, 33);
}

#[test]
fn contexts_that_the_policy_does_not_know() {
    let policy = small();
    for text in [
        "",
        "system_u:system_r:httpd_t",
        "system_u:system_r:nope_t:s0",
        "x:system_r:httpd_t:s0",
        "system_u:system_r:httpd_t:s9",
        "system_u:system_r:httpd_t:s0:c9",
        "system_u:system_r:httpd_t:s0:c3.c1",
    ] {
        assert_eq!(policy.parse_context(text), None, "{text:?}");
    }
    assert_eq!(type_of(HTTPD), Some("httpd_t"));
    assert_eq!(type_of("unlabeled"), None);
}

#[test]
fn every_shortened_policy_is_an_error() {
    for len in 0..SMALL.len() {
        let error = Policy::read(&SMALL[..len]).unwrap_err();
        assert!(error.offset <= len, "{error}");
    }
}

/// xorshift64*: enough for damage.
fn next(state: &mut u64) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    usize::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap()
}

#[test]
fn damaged_policies_are_read_or_refused() {
    let mut state = 502;
    let (mut read, mut refused) = (0, 0);
    for round in 0..20_000 {
        let mut bytes = SMALL.to_vec();
        for _ in 0..=next(&mut state) % 3 {
            let at = next(&mut state) % bytes.len();
            bytes[at] = match next(&mut state) % 3 {
                0 => 0xff,
                1 => 0,
                _ => u8::try_from(next(&mut state) % 256).unwrap(),
            };
        }
        let Ok(policy) = Policy::read(&bytes) else {
            refused += 1;
            continue;
        };
        read += 1;
        // Whatever it says now, every question has an answer.
        let Some(source) = policy.parse_context(HTTPD) else { continue };
        let (Some(target), Some(class)) = (policy.port_context(TCP, 5432), policy.class("tcp_socket")) else {
            continue;
        };
        let access = policy.access(&source, target, class);
        let remedies = policy.remedies(&source, target, class, u32::MAX);
        assert!(remedies.len() <= 5, "round {round}: {access:?} {remedies:?}");
        let _ = policy.show(target);
        policy.port_types(TCP);
    }
    assert!(read > 1000 && refused > 1000, "{read} read, {refused} refused");
}
