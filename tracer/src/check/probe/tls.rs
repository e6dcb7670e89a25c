//! A TLS handshake without a word after it. Certificates are taken as they come: whether nginx accepts them is judged by the
//! check, not here.

use std::{
    io::{self, Read, Write},
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};

use super::{
    child::micros,
    wire::{MOST_CHAIN, TlsAnswer, TlsAsk, TlsOutcome},
};

/// Of what is no TLS, so much is told.
const MOST_BYTES: usize = 32;
/// More than this is read from no server, bytes: a handshake with a long chain is a fraction of it.
const MOST_READ: usize = 512 << 10;

/// One under way.
pub(super) struct Handshake {
    tls: Box<ClientConnection>,
    seen: Arc<Seen>,
    /// The first bytes that came.
    first: Vec<u8>,
    read: usize,
    began: Instant,
}

/// Keeps the server's certificates and accepts them.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<Vec<u8>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut room = MOST_CHAIN;
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.to_vec());
        let chain = chain.take_while(|der| {
            let fits = der.len() <= room;
            room = room.saturating_sub(der.len());
            fits
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = chain.collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        use SignatureScheme as S;
        // As many as there are: a server must not refuse for want of one that OpenSSL offers.
        vec![
            S::ECDSA_NISTP256_SHA256,
            S::ECDSA_NISTP384_SHA384,
            S::ECDSA_NISTP521_SHA512,
            S::ED25519,
            S::ED448,
            S::RSA_PSS_SHA256,
            S::RSA_PSS_SHA384,
            S::RSA_PSS_SHA512,
            S::RSA_PKCS1_SHA256,
            S::RSA_PKCS1_SHA384,
            S::RSA_PKCS1_SHA512,
            S::ECDSA_SHA1_Legacy,
            S::RSA_PKCS1_SHA1,
        ]
    }
}

