//! WebSocket and other upgrades: what has to be there together.

use super::{super::Finding, super::Place, view};
use crate::nginx::{
    Model,
    model::{Module, Pass},
};

/// A pass that sends `Upgrade`.
fn upgrading<'a>(model: &'a Model) -> impl Iterator<Item = (&'a Pass, Vec<view::Header>)> + 'a {
    let passes = model.passes.iter().filter(|pass| pass.module == Module::Proxy);
    passes.map(|pass| (pass, view::headers(model, pass))).filter(|(_, headers)| {
        view::find(headers, "Upgrade").is_some_and(|upgrade| !upgrade.value.is_empty())
    })
}

/// `Upgrade` alone: `Connection` must name it.
pub(super) fn no_connection(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (pass, headers) in upgrading(model) {
        let Some(upgrade) = view::find(&headers, "Upgrade") else { continue };
        let connection = view::find(&headers, "Connection");
        let fits = |value: &str| value.contains('$') || value.to_ascii_lowercase().contains("upgrade");
        if connection.is_some_and(|connection| fits(&connection.value)) {
            continue;
        }
        let sent = connection.map_or_else(
            || "nothing sets Connection, so that nginx sends its own".to_owned(),
            |connection| format!("Connection is set to {:?}", connection.value),
        );
        let mut one = Finding::problem("upgrade-without-connection", format!("\"Upgrade\" is passed on, but {sent}"))
            .breaks(
                "Upgrade counts for one hop only if Connection names it: WebSocket handshakes of this pass fail with 400 or \
                 426.",
            )
            .at(view::place(model, upgrade.node));
        if let Some(connection) = connection {
            one = one.at(view::place(model, connection.node));
        }
        found.push(one.at(view::pass_place(model, pass)).fix(
            "in http: map $http_upgrade $connection_upgrade { default upgrade; '' close; } and here: proxy_set_header \
             Connection $connection_upgrade;",
        ));
    }
    found
}

/// HTTP/1.0 has no Upgrade.
pub(super) fn http10(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (pass, headers) in upgrading(model) {
        let Some(version) = model.effective_of(pass, "http_version") else { continue };
        let Some(upgrade) =
            view::find(&headers, "Upgrade").filter(|_| version.value.as_deref() == Some("1.0"))
        else {
            continue;
        };
        let line = match version.node() {
            Some(node) => view::place(model, node),
            None => {
                Place::default_of(format!("proxy_http_version 1.0 ({})", version.origin.unwrap_or_default()))
            }
        };
        found.push(
            Finding::problem(
                "upgrade-with-http-1.0",
                "\"Upgrade\" is passed on in requests of HTTP/1.0, which does not know it",
            )
            .likely("a server that takes Upgrade in HTTP/1.0 nevertheless")
            .breaks("WebSocket handshakes of this pass fail with 400 or 426; other requests are well.")
            .at(view::place(model, upgrade.node))
            .at(line)
            .at(view::pass_place(model, pass))
            .fix("add `proxy_http_version 1.1;` to this block"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::config::testing::{clean, clean_in, one, one_in},
        nginx::Version,
    };

    fn at(lines: &str) -> String {
        format!(
            "http {{ map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }} server {{ location / {{ {lines} \
             proxy_pass http://127.0.0.1:3000; }} }} }}"
        )
    }

    #[test]
    fn connection_must_name_it() {
        one(no_connection, &at("proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"));
        let found = one(
            no_connection,
            &at("proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"\";"),
        );
        assert!(found.summary.contains("\"\""), "{found:?}");
        for lines in [
            "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;",
            "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"Upgrade\";",
            "proxy_set_header upgrade $http_upgrade; proxy_set_header connection \"keep-alive, Upgrade\";",
            "proxy_set_header Upgrade \"\";",
            "proxy_set_header Connection \"\";",
        ] {
            clean(no_connection, &at(lines));
        }
    }

    #[test]
    fn versions_of_http() {
        let both = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;";
        one_in(http10, &at(both), Version(1, 22, 1));
        one(http10, &at(&format!("proxy_http_version 1.0; {both}")));
        clean_in(http10, &at(both), Version(1, 29, 7));
        clean(http10, &at(&format!("proxy_http_version 1.1; {both}")));
        clean_in(http10, &at(""), Version(1, 22, 1));
    }
}
