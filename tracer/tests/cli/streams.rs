//! Readers that go away, disks that are full, systemd, and what goes where.

use std::{
    fs::File,
    os::linux::net::SocketAddrExt as _,
    os::unix::net::{SocketAddr, UnixDatagram},
    process::Stdio,
};

use crate::{
    nginx::Nginx,
    program::{BOUND, Live, can_attach, poll, why502},
};

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let Some(nginx) = Nginx::start() else { return };
    for output in ["json", "text"] {
        let mut live =
            Live::start_with(&mut why502(&["-o", output, "-p", &nginx.pid_arg()]), Stdio::piped()).watching();
        live.close_stdout();
        assert_eq!(nginx.get("/refused"), 502);
        // Ends by itself at the first write, and says nothing about it.
        live.end().code(0).one_line().says(&["watching"]);
    }
}

#[test]
fn a_reader_that_goes_away_from_doctor() {
    if !can_attach() {
        return;
    }
    let mut live = Live::start_with(&mut why502(&["doctor"]), Stdio::piped());
    live.close_stdout();
    let ended = live.end();
    ended.code(0);
    assert!(ended.stderr.is_empty(), "{ended}");
}

#[test]
fn a_full_disk_is_named() {
    let Some(nginx) = Nginx::start() else { return };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for output in ["json", "text"] {
        let live = Live::start_with(&mut why502(&["-o", output, "-p", &nginx.pid_arg()]), full()).watching();
        assert_eq!(nginx.get("/refused"), 502);
        let ended = live.end();
        ended.code(4).says(&["cannot write to stdout", "No space left on device"]);
        assert_eq!(ended.stderr.lines().count(), 2, "{ended}");
    }
    // The summary alone does not fit either.
    let live = Live::start_with(&mut why502(&["-o", "json", "-d", "0.2", "-p", &nginx.pid_arg()]), full());
    live.end().code(4).says(&["No space left on device"]);
    Live::start_with(&mut why502(&["doctor"]), full())
        .end()
        .code(4)
        .one_line()
        .says(&["No space left on device"]);
}

#[test]
fn stdout_holds_data_and_stderr_the_rest() {
    let Some(nginx) = Nginx::start() else { return };
    let live = Live::start(&mut why502(&["-o", "text", "-p", &nginx.pid_arg(), "-c", "1"])).watching();
    assert!(live.stdout.text().is_empty());
    assert_eq!(nginx.get("/refused"), 502);
    let ended = live.end();
    ended.code(0).says(&[
        "why502: watching 1 worker of 1 nginx master (tier ",
        "1 incident,",
        "connect-refused-no-listener: ",
    ]);
    for (label, text) in [
        ("upstream", "127.0.0.1:3999"),
        ("cause", "nothing listens"),
        ("config", "proxy_pass"),
        ("evidence", "SYN sent"),
        ("fix", "start the service"),
    ] {
        let line = ended.stdout.lines().find(|l| l.trim_start().starts_with(label));
        assert!(line.is_some_and(|l| l.contains(text)), "{label}\n{ended}");
    }
    assert!(!ended.stdout.contains("why502:") && !ended.stdout.contains("watching"), "{ended}");
    assert!(!ended.stderr.contains("proxy_pass"), "{ended}");
}

#[test]
fn debug_messages_of_the_kernel_side_on_request() {
    let Some(nginx) = Nginx::start() else { return };
    for (verbose, wanted) in [(true, true), (false, false)] {
        let mut command = why502(&["-o", "json", "-p", &nginx.pid_arg()]);
        if verbose {
            command.arg("-v");
        }
        let live = Live::start(&mut command).watching();
        assert_eq!((nginx.get("/refused"), nginx.get("/no-route")), (502, 502));
        let told = |text: &str| text.contains("debug: nginx tells its log of errno 111");
        assert!(live.stdout.wait(|text| text.lines().count() >= 2), "{}", live.interrupt());
        let seen =
            if wanted { poll(|| told(&live.stderr.text())) } else { live.stderr.text().contains("debug") };
        let ended = live.interrupt();
        ended.code(0);
        assert_eq!(seen, wanted, "{ended}");
        assert!(ended.stdout.lines().all(|l| l.starts_with('{')), "{ended}");
    }
}

#[test]
fn systemd_is_told_when_it_is_ready() {
    let Some(nginx) = Nginx::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let name = format!("why502-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let sockets = [
        (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned()),
        (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}")),
    ];
    for (socket, variable) in sockets {
        socket.set_read_timeout(Some(BOUND)).unwrap();
        let live = Live::start(why502(&["-p", &nginx.pid_arg()]).env("NOTIFY_SOCKET", &variable));
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap_or_else(|e| panic!("{variable}: {e}"));
        let message = String::from_utf8_lossy(&message[..length]).into_owned();
        assert!(message.lines().any(|l| l == "READY=1"), "{message}");
        // Ready means ready: the next failure is seen.
        assert_eq!(nginx.get("/refused"), 502);
        assert!(live.stdout.wait(|text| text.contains("127.0.0.1:3999")), "{}", live.interrupt());
        live.interrupt().code(0);
    }
    // A manager that is gone is its own problem.
    let gone = why502(&["-d", "0.2", "-p", &nginx.pid_arg()])
        .env("NOTIFY_SOCKET", "/nonexistent/notify")
        .output()
        .unwrap();
    assert_eq!(gone.status.code(), Some(0), "{gone:?}");
}
