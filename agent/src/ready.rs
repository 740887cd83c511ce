//! Finds out when the target port accepts connections.
//!
//! Nothing in Linux tells a bystander that another process has called `listen` (sock_diag reports
//! the end of sockets only), so this is the one place that tries again: a connect to the loopback
//! address after 1 ms, 2 ms, 4 ms and so on up to every 25 ms, from the start of the container until the first
//! one that succeeds. A refused connect costs some 20 µs. A connect and not a look into
//! `/proc/net/tcp`, because it is what the first request will do.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::poller::{Poller, Token};
use crate::target::{self, Loopback};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// The probe of one port.
pub struct Probe {
    port: u16,
    pause: Duration,
    state: State,
}

enum State {
    /// Not started, or over.
    Idle,
    /// Tries again at this time.
    Pausing(Instant),
    Connecting(Loopback, OwnedFd),
}

impl Probe {
    pub fn idle() -> Self {
        Self {
            port: 0,
            pause: FIRST_PAUSE,
            state: State::Idle,
        }
    }

    /// Begins, with a first try at once.
    pub fn start(&mut self, port: u16, now: Instant) {
        *self = Self {
            port,
            pause: FIRST_PAUSE,
            state: State::Pausing(now),
        };
    }

    /// Ends, whatever the outcome.
    pub fn stop(&mut self) {
        self.state = State::Idle;
    }

    /// When [`Probe::on_time`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Pausing(until) => Some(until),
            State::Idle | State::Connecting(..) => None,
        }
    }

    pub fn on_time(&mut self, now: Instant, poller: &Poller) {
        if matches!(self.state, State::Pausing(until) if until <= now) {
            self.connect(Loopback::V4, now, poller);
        }
    }

    /// Whether the port has just been found open.
    pub fn on_event(&mut self, now: Instant, poller: &Poller) -> bool {
        let State::Connecting(loopback, socket) = &self.state else {
            return false;
        };
        match (target::outcome(socket), *loopback) {
            (None, _) => false,
            (Some(Ok(())), _) => {
                self.stop();
                true
            }
            (Some(Err(_)), Loopback::V4) => {
                self.connect(Loopback::V6, now, poller);
                false
            }
            (Some(Err(_)), Loopback::V6) => {
                self.pause(now);
                false
            }
        }
    }

    fn connect(&mut self, loopback: Loopback, now: Instant, poller: &Poller) {
        let watched = |socket: OwnedFd| -> io::Result<OwnedFd> {
            poller.watch_edge(&socket, Token::Probe)?;
            Ok(socket)
        };
        match (
            target::begin(loopback, self.port).and_then(watched),
            loopback,
        ) {
            (Ok(socket), _) => self.state = State::Connecting(loopback, socket),
            (Err(_), Loopback::V4) => self.connect(Loopback::V6, now, poller),
            (Err(_), Loopback::V6) => self.pause(now),
        }
    }

    fn pause(&mut self, now: Instant) {
        self.state = State::Pausing(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}
