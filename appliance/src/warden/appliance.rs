//! The warden's hold on the appliance process: starting it, also again, and talking to it without ever waiting for it.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};

use super::channel::{self, Message};
use super::program::Program;
use super::protocol::{ApplianceSetup, Event, Status, Task};
use super::records::{Entry, Records, Subject};
use super::spawn::{Output, Place, Process, Role};

/// Events that the appliance has not read. Beyond that it is broken.
const MAX_WAITING_EVENTS: usize = 16_384;

/// What an appliance is started with.
#[derive(Debug)]
pub struct Launch {
    /// Ourselves.
    pub program: Program,
    pub setup: ApplianceSetup,
    /// Copies of the front door's socket and, with HTTP-01, of that for its challenges. Connections wait in them while no
    /// appliance is there to accept them.
    pub listeners: Vec<TcpListener>,
}

impl Launch {
    pub fn start(&self, records: &Records) -> io::Result<Appliance> {
        let output = match self.setup.task {
            Task::Serve => Output::Nowhere,
            Task::Bench(_) => Output::Ours,
        };
        // Not in the room: it has the network and the store.
        let process = Process::spawn(&self.program, Role::Appliance, output, Place::default())?;
        let entry = records.write(Subject::Appliance, process.id(), self.setup.uid)?;
        let listeners: Vec<_> = self.listeners.iter().map(AsFd::as_fd).collect();
        match process.send_first(&self.setup, &listeners) {
            Ok(()) => Ok(Appliance::new(process, Some(entry))),
            Err(error) => {
                entry.remove();
                Err(error)
            }
        }
    }

    /// Callers that come now are refused at once, and not when we are gone.
    pub fn close_door(&mut self) {
        self.listeners.clear();
    }
}

/// A running appliance process.
#[derive(Debug)]
pub struct Appliance {
    pub(super) process: Process,
    entry: Option<Entry>,
    outbox: VecDeque<Vec<u8>>,
    /// It has said that it serves.
    pub settled: bool,
}

/// What comes from the appliance's socket.
#[derive(Debug)]
pub enum Heard {
    Message(Message),
    /// There is nothing now.
    Nothing,
    /// There will be nothing any more.
    End,
}

impl Appliance {
    pub(super) fn new(process: Process, entry: Option<Entry>) -> Self {
        Self {
            process,
            entry,
            outbox: VecDeque::new(),
            settled: false,
        }
    }

    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }

    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.process.socket.as_ref().map(AsFd::as_fd)
    }

    /// Whether events wait for the socket to have room.
    pub fn has_more(&self) -> bool {
        !self.outbox.is_empty()
    }

    pub fn kill(&self) {
        self.process.kill();
    }

    /// How it ended, once it has.
    pub fn try_wait(&mut self) -> io::Result<Option<Status>> {
        let status = self.process.try_wait()?;
        if status.is_some()
            && let Some(entry) = self.entry.take()
        {
            entry.remove();
        }
        Ok(status)
    }

    /// Does not wait. After the end it can do nothing any more.
    pub fn hear(&mut self) -> Heard {
        let Some(socket) = self.socket() else {
            return Heard::Nothing;
        };
        match channel::receive(socket, true) {
            Ok(Some(message)) => return Heard::Message(message),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Ok(None) => {}
            // It ended with answers unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => tracing::error!("Cannot read from the appliance process: {error}"),
        }
        self.process.socket = None;
        Heard::End
    }

    pub fn tell(&mut self, event: &Event) {
        match serde_json::to_vec(event) {
            Ok(bytes) => self.outbox.push_back(bytes),
            Err(error) => tracing::error!("Cannot encode an event: {error}"),
        }
        if self.outbox.len() > MAX_WAITING_EVENTS {
            tracing::error!("The appliance process does not read its events");
            self.kill();
        }
        self.flush();
    }

    /// Never waits: what does not fit now is sent when `poll` says so.
    pub fn flush(&mut self) {
        let Some(socket) = &self.process.socket else {
            return self.outbox.clear();
        };
        while let Some(event) = self.outbox.front() {
            match channel::send(socket.as_fd(), event, &[], true) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is going; its end comes as an event of its own.
                Err(_) => return self.outbox.clear(),
            }
        }
    }
}
