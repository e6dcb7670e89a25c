//! Width and colours, on a pseudo-terminal and in a pipe.

use std::{
    fs::File,
    os::fd::{FromRawFd as _, OwnedFd},
    process::{Command, Stdio},
};

use crate::{
    nginx::Nginx,
    program::{Ended, Live, Stream, why502},
};

/// A terminal of that many columns: our side and the program's.
fn terminal(columns: u16) -> (File, OwnedFd) {
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut theirs) = (-1, -1);
    let (no_name, no_settings) = (std::ptr::null_mut(), std::ptr::null());
    // SAFETY: the two descriptors and the size live on this stack; name and settings may be null.
    let result =
        unsafe { libc::openpty(&raw mut ours, &raw mut theirs, no_name, no_settings, &raw const size) };
    assert_eq!(result, 0, "no pseudo-terminal: {}", std::io::Error::last_os_error());
    // SAFETY: openpty has just returned both, and nobody else owns them.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

/// One refused attempt, shown on a terminal.
fn on_terminal(nginx: &Nginx, columns: u16, args: &[&str], env: &[(&str, &str)]) -> String {
    let (ours, theirs) = terminal(columns);
    let mut command = command(nginx, args, env);
    let live = Live::start_with(&mut command, Stdio::from(theirs));
    // The command keeps its copy of the terminal; ours must be the only other side.
    drop(command);
    let screen = Stream::follow(ours);
    let live = live.watching();
    assert_eq!(nginx.get("/refused"), 502);
    let ended = live.end();
    ended.code(0);
    assert!(screen.wait(|text| text.contains("3999")), "nothing on the terminal\n{ended}");
    screen.text().replace("\r\n", "\n")
}

/// The same, in a pipe.
fn in_pipe(nginx: &Nginx, args: &[&str], env: &[(&str, &str)]) -> Ended {
    let live = Live::start(&mut command(nginx, args, env)).watching();
    assert_eq!(nginx.get("/refused"), 502);
    let ended = live.end();
    ended.code(0);
    ended
}

fn command(nginx: &Nginx, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = why502(&["-c", "1", "-p", &nginx.pid_arg()]);
    command.args(args).envs(env.iter().copied());
    command
}

#[test]
fn text_is_as_wide_as_the_terminal() {
    let Some(nginx) = Nginx::start() else { return };
    let plain = |columns| on_terminal(&nginx, columns, &["--color=never"], &[]);
    for columns in [60, 80, 120] {
        let text = plain(columns);
        for line in text.lines() {
            // The headline, lines of the configuration and single words (paths) are never broken.
            let headline = line.contains("  worker ");
            let whole = headline || line.contains("nginx.conf:") || line.split_whitespace().count() <= 2;
            assert!(
                whole || line.chars().count() <= usize::from(columns),
                "{columns} columns: {line}\n{text}"
            );
        }
    }
    let words = |text: &str| {
        text.split_whitespace()
            .skip(1)
            .filter(|w| !w.contains('µ') && w.parse::<f64>().is_err())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(plain(60).lines().count() > plain(200).lines().count());
    assert_eq!(words(&plain(60)), words(&plain(200)), "only the breaks differ");
    // In a pipe there is no width: each sentence is one line.
    let pipe = in_pipe(&nginx, &[], &[]).stdout;
    assert_eq!(pipe.lines().filter(|l| l.trim_start().starts_with("evidence")).count(), 1, "{pipe}");
    assert_eq!(words(&pipe), words(&plain(60)));
    // A terminal that does not know its width.
    assert!(plain(0).contains("127.0.0.1:3999"));
}

#[test]
fn colours_by_convention() {
    let Some(nginx) = Nginx::start() else { return };
    let screen = |args: &[&str], env: &[(&str, &str)]| on_terminal(&nginx, 80, args, env).contains('\u{1b}');
    assert!(screen(&[], &[]), "on a terminal");
    assert!(!screen(&["--color=never"], &[]));
    assert!(!screen(&[], &[("NO_COLOR", "1")]));
    assert!(screen(&[], &[("NO_COLOR", "")]), "no-color.org: an empty value does not count");
    assert!(screen(&["--color=always"], &[("NO_COLOR", "1")]), "the option is nearer than the environment");
    assert!(!screen(&[], &[("TERM", "dumb")]));
    assert!(!screen(&[], &[("CLICOLOR", "0")]));
}

#[test]
fn no_escapes_in_a_pipe_unless_asked_for() {
    let Some(nginx) = Nginx::start() else { return };
    let pipe = |args: &[&str], env: &[(&str, &str)]| {
        let ended = in_pipe(&nginx, args, env);
        assert!(!ended.stderr.contains('\u{1b}'), "stderr is a pipe, too\n{ended}");
        ended.stdout.contains('\u{1b}')
    };
    assert!(!pipe(&[], &[]));
    assert!(!pipe(&["--color=auto"], &[("CLICOLOR", "1")]));
    assert!(pipe(&["--color=always"], &[]));
    let ended = in_pipe(&nginx, &[], &[("CLICOLOR_FORCE", "1")]);
    assert!(ended.stdout.contains('\u{1b}'), "{ended}");
    assert!(!pipe(&["--color=never"], &[("NO_COLOR", "1")]));
    // JSON is for programs.
    assert!(!pipe(&["-o", "json", "--color=always"], &[]));
}
