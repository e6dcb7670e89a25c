//! A TLS server that is made of a plain one: Python, with a certificate for `app.example.com` that it signed itself.

use crate::net::{self, NetNs};
use crate::sys;
use anyhow::{Context, Result, ensure};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// TLS in front of another port: what happens there happens here, RST as well. One thread a connection: two that share it
/// end the whole interpreter, as nothing there locks OpenSSL's state.
const SCRIPT: &str = r"
import select, socket, ssl, struct, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('cert.pem', 'key.pem')
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=512)
threading.stack_size(256 << 10)

def pump(secure, behind):
    watched = [secure, behind]
    while True:
        ready = [secure] if secure in watched and secure.pending() else select.select(watched, [], [])[0]
        if secure in ready:
            if data := secure.recv(16384):
                behind.sendall(data)
            else:
                watched.remove(secure)
                behind.shutdown(socket.SHUT_WR)
        if behind in ready:
            data = behind.recv(16384)
            if not data:
                return
            secure.sendall(data)

def serve(plain):
    with plain:
        try:
            secure = context.wrap_socket(plain, server_side=True)
        except OSError:
            return
        with secure, socket.create_connection(('127.0.0.1', int(sys.argv[2]))) as behind:
            try:
                pump(secure, behind)
                secure.settimeout(2)
                secure.unwrap()
            except ConnectionResetError:
                secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            except OSError:
                pass

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// Starts it on loopback in `ns`, in front of the server on port `behind`, and waits until it listens. `cert.pem` and
/// `key.pem` are made in `dir` if they are not there.
pub(crate) fn start(ns: &NetNs, dir: &Path, listen: u16, behind: u16, bound: Duration) -> Result<Child> {
    if !dir.join("key.pem").exists() {
        net::command_ok(
            ns.command("openssl")
                .current_dir(dir)
                .args(
                    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key.pem"
                        .split(' '),
                )
                .args(["-out", "cert.pem", "-subj", "/CN=app.example.com"])
                .args(["-addext", "subjectAltName=DNS:app.example.com"]),
        )?;
    }
    std::fs::write(dir.join("tls.py"), SCRIPT)?;
    let child = ns
        .command("/usr/bin/python3")
        .args(["tls.py", &listen.to_string(), &behind.to_string()])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join(format!("tls-{listen}.out")))?)
        .spawn()
        .context("cannot start /usr/bin/python3; install python3")?;
    let up = || ns.run(|| Ok(TcpStream::connect(("127.0.0.1", listen))?)).is_ok();
    ensure!(sys::poll_until(bound, up), "the TLS server on port {listen} does not listen");
    Ok(child)
}
