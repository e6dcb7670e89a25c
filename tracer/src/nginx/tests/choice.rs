//! What nginx has to choose from.

use super::read;
use crate::nginx::{Model, choice::Destination};

const SHOP: &str = r"http {
    upstream app { server 127.0.0.1:3000; }
    upstream api { server 127.0.0.1:3001; }
    error_page 500 502 /50x.html;
    server {
        listen 80;
        proxy_cache kept;
        location /app { proxy_cache off; proxy_pass http://app; }
        location /if { proxy_cache off; if ($arg_x) { return 502; } proxy_pass http://app; }
        location /cached { proxy_pass http://app; }
        location /set { proxy_cache off; set $to app.test; proxy_pass http://$to:1; }
        location /group { proxy_cache off; set $to api; proxy_pass http://$to; }
        location /host { proxy_cache off; proxy_pass http://$host:1; }
        location /cookie { proxy_cache off; proxy_pass http://$cookie_to; }
        location /name { proxy_cache off; proxy_pass http://localhost:3000; }
        location /port { proxy_cache off; proxy_pass http://127.0.0.1:$arg_port; }
        location /socket { proxy_cache off; proxy_pass http://unix:/run/$arg_app:; }
        location /slash { proxy_cache off; proxy_pass http:/$uri; }
        location /ip { proxy_cache off; proxy_pass http://127.0.0.1:1; }
        location /return { return 502; }
        location = /50x.html { return 200; }
    }
}
";

#[test]
fn destinations() {
    let model = Model::new(read(SHOP).unwrap());
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    let variable = |name: &str| (name == "host").then(|| "Shop.test".to_owned());
    let resolve =
        |name: Option<&str>, sure| Some(Destination::Resolve { name: name.map(str::to_owned), sure });
    let host = Destination::Host { host: "localhost".to_owned(), port: 3000 };
    for (target, destination) in [
        ("/app", Some(Destination::Group(0))),
        ("/if", Some(Destination::Group(0))),
        ("/cached", Some(Destination::Group(0))),
        ("/set", resolve(Some("app.test"), true)),
        ("/group", Some(Destination::Group(1))),
        ("/host", resolve(Some("shop.test"), true)),
        ("/cookie", resolve(None, false)),
        ("/name", Some(host)),
        ("/port", None),
        ("/socket", None),
        ("/slash", resolve(None, false)),
        ("/ip", None),
    ] {
        let located = model.locate(None, Some("shop.test"), target);
        let pass = model.passes.iter().position(|pass| pass.location == located.location).unwrap();
        assert_eq!(model.destination(pass, &variable), destination, "{target}");
        // What is cached, or may be a unix socket's answer, can lead anywhere.
        let redirects = ["/cached", "/host", "/cookie", "/port", "/socket", "/slash"].contains(&target);
        assert_eq!(located.passes.contains(&pass) && located.passes.len() > 1, redirects, "{located:?}");
        assert!(located.because.contains(&"error_page"), "{target}: {located:?}");
    }
    assert!(model.locate(None, Some("shop.test"), "/return").passes.is_empty());
}

#[test]
fn what_an_error_page_leaves_of_a_status() {
    const PAGES: &str = r"http {
    error_page 500 502 /50x.html;
    server {
        listen 80;
        location /plain { proxy_pass http://127.0.0.1:1; }
        location /masked { error_page 502 =200 /sorry; proxy_pass http://127.0.0.1:1; }
        location /page { error_page 502 = /sorry; proxy_pass http://127.0.0.1:1; }
        location /away { error_page 502 https://example.com/sorry; proxy_pass http://127.0.0.1:1; }
        location /other { error_page 404 =200 /sorry; proxy_pass http://127.0.0.1:1; }
    }
}
";
    let model = Model::new(read(PAGES).unwrap());
    for (target, shown) in [
        ("/plain", Some(502)),
        ("/masked", None),
        ("/page", None),
        ("/away", Some(302)),
        ("/other", Some(502)),
    ] {
        let only = model.locate(None, Some("x"), target).passes;
        assert_eq!(model.shown_status(&only, 502), shown, "{target}");
    }
    let all: Vec<usize> = (0..model.passes.len()).collect();
    assert_eq!((model.shown_status(&all, 502), model.shown_status(&[], 502)), (None, None));
    let bare = Model::new(read("http { server { location / { proxy_pass http://127.0.0.1:1; } } }").unwrap());
    assert_eq!(bare.shown_status(&[], 502), Some(502));
}
