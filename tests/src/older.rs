//! Connections that are older than why502: each stands in a state of its own when it starts, and what becomes of them
//! afterwards is told as if it had been there from the beginning, or not at all, but never wrongly.

use crate::backend::{self, Backend, Backends};
use crate::case::Nginx as Settings;
use crate::client;
use crate::judge::text;
use crate::net::{self, World};
use crate::nginx::Nginx;
use crate::report;
use crate::stress::{self, Options, Scratch};
use crate::sys;
use crate::watch::{Program, Start, Watch};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const NGINX: &str = "127.0.0.1:8080";
const FIRST_PORT: u16 = 3000;

/// What the client does before why502 starts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Has its answer: the upstream connection is kept.
    Answered,
    /// Waits for one.
    Waits,
    /// Has the head of one.
    Begun,
}

/// One connection.
struct Scene {
    name: &'static str,
    /// What its backend does; `go` is there when why502 watches.
    script: &'static str,
    /// A process of its own.
    fork: bool,
    /// Directives of its location.
    pass: &'static str,
    /// Lines of the client's head.
    head: &'static str,
    before: Before,
    /// Another request, when why502 watches.
    again: bool,
    /// The cause that must be told, with or without proof; none: nothing may be.
    cause: Option<&'static str>,
    /// What is not known forbids proof.
    at_most_likely: bool,
}

const QUIET: Scene = Scene {
    name: "",
    script: "",
    fork: false,
    pass: "",
    head: "",
    before: Before::Waits,
    again: false,
    cause: None,
    at_most_likely: false,
};

const SCENES: &[Scene] = &[
    Scene {
        name: "kept-then-reset",
        script: "read head\nread body\nanswer 200 hello\nread head\nread body\nrst",
        before: Before::Answered,
        again: true,
        cause: Some("upstream-reset"),
        ..QUIET
    },
    Scene {
        name: "kept-then-closed",
        script: "read head\nread body\nanswer 200 hello\nread head\nread body\nclose",
        before: Before::Answered,
        again: true,
        cause: Some("upstream-closed-early"),
        ..QUIET
    },
    Scene {
        name: "kept-then-503",
        script: "read head\nread body\nanswer 200 hello\nread head\nread body\nanswer 503 no\nclose",
        before: Before::Answered,
        again: true,
        cause: Some("upstream-returned-5xx"),
        ..QUIET
    },
    Scene {
        name: "kept-then-truncated",
        script: "read head\nread body\nanswer 200 hello\nread head\nread body\n\
                 send HTTP/1.1 200 OK\\r\\nContent-Length: 900\\r\\n\\r\\nhello\nwait 20\nclose",
        before: Before::Answered,
        again: true,
        cause: Some("response-truncated"),
        ..QUIET
    },
    Scene { name: "unanswered", script: "read head\nread body\nstall", cause: Some("read-timeout"), ..QUIET },
    Scene {
        name: "closed",
        script: "read head\nread body\nawait go\nclose",
        cause: Some("upstream-closed-early"),
        ..QUIET
    },
    Scene {
        name: "reset",
        script: "read head\nread body\nawait go\nrst",
        cause: Some("upstream-reset"),
        ..QUIET
    },
    Scene {
        name: "died",
        script: "read head\nread body\nawait go\nexit 3",
        fork: true,
        cause: Some("upstream-died"),
        ..QUIET
    },
    Scene {
        name: "fastcgi-closed",
        script: "read fastcgi\nawait go\nclose",
        pass: "fastcgi_pass @UPSTREAM@; fastcgi_param REQUEST_METHOD POST; fastcgi_read_timeout 600s;",
        cause: Some("upstream-closed-early"),
        ..QUIET
    },
    Scene {
        name: "body-reset",
        script: "read head\nread body\nsend HTTP/1.1 200 OK\\r\\nContent-Length: 900\\r\\n\\r\\nhello\nawait go\nrst",
        before: Before::Begun,
        cause: Some("upstream-reset"),
        at_most_likely: true,
        ..QUIET
    },
    // The look-alikes: nothing failed.
    Scene { name: "answered", script: "read head\nread body\nawait go\nanswer 200 hello\nclose", ..QUIET },
    Scene {
        name: "kept-and-used",
        script: "read head\nread body\nanswer 200 hello\nagain",
        before: Before::Answered,
        again: true,
        ..QUIET
    },
    Scene {
        name: "kept-and-closed-while-idle",
        script: "read head\nread body\nanswer 200 hello\nawait go\nclose",
        before: Before::Answered,
        ..QUIET
    },
    Scene {
        name: "kept-and-reset-while-idle",
        script: "read head\nread body\nanswer 200 hello\nawait go\nrst",
        before: Before::Answered,
        ..QUIET
    },
    Scene {
        name: "body-goes-on",
        script: "read head\nread body\nsend HTTP/1.0 200 OK\\r\\n\\r\\nhello\nawait go\nsend more\nclose",
        before: Before::Begun,
        ..QUIET
    },
    Scene {
        name: "upgraded",
        script: "read head\nread body\n\
                 send HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: echo\\r\\nConnection: upgrade\\r\\n\\r\\n\n\
                 await go\nclose",
        pass: "proxy_pass http://@UPSTREAM@; proxy_http_version 1.1; proxy_set_header Upgrade echo; \
               proxy_set_header Connection upgrade; proxy_read_timeout 600s;",
        head: "Upgrade: echo\r\nConnection: upgrade\r\n",
        before: Before::Begun,
        ..QUIET
    },
];

