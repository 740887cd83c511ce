//! A stream that is about to name its port.

use std::io;

use super::relay::End;
use crate::poller::Readiness;

/// Reads two bytes and not one more: what follows belongs to the container.
pub struct Caller {
    client: End,
    named: Vec<u8>,
}

impl Caller {
    pub fn new(client: End) -> Self {
        Self {
            client,
            named: Vec::with_capacity(2),
        }
    }

    /// The port, once both its bytes are there. Zero is no port.
    pub fn on_ready(&mut self, readiness: Readiness) -> io::Result<Option<u16>> {
        self.client.note(readiness);
        loop {
            if let [high, low] = self.named[..] {
                return match u16::from_be_bytes([high, low]) {
                    0 => Err(io::ErrorKind::InvalidInput.into()),
                    port => Ok(Some(port)),
                };
            }
            let mut byte = [0];
            match self.client.read(&mut byte)? {
                None => return Ok(None),
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(_) => self.named.extend(byte),
            }
        }
    }

    /// The stream behind its two bytes, with what is known of its readiness.
    pub fn into_client(self) -> End {
        self.client
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    const READABLE: Readiness = Readiness {
        readable: true,
        writable: false,
        ended: false,
    };

    fn caller() -> (UnixStream, Caller) {
        let (host, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (host, Caller::new(End::new(ours.into())))
    }

    #[test]
    fn port_is_two_bytes_and_what_follows_is_left() {
        let (mut host, mut caller) = caller();
        host.write_all(&[0x1f]).unwrap();
        assert_eq!(caller.on_ready(READABLE).unwrap(), None);
        host.write_all(b"\x90GET").unwrap();
        assert_eq!(caller.on_ready(READABLE).unwrap(), Some(8080));
        let mut rest = [0; 8];
        assert_eq!(caller.into_client().read(&mut rest).unwrap(), Some(3));
        assert_eq!(&rest[..3], b"GET");
    }

    #[test]
    fn half_a_port_and_port_zero_are_none() {
        for (said, kind) in [
            (&[0x1f][..], io::ErrorKind::UnexpectedEof),
            (&[0, 0], io::ErrorKind::InvalidInput),
        ] {
            let (mut host, mut caller) = caller();
            host.write_all(said).unwrap();
            drop(host);
            assert_eq!(caller.on_ready(READABLE).unwrap_err().kind(), kind);
        }
    }
}