/// A socket, read and written without waiting; what comes is looked at on its way.
struct Wire<'a> {
    fd: BorrowedFd<'a>,
    first: &'a mut Vec<u8>,
    count: &'a mut usize,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer is to a buffer of that length.
        let got = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        *self.count = self.count.saturating_add(got);
        let room = MOST_BYTES.saturating_sub(self.first.len()).min(got);
        self.first.extend_from_slice(buffer.get(..room).unwrap_or_default());
        Ok(got)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the pointer is to that many bytes.
        let sent = unsafe {
            libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Handshake {
    /// Makes the ClientHello; it is sent as soon as the socket takes it.
    pub(super) fn begin(ask: &TlsAsk) -> Result<Self, TlsAnswer> {
        let failed = |why: String| TlsAnswer { outcome: TlsOutcome::Failed(why), chain: Vec::new(), us: 0 };
        let seen = Arc::new(Seen::default());
        let versions: &[&rustls::SupportedProtocolVersion] =
            if ask.only_12 { &[&TLS12] } else { &[&TLS12, &TLS13] };
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .map_err(|error| failed(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        if ask.h2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        // Without a name there is none in the ClientHello, whatever stands here.
        let nobody = ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into());
        let name = match &ask.name {
            Some(name) => ServerName::try_from(name.clone())
                .map_err(|_| failed("the name cannot stand in a ClientHello".to_owned()))?,
            None => nobody,
        };
        config.enable_sni = ask.name.is_some();
        let tls = ClientConnection::new(Arc::new(config), name).map_err(|error| failed(error.to_string()))?;
        Ok(Self { tls: Box::new(tls), seen, first: Vec::new(), read: 0, began: Instant::now() })
    }

    /// What to wait for.
    pub(super) fn wants(&self) -> libc::c_short {
        if self.tls.wants_write() { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN }
    }

    /// Goes as far as it can; the answer once it has ended.
    pub(super) fn advance(&mut self, fd: BorrowedFd<'_>, late: bool) -> Option<TlsAnswer> {
        let outcome = self.go(fd).or_else(|| late.then_some(TlsOutcome::TimedOut))?;
        let chain = std::mem::take(&mut *self.seen.0.lock().unwrap_or_else(PoisonError::into_inner));
        Some(TlsAnswer { outcome, chain, us: micros(self.began.elapsed()) })
    }

    fn go(&mut self, fd: BorrowedFd<'_>) -> Option<TlsOutcome> {
        loop {
            let mut wire = Wire { fd, first: &mut self.first, count: &mut self.read };
            if self.tls.wants_write() {
                match self.tls.write_tls(&mut wire) {
                    Ok(_) => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // What the server has said before it closed is still to be read.
                    Err(_) => {}
                }
            }
            if !self.tls.is_handshaking() {
                return Some(self.done(fd));
            }
            let mut wire = Wire { fd, first: &mut self.first, count: &mut self.read };
            match self.tls.read_tls(&mut wire) {
                Ok(0) => return Some(self.ended(None)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Some(self.ended(error.raw_os_error())),
            }
            if !is_tls(&self.first) {
                return Some(TlsOutcome::NotTls(self.first.clone()));
            }
            if self.read > MOST_READ {
                return Some(TlsOutcome::Failed("the server's part of the handshake has no end".to_owned()));
            }
            if let Err(error) = self.tls.process_new_packets() {
                return Some(match error {
                    Error::AlertReceived(alert) => TlsOutcome::Alert(u8::from(alert)),
                    other => TlsOutcome::Failed(other.to_string()),
                });
            }
        }
    }

    fn done(&mut self, fd: BorrowedFd<'_>) -> TlsOutcome {
        let version = match self.tls.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let alpn = self.tls.alpn_protocol().map(<[u8]>::to_vec);
        // A polite end; whether it arrives is no matter.
        self.tls.send_close_notify();
        let mut wire = Wire { fd, first: &mut self.first, count: &mut self.read };
        let _ = self.tls.write_tls(&mut wire);
        TlsOutcome::Done { alpn, version: version.to_owned() }
    }

    fn ended(&self, errno: Option<i32>) -> TlsOutcome {
        if self.first.is_empty() {
            TlsOutcome::Closed(errno)
        } else {
            TlsOutcome::Failed("the server closed in the middle of the handshake".to_owned())
        }
    }
}

/// Whether bytes can begin a record of a handshake or an alert (RFC 8446, 5.1).
fn is_tls(first: &[u8]) -> bool {
    matches!(first.first(), None | Some(0x15 | 0x16)) && first.get(1).is_none_or(|major| *major == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_no_tls() {
        assert!(is_tls(&[]) && is_tls(&[0x16]) && is_tls(&[0x16, 3, 3]) && is_tls(&[0x15, 3, 1]));
        assert!(!is_tls(b"HTTP/1.1 400") && !is_tls(b"220 mail") && !is_tls(&[0x16, 0x20]));
    }

    #[test]
    fn a_hello_says_no_more_than_it_is_asked_to() {
        let hello = |ask: &TlsAsk| {
            let mut handshake = Handshake::begin(ask).unwrap();
            let mut bytes = Vec::new();
            handshake.tls.write_tls(&mut bytes).unwrap();
            bytes
        };
        let has = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|part| part == what);
        let named = TlsAsk { name: Some("shop.example.com".to_owned()), h2: true, only_12: true };
        assert!(has(&hello(&named), b"shop.example.com") && has(&hello(&named), b"\x02h2"));
        // supported_versions with TLS 1.3 in it.
        assert!(!has(&hello(&named), &[0x00, 0x2b, 0x00, 0x05, 0x04, 0x03, 0x04]));
        let bare = TlsAsk::default();
        assert!(!has(&hello(&bare), b"\x02h2") && has(&hello(&bare), &[0x03, 0x04]));
        assert!(Handshake::begin(&TlsAsk { name: Some("a b".to_owned()), ..bare }).is_err());
    }
}