/// A set-up that nginx's own timer has overtaken is made anew with a longer one, so often.
const SET_UPS: u32 = 4;

/// Plays and judges; true if nothing is amiss.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let Some(program) = &options.program else { bail!("this run needs --why502 PATH") };
    // why502's start takes 25 seconds of it in an emulated guest.
    let mut timeout = Duration::from_secs(if options.slow > 1.0 { 40 } else { 8 });
    for _ in 0..SET_UPS {
        let bound = Duration::from_secs_f64(15.0 * options.slow);
        match play(program, timeout, bound)? {
            Played::Judged(good) => return Ok(good),
            Played::Overtaken => {
                report::say(&format!(
                    "set up again: a connection had ended when why502 watched, {} s after its request",
                    timeout.as_secs()
                ));
                timeout *= 2;
            }
        }
    }
    report::say(&format!("failed: the lab: why502 took longer to start than nginx waits, {SET_UPS} times"));
    report::say("0 passed, 1 failed, 0 skipped");
    Ok(false)
}

/// What became of one set-up.
enum Played {
    Judged(bool),
    /// Not all connections stood when why502 watched: nothing can be judged.
    Overtaken,
}

/// One set-up: connections in all states, why502 started among them, and what it says of their ends.
fn play(program: &Program, timeout: Duration, bound: Duration) -> Result<Played> {
    let scratch = Scratch(std::env::temp_dir().join(format!("w502-{}", net::tag())));
    let dir = scratch.0.as_path();
    std::fs::create_dir_all(dir.join("tmp"))?;
    let world = World::create(&BTreeMap::new())?;
    let web = &world.web;
    let mut backends = Backends::default();
    for (port, scene) in ports() {
        let backend = Backend {
            address: format!("127.0.0.1:{port}"),
            tls: false,
            script: scene.script.to_owned(),
            fork: scene.fork,
            backlog: 128,
            seed: 1,
        };
        backends.0.extend(backend::start(web, &backend, dir, bound)?);
    }
    let nginx = Nginx::start(web, &settings(timeout), dir, bound)?;
    let mut clients = web.run(|| begin(bound))?;
    let watch = match Watch::start(program, bound)? {
        Start::Refused(why) => {
            report::say(&format!("skip {}\n0 passed, 0 failed, 1 skipped", why.lines().last().unwrap_or("")));
            return Ok(Played::Judged(true));
        }
        Start::Running(watch) => watch,
    };
    // What stands now stood when why502 looked.
    if !web.run(|| Ok(all_stand()))? {
        return Ok(Played::Overtaken);
    }
    let pids: BTreeSet<u32> = web.pids().into_iter().collect();
    std::fs::write(dir.join("go"), "")?;
    web.run(|| go_on(&mut clients))?;
    let expected = SCENES.iter().filter(|scene| scene.cause.is_some()).count();
    sys::poll_until(bound + timeout, || watch.incidents(&pids).len() >= expected);
    stress::stand_still(&watch);
    let incidents = watch.incidents(&pids);
    drop(clients);
    Nginx::stop_all(web, bound);
    drop(backends);
    let mut problems = judge(&incidents);
    if !watch.stderr().contains(&format!("; {} upstream connections that stood already", SCENES.len())) {
        problems.push(format!("not all {} connections were found", SCENES.len()));
    }
    let log = nginx.read("error.log");
    let end = watch.finish(bound);
    problems.extend(end.problems);
    if !problems.is_empty() {
        report::note(&format!("nginx's log:\n{log}"));
    }
    Ok(Played::Judged(stress::verdict(&problems, &end.stderr)))
}

fn ports() -> impl Iterator<Item = (u16, &'static Scene)> {
    (FIRST_PORT..).zip(SCENES)
}

/// `unanswered`: how long nginx waits there; longer than why502 takes to start.
fn settings(unanswered: Duration) -> Settings {
    let mut conf = String::new();
    let mut locations = String::new();
    let unanswered = unanswered.as_secs();
    for (port, scene) in ports() {
        let name = scene.name;
        conf +=
            &format!("upstream {name} {{ server 127.0.0.1:{port}; keepalive 4; keepalive_timeout 600s; }}\n");
        let seconds = if name == "unanswered" { unanswered } else { 600 };
        let pass = if scene.pass.is_empty() {
            format!(
                "proxy_pass http://{name}; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                 proxy_read_timeout {seconds}s; proxy_buffering off;"
            )
        } else {
            scene.pass.replace("@UPSTREAM@", name)
        };
        locations += &format!("    location /{name}/ {{ {pass} }}\n");
    }
    conf += &format!("server {{\n    listen {NGINX};\n    keepalive_timeout 600s;\n{locations}}}\n");
    Settings { workers: 2, ..Settings::plain(conf, NGINX) }
}

