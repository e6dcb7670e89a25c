//! The demonstration: asks nginx for each route, lets why502 speak, and checks what it said.
//!
//! Two why502 watch the same nginx: one writes text for the reader, one JSON for the check.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::InsideArgs;
use super::routes::{self, Mark, ROUTES, Route};
use super::scene::{self, Scene};
use super::watcher::{Text, Watcher, about, of_type};
use crate::signals;

const STREAM: &str = "incidents.json";

pub(super) fn run(args: &InsideArgs) -> Result<ExitCode> {
    signals::catch()?;
    let bound = Duration::from_secs(15) * args.slow;
    let scene = Scene::build(bound)?;
    heading(
        args,
        &format!(
            "nginx with a healthy and {} broken upstreams: {}",
            broken(),
            scene.file("nginx.conf").display()
        ),
    );
    print_config();

    let json = File::create(scene.file(STREAM)).context("cannot create a file for why502's output")?;
    let mut checked =
        Watcher::start(why502(args, &scene, "json"), json.into(), scene.file("json.err"), bound)?;
    let command = format!("why502 trace -p {}", scene.master());
    heading(args, &command);
    let (text, stdout) = Text::new()?;
    let mut shown = Watcher::start(why502(args, &scene, "text"), stdout, scene.file("text.err"), bound)?;
    println!("{}", shown.take_stderr());

    let verdict_bound = bound.min(Duration::from_secs(20));
    let mut wrong = Vec::new();
    for route in played(&scene) {
        signals::go_on()?;
        let status = scene.request(route.path, bound)?;
        heading(args, &format!("GET {} -> {status}", route.path));
        if status != route.status {
            wrong.push(format!("GET {} answered {status} instead of {}", route.path, route.status));
        }
        if route.cause.is_some() {
            // What does not come is missed by the check below.
            signals::poll_until(verdict_bound, || !said(&scene, route).is_empty());
            print!("{}", text.take(verdict_bound));
        } else {
            println!("(healthy: why502 has nothing to say)\n");
        }
    }
    shown.finish(bound)?;
    print!("{}", text.rest());
    println!("{}", shown.take_stderr());
    let tier = checked.tier();
    checked.finish(bound)?;
    signals::go_on()?;
    check(args, &scene, &tier, wrong)
}

fn why502(args: &InsideArgs, scene: &Scene, output: &str) -> Command {
    let mut command = scene::mortal(&args.why502);
    command.args(["trace", "--pid"]).arg(scene.master().to_string()).args(["--output", output]);
    command.args(["--tier", &args.tier, "--color", &args.color]);
    command
}

fn played(scene: &Scene) -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| !scene.skipped.iter().any(|(path, _)| *path == route.path))
}

fn broken() -> usize {
    ROUTES.iter().filter(|route| route.cause.is_some()).count()
}

fn stream(scene: &Scene) -> String {
    fs::read_to_string(scene.file(STREAM)).unwrap_or_default()
}

fn said(scene: &Scene, route: &Route) -> Vec<Value> {
    about(&of_type(&stream(scene), "incident"), route.address).into_iter().cloned().collect()
}

/// Compares the JSON stream with what is right; the last line says how it went.
fn check(args: &InsideArgs, scene: &Scene, tier: &str, mut wrong: Vec<String>) -> Result<ExitCode> {
    let stream = stream(scene);
    let incidents = of_type(&stream, "incident");
    let (mut right, mut weak) = (0, 0);
    heading(args, &format!("check: the same from `why502 trace -o json`, tier {tier}"));
    for route in ROUTES {
        if let Some((_, why)) = scene.skipped.iter().find(|(path, _)| *path == route.path) {
            println!("  skipped  {:<10} {why}", route.path);
            continue;
        }
        let mark = routes::judge(route, tier, &about(&incidents, route.address));
        let expected = route.cause.map_or("nothing to say", |(cause, _)| cause);
        match mark {
            Mark::Right => {
                right += 1;
                println!("  right    {:<10} {expected}", route.path);
            }
            Mark::Weak(said) => {
                weak += 1;
                println!("  weaker   {:<10} {said}; with more hooks: {expected}", route.path);
            }
            Mark::Wrong(why) => {
                println!("  WRONG    {:<10} {why}", route.path);
                wrong.push(format!("{}: {why}", route.path));
            }
        }
    }
    let ours = |incident: &&Value| {
        ROUTES.iter().any(|r| !about(std::slice::from_ref(*incident), r.address).is_empty())
    };
    let strange = incidents.iter().filter(|incident| !ours(incident)).count();
    if strange > 0 {
        wrong.push(format!("{strange} incidents about addresses that nobody asked for"));
    }
    let summaries = of_type(&stream, "summary");
    match summaries.first().and_then(|summary| summary.get("events_lost")).and_then(Value::as_u64) {
        Some(0) => {}
        lost => wrong.push(format!("summary.events_lost must be 0 and is {lost:?}")),
    }
    std::io::stdout().flush().context("cannot write to stdout")?;
    if !wrong.is_empty() {
        bail!("why502 was wrong:\n  {}", wrong.join("\n  "));
    }
    let weaker = if weak == 0 { String::new() } else { format!(", {weak} weaker for want of hooks") };
    let skipped =
        if scene.skipped.is_empty() { String::new() } else { format!(", {} skipped", scene.skipped.len()) };
    println!("demo: {right} right, 0 wrong{weaker}{skipped}");
    if weak > 0 {
        println!("demo: `cargo xtask demo --guest 6.12` shows the same on a kernel that allows all hooks");
    }
    Ok(ExitCode::SUCCESS)
}

fn heading(args: &InsideArgs, text: &str) {
    let auto = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if args.color == "always" || args.color == "auto" && auto {
        println!("\x1b[1m── {text}\x1b[0m");
    } else {
        println!("── {text}");
    }
}

/// The lines that file:line refers to.
fn print_config() {
    for (number, line) in (1..).zip(routes::config().lines()) {
        if ["upstream", "location", "proxy_connect_timeout"]
            .iter()
            .any(|word| line.trim_start().starts_with(word))
        {
            println!("{number:>5}  {line}");
        }
    }
    println!();
}
