//! The stage: a folder, a network, applications, and a real nginx. All of it goes away with the scene.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::routes::{self, Ground, ROUTES, Route};
use super::sys;
use crate::{process, signals};

const NGINX: &str = "127.0.0.1:8080";
/// What the standard library asks the kernel for; the kernel takes one connection more.
const BACKLOG: usize = 128;
/// The link on which the unowned addresses lie, and a kernel that gives up on a neighbour in a third of a second.
const NETWORK: &str = "link set lo up\nlink add wire0 type veth peer name wire1\naddr add 192.0.2.1/24 dev wire0\n\
                       link set wire0 up\nlink set wire1 up\n";
const NEIGHBOUR_PATIENCE: (&str, &str) = ("/proc/sys/net/ipv4/neigh/wire0/retrans_time_ms", "100");

/// What a fault consists of, for as long as it is open.
#[derive(Default)]
struct Props {
    listeners: Vec<TcpListener>,
    streams: Vec<TcpStream>,
    links: Vec<File>,
}

/// The running stage.
pub(super) struct Scene {
    // In the order in which they are taken down.
    nginx: Nginx,
    _props: Props,
    dir: Folder,
    /// Routes whose fault this kernel cannot make, with the reason.
    pub(super) skipped: Vec<(&'static str, String)>,
}

impl Scene {
    /// Builds it in the network namespace of this process.
    pub(super) fn build(bound: Duration) -> Result<Scene> {
        batch("ip", &["-batch", "-"], NETWORK)?;
        // Where it cannot be set, the kernel takes the usual three seconds, for which nginx has time.
        let _ = fs::write(NEIGHBOUR_PATIENCE.0, NEIGHBOUR_PATIENCE.1);
        let (mut props, mut skipped) = (Props::default(), Vec::new());
        for route in ROUTES {
            if let Err(error) = prepare(route, &mut props) {
                skipped.push((route.path, format!("{error:#}").trim_end().replace('\n', " ")));
            }
        }
        let dir = Folder::create()?;
        let nginx = Nginx::start(&dir.0, bound)?;
        Ok(Scene { nginx, _props: props, dir, skipped })
    }

    pub(super) fn master(&self) -> u32 {
        self.nginx.0.id()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    /// Asks nginx for `path`: the status of its answer.
    pub(super) fn request(&self, path: &str, bound: Duration) -> Result<u16> {
        let asked = || -> Result<u16> {
            let mut stream = connect(NGINX)?;
            stream.set_read_timeout(Some(bound))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            status(&answer).context("its answer is not HTTP")
        };
        asked().with_context(|| format!("nginx did not answer GET {path}"))
    }
}

/// Makes the fault of one route.
fn prepare(route: &Route, props: &mut Props) -> Result<()> {
    let listen =
        |address: &str| TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"));
    match route.ground {
        Ground::Healthy => {
            let listener = listen(route.address)?;
            // It ends with the process, whose whole purpose is the demo.
            thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(answer(stream))));
        }
        Ground::Listener(address) => props.listeners.push(listen(address)?),
        Ground::FullQueue => {
            props.listeners.push(listen(route.address)?);
            for _ in 0..=BACKLOG {
                props.streams.push(connect(route.address).context("cannot fill the accept queue")?);
            }
        }
        Ground::Swallow(network) => {
            let link =
                sys::swallow("far0").context("no TUN device: /dev/net/tun, or module tun, is missing")?;
            batch(
                "ip",
                &["-batch", "-"],
                &format!(
                    "link set far0 up
route add {network} dev far0
"
                ),
            )?;
            props.links.push(link);
        }
        Ground::Nft(rules) => batch("nft", &["-f", "-"], rules)?,
        Ground::Nothing => {}
    }
    Ok(())
}

fn connect(address: &str) -> Result<TcpStream> {
    let address: SocketAddr = address.parse().with_context(|| format!("{address} is no address"))?;
    TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("cannot connect to {address}"))
}

/// The healthy application.
fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => bail!("the client went away"),
            n => request.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")?;
    Ok(())
}

/// The status code of an HTTP answer.
fn status(answer: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer.get(..answer.len().min(64))?);
    text.strip_prefix("HTTP/1.")?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Runs a program that reads commands from stdin.
fn batch(program: &str, args: &[&str], commands: &str) -> Result<()> {
    let file =
        process::find_program(program).with_context(|| format!("no {program}: `cargo xtask setup`"))?;
    let mut child = Command::new(file)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it ended early, its stderr tells more than a broken pipe.
        let _ = stdin.write_all(commands.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed, does this kernel lack a module? {}", stderr.trim());
    Ok(())
}

/// Makes `command` a process of the demo: a terminal's ^C does not reach it (this process takes it down in order),
/// and it has its own death signal.
pub(super) fn own(command: &mut Command) -> &mut Command {
    command.process_group(0)
}

/// A command that gets SIGTERM when this process is gone.
pub(super) fn mortal(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// A folder of the demo's own.
struct Folder(PathBuf);

impl Folder {
    fn create() -> Result<Folder> {
        let dir = std::env::temp_dir().join(format!("why502-demo.{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Folder(dir))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("demo: {} is left over: {error}", self.0.display());
        }
    }
}

struct Nginx(Child);

impl Nginx {
    fn start(dir: &Path, bound: Duration) -> Result<Nginx> {
        let conf = dir.join("nginx.conf");
        fs::write(&conf, routes::config()).with_context(|| format!("cannot write {}", conf.display()))?;
        fs::create_dir(dir.join("tmp")).with_context(|| format!("cannot create {}/tmp", dir.display()))?;
        let output = File::create(dir.join("output")).context("cannot create a file for nginx's output")?;
        let program = process::find_program("nginx").context("no nginx: `cargo xtask setup`")?;
        let mut command = mortal(&program);
        command.arg("-p").arg(dir).arg("-c").arg(&conf).args(["-e", "error.log"]);
        let child = own(&mut command)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share nginx's output")?)
            .stderr(output)
            .spawn()
            .context("cannot start nginx")?;
        let mut nginx = Nginx(child);
        let mut ended = false;
        let ready = signals::poll_until(bound, || {
            ended = !matches!(nginx.0.try_wait(), Ok(None));
            ended || connect(NGINX).is_ok()
        });
        signals::go_on()?;
        if ended || !ready {
            let said =
                ["output", "error.log"].map(|name| fs::read_to_string(dir.join(name)).unwrap_or_default());
            return Err(anyhow!("nginx did not start:\n{}", said.concat()));
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers.
        signals::stop(&mut self.0, libc::SIGTERM, Duration::from_secs(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        assert_eq!(status(b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\n"), Some(502));
        assert_eq!(status(b"HTTP/1.0 200"), Some(200));
        assert_eq!(status(b""), None);
        assert_eq!(status(b"SSH-2.0-x"), None);
    }
}
