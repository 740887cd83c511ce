//! Where streams come from: vsock in a guest, the host socket in process mode.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use wire::port;

use crate::attempt::{Attempt, SetupError};
use crate::host_socket::{HostSocket, Outcome};
use crate::poller::{Poller, Token};
use crate::vsock;

/// The two ways to a host.
pub enum Transport {
    Vsock {
        listener: OwnedFd,
        /// The first control stream, whose connect is under way.
        first: Option<OwnedFd>,
    },
    Socket(HostSocket),
}

impl Transport {
    /// vsock, with the stream port open. Connects at once, because that fails where there is no
    /// vsock device and everything else would wait for ever.
    pub fn vsock() -> Result<Self, SetupError> {
        let listener = vsock::listen(port::STREAM)
            .attempt(|| format!("listen on vsock port {}", port::STREAM))?;
        let first = vsock::connect_to_host(port::CONTROL)
            .attempt(|| format!("connect to vsock port {} of the host", port::CONTROL))?;
        Ok(Self::Vsock {
            listener,
            first: Some(first),
        })
    }

    /// Watches for new connections.
    pub fn watch(&self, poller: &Poller) -> io::Result<()> {
        let listener = match self {
            Self::Vsock { listener, .. } => listener.as_fd(),
            Self::Socket(socket) => socket.listener(),
        };
        poller.watch_level(listener, Token::Listener)
    }

    /// Begins to connect the control stream; the descriptor becomes writable when it is decided.
    /// `None`: nobody waits for it yet, and [`Transport::on_handshake`] will say when.
    pub fn connect_control(&mut self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Vsock { first, .. } => match first.take() {
                Some(first) => Ok(Some(first)),
                None => vsock::connect_to_host(port::CONTROL).map(Some),
            },
            Self::Socket(socket) => Ok(socket.connect(port::CONTROL)),
        }
    }

    /// New streams to be joined to the target port. An error of one is the peer's giving up
    /// while it waited, and the listener reports the others again.
    pub fn on_listener(&mut self, poller: &Poller) -> Vec<OwnedFd> {
        match self {
            Self::Vsock { listener, .. } => {
                std::iter::from_fn(|| vsock::accept_from_host(&*listener).ok().flatten()).collect()
            }
            Self::Socket(socket) => {
                let _ = socket.on_listener(poller);
                Vec::new()
            }
        }
    }

    /// Only process mode has handshakes.
    pub fn on_handshake(&mut self, id: u32) -> Outcome {
        match self {
            Self::Vsock { .. } => Outcome::Pending,
            Self::Socket(socket) => socket.on_handshake(id),
        }
    }
}
