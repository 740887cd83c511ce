//! The worker's end of its orders socket. No async: a worker has threads of its own kind.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::lifelines::Lifelines;
use super::{Answer, BadOrder, Order};
use crate::channel;

/// Everybody who may tell a worker something.
#[derive(Debug)]
pub struct Desk {
    warden: OwnedFd,
    listener: OwnedFd,
    /// One at a time: the next one is let in when this one has gone.
    appliance: Option<OwnedFd>,
    lifelines: Lifelines,
}

/// What was said.
#[derive(Debug)]
pub enum Heard {
    Order(Order, Vec<OwnedFd>),
    /// Nobody is there any more for whom this process should live.
    End,
}

impl Desk {
    pub fn new(warden: OwnedFd, listener: OwnedFd) -> Self {
        Self {
            warden,
            listener,
            appliance: None,
            lifelines: Lifelines::new(),
        }
    }

    /// There is a guest from now on: without a warden and without an appliance this process lives for so long.
    pub fn outlive(&mut self, orphan_limit: Duration) {
        self.lifelines.outlive(orphan_limit);
    }

    /// Waits for the next order or for the end. Bad orders are refused here.
    pub fn wait(&mut self) -> io::Result<Heard> {
        loop {
            let left = self.lifelines.left(Instant::now());
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Heard::End);
            }
            let (warden, client) = self.poll(left)?;
            // The warden says nothing after its first message: this is its end.
            if warden {
                self.lifelines.lose_warden(Instant::now());
            }
            if client && let Some(heard) = self.hear() {
                return Ok(heard);
            }
        }
    }

    /// Whether there is something from the warden, and from the appliance.
    fn poll(&self, left: Option<Duration>) -> io::Result<(bool, bool)> {
        let client = self.appliance.as_ref().unwrap_or(&self.listener);
        let mut fds = vec![PollFd::new(client, PollFlags::IN)];
        if self.lifelines.has_warden() {
            fds.push(PollFd::new(&self.warden, PollFlags::IN));
        }
        let timeout = left.map(|left| Timespec::try_from(left).unwrap_or_default());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok((false, false)),
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok((
            fds.get(1).is_some_and(ready),
            fds.first().is_some_and(ready),
        ))
    }

    fn hear(&mut self) -> Option<Heard> {
        let Some(appliance) = &self.appliance else {
            let flags = rustix::net::SocketFlags::CLOEXEC;
            // A client that gave up again is no reason to end.
            self.appliance = rustix::net::accept_with(&self.listener, flags).ok();
            let there = self.appliance.is_some();
            self.lifelines.set_appliance(there, Instant::now());
            return None;
        };
        let Ok(Some(message)) = channel::receive(appliance.as_fd(), true) else {
            self.appliance = None;
            self.lifelines.set_appliance(false, Instant::now());
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