struct Client {
    scene: &'static Scene,
    stream: BufReader<TcpStream>,
}

fn request(scene: &Scene, number: u32) -> String {
    // What may not be sent twice is not tried again on another connection.
    format!(
        "POST /{}/{number} HTTP/1.1\r\nHost: {}\r\nContent-Length: 3\r\n{}\r\na=b",
        scene.name,
        client::HOST,
        scene.head
    )
}

/// Brings each connection into its state.
fn begin(bound: Duration) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for scene in SCENES {
        let stream = TcpStream::connect(NGINX).context("cannot connect to nginx")?;
        stream.set_read_timeout(Some(bound))?;
        let mut stream = BufReader::new(stream);
        match scene.before {
            Before::Answered => {
                let status = client::exchange(&mut stream, &request(scene, 1))
                    .with_context(|| format!("{}: the first request", scene.name))?;
                ensure!(status == 200, "{}: the first answer is {status}", scene.name);
            }
            Before::Waits => stream.get_mut().write_all(request(scene, 1).as_bytes())?,
            Before::Begun => {
                stream.get_mut().write_all(request(scene, 1).as_bytes())?;
                let read = stream.get_mut().read(&mut [0; 4096]);
                ensure!(
                    read.with_context(|| format!("{}: no answer", scene.name))? > 0,
                    "{}: no answer",
                    scene.name
                );
            }
        }
        clients.push(Client { scene, stream });
    }
    ensure!(sys::poll_until(bound, all_stand), "not every upstream connection stands");
    Ok(clients)
}

/// Whether every upstream connection is established. One whose request has not gone out yet is none.
fn all_stand() -> bool {
    let all = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    let to = |port: u16| all.lines().any(|line| line.contains(&format!(":{port:04X} 01 ")));
    ports().all(|(port, _)| to(port))
}

/// Sends the second requests.
fn go_on(clients: &mut [Client]) -> Result<()> {
    for client in clients.iter_mut().filter(|client| client.scene.again) {
        client.stream.get_mut().write_all(request(client.scene, 2).as_bytes())?;
    }
    Ok(())
}

/// Each incident against the connection whose server it names.
fn judge(incidents: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known = 0;
    for (port, scene) in ports() {
        let address = format!("127.0.0.1:{port}");
        let its: Vec<&Value> = incidents.iter().filter(|i| text(i, "/upstream/address") == address).collect();
        known += its.len();
        let told: Vec<String> =
            its.iter().map(|i| format!("{} {}", text(i, "/cause"), text(i, "/confidence"))).collect();
        let name = scene.name;
        report::say(&format!("  {name:<28} {}", told.join(", ")));
        match (scene.cause, its.as_slice()) {
            (None, []) => {}
            (Some(cause), [one]) if text(one, "/cause") == cause => {
                if scene.at_most_likely && text(one, "/confidence") == "proven" {
                    problems.push(format!("{name}: FALSE PROVEN: {one}"));
                }
            }
            (cause, _) => {
                let expected = cause.unwrap_or("nothing");
                let all: Vec<String> = its.iter().map(ToString::to_string).collect();
                problems.push(format!("{name}: expected {expected}, told {told:?}: {}", all.join("\n")));
            }
        }
    }
    if known < incidents.len() {
        problems.push(format!("{} incidents of no scene", incidents.len() - known));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script;
    use serde_json::json;

    #[test]
    fn every_scene_can_be_played() {
        for scene in SCENES {
            assert!(!scene.name.is_empty());
            script::parse(scene.script).unwrap();
        }
    }

    #[test]
    fn one_right_incident_for_each_that_failed() {
        let right = |(port, scene): (u16, &Scene)| {
            let address = format!("127.0.0.1:{port}");
            let cause = scene.cause?;
            Some(json!({"upstream": {"address": address}, "cause": cause, "confidence": "likely"}))
        };
        let mut all: Vec<Value> = ports().filter_map(right).collect();
        assert_eq!(judge(&all), Vec::<String>::new());
        let last = all.pop().unwrap();
        assert_eq!(judge(&all).len(), 1, "missing");
        all.extend([last.clone(), last]);
        assert_eq!(judge(&all).len(), 1, "twice");
        for incident in &mut all {
            incident["cause"] = json!("read-timeout");
        }
        let wrong = SCENES.iter().filter(|s| s.cause.is_some_and(|cause| cause != "read-timeout")).count();
        assert_eq!(judge(&all).len(), wrong);
    }
}
