//! Any bytes are SELinux's binary policy: reading ends, and what is read answers the questions of a trace, the same each time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::selinux::{Context, Policy, TCP};

const CLASSES: [&str; 4] = ["tcp_socket", "unix_stream_socket", "sock_file", "dir"];
const PERMISSIONS: [&str; 4] = ["name_connect", "connectto", "write", "search"];
/// Those of the seeds; a policy's own come from its ports.
const CONTEXTS: [&str; 6] = [
    "system_u:system_r:httpd_t:s0",
    "system_u:system_r:other_t:s0-s0:c0.c3",
    "system_u:object_r:web_port_t:s0",
    "system_u:object_r:sock_t:s0:c1,c2",
    "system_u:object_r:db_port_t:s0",
    "system_u:system_r:httpd_t",
];

fuzz_target!(|bytes: &[u8]| {
    let Ok(policy) = Policy::read(bytes) else { return };
    let again = Policy::read(bytes).expect("it was one");
    let mut contexts: Vec<Context> = CONTEXTS.iter().filter_map(|text| policy.parse_context(text)).collect();
    contexts.extend(policy.port_types(TCP).into_iter().take(4).map(|(_, context)| context.clone()));
    contexts.extend([80, 3306].into_iter().filter_map(|port| policy.port_context(TCP, port).cloned()));
    for name in CLASSES {
        let Some(class) = policy.class(name) else { continue };
        let asked: Vec<u32> =
            PERMISSIONS.iter().filter_map(|one| policy.permissions(class, [*one])).collect();
        for source in &contexts {
            for target in &contexts {
                let access = policy.access(source, target, class);
                assert_eq!(access, again.access(source, target, class), "two answers to one question");
                assert_eq!(access.granted() & !access.allowed, 0, "more is granted than is allowed");
                for wanted in &asked {
                    for remedy in policy.remedies(source, target, class, *wanted) {
                        assert!(policy.boolean(&remedy.boolean).is_some(), "{remedy:?}");
                    }
                }
            }
        }
    }
    for context in &contexts {
        assert!(policy.show(context).is_none_or(|text| text.matches(':').count() >= 2));
        assert_eq!(policy.is_permissive(context), again.is_permissive(context));
    }
});
