//! From nginx's own words for a place to the passes there.

use std::path::Path;

use super::read;
use crate::nginx::Model;

const CONF: &str = "http {
server {
  listen 80;
  location / { proxy_pass http://127.0.0.1:1; }
  location ~ \\.php$ { proxy_pass http://127.0.0.1:2; }
  location = /x { proxy_pass http://127.0.0.1:3; }
  location /x { if ($a) { proxy_pass http://127.0.0.1:4; } proxy_pass http://127.0.0.1:5; }
  location @back { proxy_pass http://127.0.0.1:6; }
}
server
{ location / { proxy_pass http://127.0.0.1:7; } }
server { location / { proxy_pass http://127.0.0.1:8; } } server { location / { proxy_pass http://127.0.0.1:9; } }
}
stream {
server { listen 81; proxy_pass 127.0.0.1:1; }
server { listen 82; return x; }
}";

#[test]
fn a_place_is_found_by_what_nginx_keeps() {
    let model = Model::new(read(CONF).unwrap());
    let main = model.config().files().next().unwrap().0.to_path_buf();
    let urls = |line: u32, location: &str| {
        model.place(&main, line, location.as_bytes()).map(|located| {
            let urls: Vec<char> =
                located.passes.iter().map(|p| model.passes[*p].url.chars().last().unwrap()).collect();
            assert_eq!(located.exact, urls.len() == 1);
            urls
        })
    };
    assert_eq!(urls(2, "/"), Some(vec!['1']));
    assert_eq!(urls(2, "\\.php$"), Some(vec!['2']));
    assert_eq!(urls(2, "/x"), Some(vec!['3', '4', '5']), "whichever of that name");
    assert_eq!(urls(2, "@back"), Some(vec!['6']));
    assert_eq!(urls(11, "/"), Some(vec!['7']), "the line of the brace");
    assert_eq!(urls(10, "/"), None);
    assert_eq!(urls(12, "/"), None, "two servers in a line");
    assert_eq!(urls(2, ""), None);
    assert_eq!(urls(2, "/other"), None);
    assert_eq!(urls(15, ""), Some(vec!['1']), "a session of the stream module");
    assert_eq!(urls(15, "/"), None);
    assert_eq!(urls(16, ""), None, "no pass");
    assert_eq!(model.place(Path::new("/else"), 2, b"/"), None);
}
