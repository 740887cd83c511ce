//! Where streams come from: vsock in a guest, the host socket in process mode.

use std::io;
use std::os::fd::OwnedFd;

use wire::port;

use crate::attempt::{Attempt, SetupError};
use crate::host_socket::{HostSocket, Outcome};
use crate::poller::{Poller, Token};
use crate::vsock;

/// The two ways to a host.
pub enum Transport {
    Vsock {
        /// Of [`port::STREAM`].
        listener: OwnedFd,
        /// Of [`port::LOOPBACK`].
        loopback: OwnedFd,
        /// Of [`port::EXEC`].
        exec: OwnedFd,
        /// The first control stream, whose connect is under way.
        first: Option<OwnedFd>,
    },
    Socket(HostSocket),
}

impl Transport {
    /// vsock, with all stream ports open. Connects at once, because that fails where there is no
    /// vsock device and everything else would wait for ever.
    pub fn vsock() -> Result<Self, SetupError> {
        // First, so that the host decides while the rest is done.
        let first = vsock::connect_to_host(port::CONTROL)
            .attempt(|| format!("connect to vsock port {} of the host", port::CONTROL))?;
        let listen = |port| vsock::listen(port).attempt(|| format!("listen on vsock port {port}"));
        let (listener, loopback) = (listen(port::STREAM)?, listen(port::LOOPBACK)?);
        let exec = listen(port::EXEC)?;
        Ok(Self::Vsock {
            listener,
            loopback,
            exec,
            first: Some(first),
        })
    }

    /// Watches for new connections.
    pub fn watch(&self, poller: &Poller) -> io::Result<()> {
        match self {
            Self::Vsock {
                listener,
                loopback,
                exec,
                ..
            } => {
                poller.watch_level(loopback, Token::LoopbackListener)?;
                poller.watch_level(exec, Token::ExecListener)?;
                poller.watch_level(listener, Token::Listener)
            }
            Self::Socket(socket) => poller.watch_level(socket.listener(), Token::Listener),
        }
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
            Self::Vsock { listener, .. } => accept_all(listener),
            Self::Socket(socket) => {
                let _ = socket.on_listener(poller);
                Vec::new()
            }
        }
    }

    /// New streams that name their port themselves.
    pub fn on_loopback_listener(&mut self) -> Vec<OwnedFd> {
        match self {
            Self::Vsock { loopback, .. } => accept_all(loopback),
            // One listener serves all ports there.
            Self::Socket(_) => Vec::new(),
        }
    }

    /// New streams for commands of an operator.
    pub fn on_exec_listener(&mut self) -> Vec<OwnedFd> {
        match self {
            Self::Vsock { exec, .. } => accept_all(exec),
            Self::Socket(_) => Vec::new(),
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

fn accept_all(listener: &OwnedFd) -> Vec<OwnedFd> {
    std::iter::from_fn(|| vsock::accept_from_host(listener).ok().flatten()).collect()
}
