//! What the backends of the chaos run do, and nginx's configuration of it.

/// Port, whether each connection is a process of its own, script.
pub(super) const BACKENDS: &[(u16, bool, &str)] = &[
    (3000, false, PLAIN),
    (3001, false, KEPT),
    (3002, false, PLAIN),
    (3003, true, MORTAL),
    (3004, false, FASTCGI),
    (3005, false, UWSGI),
    (3006, false, SCGI),
    (3007, false, MEMCACHED),
    (3008, false, GRPC),
    (3009, false, BIG),
    (3010, false, NO_TLS),
    (3012, false, SLOW),
];

/// One connection, one request.
const PLAIN: &str = r"
= 600 good
read head
read body
answer 200 hello
close
= 40 slow and in time
read head
read body
wait 60
answer 200 hello
close
= 30 the end of the stream ends the body
read head
read body
send HTTP/1.0 200 OK\r\n\r\nhello
close
= 15 chunked
read head
read body
send HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n
close
= 15 reset when all is said
read head
read body
answer 200 hello
wait 30
rst
= 15 more than was announced
read head
read body
send HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello
close
= 5 a body without an end of its own, and a request not read whole: RST, if it had a body
read head
send HTTP/1.0 200 OK\r\n\r\nhello
close
= 10 no header
read head
read body
send hello\n
close
= 30 early
read head
read body
close
= 20 within the header
read head
read body
send HTTP/1.1 200 OK\r\nContent-Ty
close
= 25
read head
read body
rst
= 15
await-data
rst
= 15
await-data
close
= 10
rst
= 12
read head
read body
read all
= 6
stall
= 10
read head
send HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhello
read all
= 20
read head
read body
send HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhello
wait 10
close
= 12
read head
read body
send HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhello
rst
= 10
read head
read body
send HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel
close
= 15
read head
read body
send HTTP/1.1 200 OK\r\nX-Big: 
fill 6000
send \r\nContent-Length: 2\r\n\r\nok
close
= 15
read head
read body
send HTTP/1.1 200 OK\r\n: no name\r\nContent-Length: 2\r\n\r\nok
close
= 10
read head
read body
answer 500 no
close
= 10
read head
read body
answer 502 no
close
= 10
read head
read body
answer 503 no
close
= 5
read head
read body
answer 504 no
close
";

/// Connections that are kept, for a while.
const KEPT: &str = r"
= 800
read head
read body
answer 200 hello
again
= 40 closes what is idle
read head
read body
answer 200 hello
wait 3
close
= 20
read head
read body
answer 200 hello
wait 1
rst
= 30
read head
read body
answer 200 hello
close
= 20
read head
read body
close
= 15
read head
read body
rst
= 10
await-data
close
= 8
read head
read body
read all
= 10
read head
read body
send HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello
close
= 10
read head
read body
send HTTP/1.1 200 OK\r\nX-Big: 
fill 6000
send \r\nContent-Length: 2\r\n\r\nok
again
= 20
read head
read body
answer 503 no
again
= 10
read head
read body
send HTTP/1.1 204 No\r\n\r\n
again
";

/// Processes that end.
const MORTAL: &str = r"
= 500
read head
read body
answer 200 hello
close
= 30
read head
read body
exit 3
= 30
read head
read body
signal SEGV
= 20
read head
read body
signal KILL
= 20
await-data
signal ABRT
= 20
read head
read body
send HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello
exit 1
";

const FASTCGI: &str = r"
= 400
read fastcgi
fcgi Content-Type: text/plain\r\n\r\nhello
fcgi-end
close
= 20
read fastcgi
close
= 15
read fastcgi
rst
= 10
read fastcgi
read all
= 10
read fastcgi
send HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n
fin
read all
= 10
read fastcgi
fcgi Status: 503 Busy\r\nContent-Type: text/plain\r\n\r\nno
fcgi-end
close
";

const UWSGI: &str = r"
= 300
read uwsgi
read rest
answer 200 hello
close
= 20
read uwsgi
read rest
close
= 15
await-data
close
= 8
read uwsgi
read rest
read all
= 10
read uwsgi
read rest
send HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello
close
";

const SCGI: &str = r"
= 300
read scgi
read rest
send Status: 200 OK\r\nContent-Length: 5\r\n\r\nhello
close
= 20
read scgi
read rest
close
= 15
read scgi
read rest
rst
= 8
read scgi
read rest
read all
";

const MEMCACHED: &str = r"
= 300
read line
send VALUE k 0 5\r\nhello\r\nEND\r\n
close
= 30
read line
send END\r\n
close
= 20
read line
close
= 15
read line
rst
= 15
read line
send HTTP/1.1 400 Bad Request\r\n\r\n
fin
read all
";

/// The preface and nginx's settings are 24 and more bytes; what follows is read to the end.
const GRPC: &str = r"
= 200
read 24
send \x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88\x00\x00\x05\x00\x01\x00\x00\x00\x01hello
read all
= 15
read 24
send \x00\x00\x00\x04\x00\x00\x00\x00\x00
wait 20
fin
read all
= 15
read 24
rst
= 10
read 24
send HTTP/1.1 400 Bad Request\r\n\r\n
fin
read all
= 8
read all
";

