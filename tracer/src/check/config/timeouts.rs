//! Time-outs and sizes that make requests fail by themselves, or that contradict each other.

use super::{
    super::{Finding, Place},
    view,
};
use crate::{
    diagnose::Cause,
    nginx::{Model, model::Module, value},
};

/// A time-out of 0 is no time at all, not "for ever".
pub(super) fn zero(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in &model.passes {
        for (name, cause) in [
            ("connect_timeout", Cause::ConnectTimeoutNoAnswer),
            ("read_timeout", Cause::ReadTimeout),
            ("send_timeout", Cause::SendTimeout),
            ("timeout", Cause::ReadTimeout),
        ] {
            let Some(effective) = model.effective_of(pass, name) else { continue };
            let Some(node) = effective.node() else { continue };
            if effective.value.as_deref().and_then(value::milliseconds) != Some(0) {
                continue;
            }
            found.push(
                Finding::problem(
                    "timeout-of-zero",
                    format!("{} 0 leaves no time at all; it does not mean \"for ever\"", effective.name),
                )
                .cause(cause)
                .likely("an answer that is there before nginx looks for the first time")
                .breaks(if pass.module == Module::Stream {
                    "Connections are closed as soon as nginx has to wait."
                } else {
                    "As soon as nginx has to wait, the request ends with 504."
                })
                .at(view::place(model, node))
                .at(view::pass_place(model, pass))
                .fix(format!("write the longest time that you want to wait, such as {} 1h", effective.name)),
            );
        }
    }
    found
}

/// A second server is never tried after a first that does not answer.
pub(super) fn no_time_for_the_next(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in &model.passes {
        let time = |name: &str| view::value(model, pass, name).and_then(|text| value::milliseconds(&text));
        let (Some(next), Some(connect)) = (time("next_upstream_timeout"), time("connect_timeout")) else {
            continue;
        };
        let Some(node) = view::set_at(model, pass, "next_upstream_timeout") else { continue };
        let usable = view::targets(model, pass).len();
        let wanted = view::value(model, pass, "next_upstream").is_some_and(|text| text != "off");
        if next == 0 || next > connect || usable < 2 || !wanted {
            continue;
        }
        let prefix = pass.module.prefix();
        let mut one = Finding::warning(
            "no-time-for-the-next-server",
            format!(
                "{prefix}next_upstream_timeout {} is over before {prefix}connect_timeout {}",
                view::value(model, pass, "next_upstream_timeout").unwrap_or_default(),
                view::value(model, pass, "connect_timeout").unwrap_or_default()
            ),
        )
        .cause(Cause::ConnectTimeoutNoAnswer)
        .breaks(
            "If a server does not answer the handshake, there is no time left to try another: the client gets 504 although \
             the others are well.",
        )
        .at(view::place(model, node));
        one = match model.effective_of(pass, "connect_timeout") {
            Some(effective) => match effective.node() {
                Some(node) => one.at(view::place(model, node)),
                None => one.at(Place::default_of(format!(
                    "{} {} ({})",
                    effective.name,
                    effective.value.unwrap_or_default(),
                    effective.origin.unwrap_or_default()
                ))),
            },
            None => one,
        };
        found.push(one.at(view::pass_place(model, pass)).fix(format!(
            "make {prefix}connect_timeout a fraction of {prefix}next_upstream_timeout, such as a third"
        )));
    }
    found
}

/// A header buffer that is smaller than many a header.
pub(super) fn small_header_buffer(model: &Model) -> Vec<Finding> {
    const SMALL: u64 = 4096;
    let mut found = Vec::new();
    for pass in
        model.passes.iter().filter(|pass| pass.module != Module::Stream && pass.module != Module::Memcached)
    {
        let Some(effective) = model.effective_of(pass, "buffer_size") else { continue };
        let Some(node) = effective.node() else { continue };
        let Some(size) = effective.value.as_deref().and_then(value::bytes).filter(|size| *size < SMALL)
        else {
            continue;
        };
        found.push(
            Finding::warning(
                "header-buffer-small",
                format!(
                    "{} is {}: smaller than the default of 4k",
                    effective.name,
                    crate::nginx::directives::size(size)
                ),
            )
            .cause(Cause::HeaderTooBig)
            .likely("a server whose headers are always short")
            .breaks("A response whose header is longer, as with cookies or a long redirect, becomes a 502.")
            .at(view::place(model, node))
            .at(view::pass_place(model, pass))
            .fix(format!("remove the line, or write {} 8k", effective.name)),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, one};

    fn at(lines: &str) -> String {
        format!(
            "http {{ upstream two {{ server 127.0.0.1:1; server 127.0.0.1:2; }} upstream one {{ server 127.0.0.1:1; }} \
             server {{ location / {{ {lines} }} }} }}"
        )
    }

    #[test]
    fn zero_is_no_time() {
        for lines in [
            "proxy_read_timeout 0; proxy_pass http://one;",
            "fastcgi_connect_timeout 0s; fastcgi_pass one;",
            "grpc_send_timeout 0ms; grpc_pass one;",
        ] {
            one(zero, &at(lines));
        }
        one(zero, "stream { server { listen 1; proxy_timeout 0; proxy_pass 127.0.0.1:1; } }");
        for lines in [
            "proxy_read_timeout 10m; proxy_pass http://one;",
            "proxy_next_upstream_timeout 0; proxy_pass http://one;",
            "fastcgi_read_timeout 0; proxy_pass http://one;",
            "proxy_pass http://one;",
        ] {
            clean(zero, &at(lines));
        }
    }

    #[test]
    fn time_for_the_next_server() {
        one(no_time_for_the_next, &at("proxy_next_upstream_timeout 30s; proxy_pass http://two;"));
        one(
            no_time_for_the_next,
            &at("proxy_next_upstream_timeout 5s; proxy_connect_timeout 5s; proxy_pass http://two;"),
        );
        for lines in [
            "proxy_next_upstream_timeout 30s; proxy_connect_timeout 5s; proxy_pass http://two;",
            "proxy_next_upstream_timeout 30s; proxy_pass http://one;",
            "proxy_next_upstream_timeout 30s; proxy_next_upstream off; proxy_pass http://two;",
            "proxy_next_upstream_timeout 0; proxy_pass http://two;",
            "proxy_pass http://two;",
        ] {
            clean(no_time_for_the_next, &at(lines));
        }
    }

    #[test]
    fn header_buffers() {
        one(small_header_buffer, &at("proxy_buffer_size 1k; proxy_pass http://one;"));
        clean(small_header_buffer, &at("proxy_buffer_size 4k; proxy_pass http://one;"));
        clean(small_header_buffer, &at("proxy_buffer_size 1k; fastcgi_pass one;"));
        clean(
            small_header_buffer,
            "stream { server { listen 1; proxy_buffer_size 1k; proxy_pass 127.0.0.1:1; } }",
        );
    }
}
