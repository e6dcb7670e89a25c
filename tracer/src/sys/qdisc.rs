//! Queueing disciplines of an interface, by rtnetlink: tc filters, which can answer or lead astray, need one to hang on.

use super::{
    error::Result,
    link,
    netlink::{Body, attrs, i32_at, name},
    netns::NetNs,
};

const RTM_GETQDISC: u16 = 38;
/// `struct tcmsg`.
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;

/// The kinds of an interface's queueing disciplines, such as `clsact`; none for the interface's own default.
///
/// # Errors
/// Those of netlink.
pub fn kinds(ns: &NetNs, interface: u32) -> Result<Vec<String>> {
    let body = Body::new(&[0; TCMSG]);
    link::open(ns)?.dump("list queueing disciplines", RTM_GETQDISC, &body, Vec::new, |list, payload| {
        list.extend(parse(payload).filter(|(of, _)| *of == interface).map(|(_, kind)| kind));
    })
}

fn parse(payload: &[u8]) -> Option<(u32, String)> {
    let interface = u32::try_from(i32_at(payload, 4)?).ok()?;
    let mut all = attrs(payload, TCMSG);
    let kind = all.find(|(kind, _)| *kind == TCA_KIND).map(|(_, bytes)| name(bytes))?;
    Some((interface, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discipline_is_told_with_its_interface() {
        let mut bytes = vec![0_u8; TCMSG];
        bytes[4] = 7;
        bytes.extend([11, 0, 1, 0]);
        bytes.extend(b"clsact\0\0");
        assert_eq!(parse(&bytes), Some((7, "clsact".to_owned())));
        assert_eq!(parse(&bytes[..12]), None);
        assert_eq!(parse(&bytes[..TCMSG]), None);
        assert_eq!(parse(&[]), None);
    }
}
