//! The worker's end of its orders socket. No async: a worker has threads of its own kind.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};

use super::{Answer, BadOrder, Order};
use crate::channel;

/// Everybody who may tell a worker something.
#[derive(Debug)]
pub struct Desk {
    warden: OwnedFd,
    listener: OwnedFd,
    /// One at a time: the next one is let in when this one has gone.
    appliance: Option<OwnedFd>,
}

/// What was said.
#[derive(Debug)]
pub enum Heard {
    Order(Order, Vec<OwnedFd>),
    /// The warden is gone, and so must this process be.
    End,
}

impl Desk {
    pub fn new(warden: OwnedFd, listener: OwnedFd) -> Self {
        Self {
            warden,
            listener,
            appliance: None,
        }
    }

    /// Waits for the next order or for the end. Bad orders are refused here.
    pub fn wait(&mut self) -> io::Result<Heard> {
        loop {
            let client = self.appliance.as_ref().unwrap_or(&self.listener);
            let mut fds = [&self.warden, client].map(|fd| PollFd::new(fd, PollFlags::IN));
            match rustix::event::poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let [warden, client] = fds.map(|fd| !fd.revents().is_empty());
            // The warden says nothing after its first message: this is its end.
            if warden {
                return Ok(Heard::End);
            }
            if client && let Some(heard) = self.hear() {
                return Ok(heard);
            }
        }
    }

    fn hear(&mut self) -> Option<Heard> {
        let Some(appliance) = &self.appliance else {
            let flags = rustix::net::SocketFlags::CLOEXEC;
            // A client that gave up again is no reason to end.
            self.appliance = rustix::net::accept_with(&self.listener, flags).ok();
            return None;
        };
        let Ok(Some(message)) = channel::receive(appliance.as_fd(), true) else {
            self.appliance = None;
            return None;
        };
        let order = Order::parse(&message.bytes).and_then(|order| {
            order.check(&message.fds)?;
            Ok(order)
        });
        match order {
            Ok(order) => Some(Heard::Order(order, message.fds)),
            Err(error) => {
                self.refuse(&error);
                None
            }
        }
    }

    fn refuse(&self, error: &BadOrder) {
        let message = error.to_string();
        self.answer(&Answer::Failed { message });
    }

    /// Answers the last order.
    pub fn answer(&self, answer: &Answer) {
        if let Some(appliance) = &self.appliance {
            // It may have gone meanwhile; then nobody asks.
            let _ = channel::send(appliance.as_fd(), &answer.encode(), &[], false);
        }
    }
}