/// Six million bytes come.
const BIG: &str = r"
= 200
read head
read body
answer 200 hello
close
= 30
read head
read 100000
close
= 30
read head
stall
= 20
read head
read 300000
rst
";

/// No TLS on a port where nginx expects it.
const NO_TLS: &str = r"
= 20
read 5
wait 5
send HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n
fin
read all
= 10
read 5
send \x15\x03\x03\x00\x02\x02\x28
fin
read all
= 10
read 100
fin
read all
= 10
await-data
rst
= 5
read all
";

/// For clients that leave.
const SLOW: &str = r"
= 1
read head
read body
wait 100
answer 200 hello
close
";

/// Places and how often each is asked for.
const PLACES: &[(&str, u64)] = &[
    ("plain", 24),
    ("kept", 30),
    ("next", 10),
    ("all", 8),
    ("off", 5),
    ("mortal", 6),
    ("fcgi", 6),
    ("uwsgi", 4),
    ("scgi", 3),
    ("mem", 3),
    ("grpc", 4),
    ("big", 1),
    ("tls", 6),
    ("notls", 3),
    ("verify", 1),
    ("refused", 3),
    ("lost", 1),
    ("dead", 2),
    ("leave", 3),
];

/// The place at `dice` (any number).
pub(super) fn place(dice: u64) -> &'static str {
    let mut at = dice % PLACES.iter().map(|(_, weight)| weight).sum::<u64>();
    for (place, weight) in PLACES {
        if at < *weight {
            return place;
        }
        at -= weight;
    }
    "plain"
}

pub(super) const CONF: &str = r#"
upstream kept { server 127.0.0.1:3001 max_fails=0; keepalive 8; }
upstream next { server 127.0.0.1:3000 max_fails=0; server 127.0.0.1:3002 max_fails=0; }
upstream dead { server 127.0.0.1:20002 fail_timeout=1s; server 127.0.0.1:20003 fail_timeout=1s; }
client_max_body_size 0;
keepalive_requests 100000;
proxy_connect_timeout 300ms;
proxy_read_timeout 400ms;
proxy_send_timeout 400ms;
proxy_buffer_size 4k;
proxy_ssl_protocols TLSv1.2 TLSv1.3;
fastcgi_read_timeout 400ms;
uwsgi_read_timeout 400ms;
scgi_read_timeout 400ms;
memcached_read_timeout 400ms;
grpc_read_timeout 400ms;
server {
    listen 127.0.0.1:8080 backlog=1024;
    location /plain/ { proxy_pass http://127.0.0.1:3000; }
    location /kept/ { proxy_pass http://kept; proxy_http_version 1.1; proxy_set_header Connection ""; }
    location /next/ { proxy_pass http://next; }
    location /all/ {
        proxy_pass http://next;
        proxy_next_upstream error timeout invalid_header http_500 http_502 http_503 http_504 non_idempotent;
    }
    location /off/ { proxy_pass http://next; proxy_next_upstream off; }
    location /mortal/ { proxy_pass http://127.0.0.1:3003; }
    location /fcgi/ { fastcgi_pass 127.0.0.1:3004; fastcgi_param REQUEST_METHOD GET; }
    location /uwsgi/ { uwsgi_pass 127.0.0.1:3005; uwsgi_param REQUEST_METHOD GET; }
    location /scgi/ { scgi_pass 127.0.0.1:3006; scgi_param REQUEST_METHOD GET; }
    location /mem/ { set $memcached_key k; memcached_pass 127.0.0.1:3007; }
    location /grpc/ { grpc_pass grpc://127.0.0.1:3008; }
    location /big/ { proxy_pass http://127.0.0.1:3009; }
    location /notls/ { proxy_pass https://127.0.0.1:3010; }
    location /tls/ { proxy_pass https://127.0.0.1:3011; }
    location /verify/ {
        proxy_pass https://127.0.0.1:3011;
        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate @DIR@/cert.pem;
        proxy_ssl_name other.example.com;
    }
    location /refused/ { proxy_pass http://127.0.0.1:20001; }
    location /lost/ { proxy_pass http://127.0.0.1:20009; }
    location /dead/ { proxy_pass http://dead; }
    location /leave/ { proxy_pass http://127.0.0.1:3012; }
}
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script;

    #[test]
    fn every_backend_can_be_played() {
        for (port, _, text) in BACKENDS {
            let script = script::parse(text).unwrap();
            assert!(script.choices.iter().all(|choice| !choice.steps.is_empty()), "port {port}");
        }
    }

    #[test]
    fn every_place_is_configured_and_drawn() {
        let drawn: std::collections::BTreeSet<_> = (0..1000).map(place).collect();
        for (name, _) in PLACES {
            assert!(drawn.contains(name), "{name}");
            assert!(CONF.contains(&format!("location /{name}/ ")), "{name}");
        }
    }
}
