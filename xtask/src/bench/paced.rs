//! Load at a fixed rate: every answer is counted, so that the number of failed attempts is known exactly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::site::FRONT;
use crate::signals;

/// Connections, one thread each: enough for the rate, few enough for two CPUs.
const THREADS: u32 = 4;

/// Sends requests to `path` at `rate` a second for `time`, all of which must be answered with a 502; how
/// many they were. `meanwhile` runs beside it.
pub(crate) fn failing(path: &str, rate: u32, time: Duration, meanwhile: impl FnOnce()) -> Result<u64> {
    thread::scope(|scope| {
        let senders: Vec<_> =
            (0..THREADS).map(|_| scope.spawn(move || one(path, rate / THREADS, time))).collect();
        meanwhile();
        let mut total = 0;
        for sender in senders {
            let Ok(sent) = sender.join() else {
                bail!("a thread of the paced load ended unexpectedly");
            };
            total += sent?;
        }
        Ok(total)
    })
}

fn one(path: &str, rate: u32, time: Duration) -> Result<u64> {
    let address = SocketAddr::from(([127, 0, 0, 1], FRONT));
    let mut stream = TcpStream::connect(address).context("the bench's nginx is gone")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < time {
        signals::go_on()?;
        let due = (begin.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while sent < due {
            stream.write_all(request.as_bytes())?;
            let status = answer(&mut answers)?;
            if status != 502 {
                bail!("the bench's nginx answered {path} with {status}");
            }
            sent += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}

/// Reads one answer; its status.
fn answer(reader: &mut impl BufRead) -> Result<u16> {
    let mut status = None;
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            bail!("the bench's nginx closed a connection");
        }
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        if status.is_none() {
            status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        } else if let Some(value) = text.strip_prefix("Content-Length: ") {
            length = value.parse()?;
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    status.context("an answer without a status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_answers_back_to_back() {
        let text = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n";
        let mut reader = BufReader::new(text.as_bytes());
        assert_eq!(answer(&mut reader).unwrap(), 502);
        assert_eq!(answer(&mut reader).unwrap(), 200);
        assert!(answer(&mut reader).is_err());
    }
}
