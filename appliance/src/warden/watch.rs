//! Which of the children have something for the warden: one descriptor to wait on, however many there are.
//!
//! The warden wakes up several times for each session that begins, and there may be thousands of children. So it must not
//! ask each of them each time.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use uuid::Uuid;

use super::spawn::Process;

/// News that are taken in at once. Others stay where they are until the next time.
const AT_ONCE: usize = 64;

/// What a child has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It has ended.
    End,
    /// It has said something, or closed its socket.
    Words,
}

/// Names one child as long as it is watched, and no other one afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    watched: HashMap<Ticket, Uuid>,
    next: u64,
}

impl Watch {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watched: HashMap::new(),
            next: 0,
        })
    }

    /// It is watched until its descriptors are closed.
    pub fn add(&mut self, id: Uuid, process: &Process) -> io::Result<Ticket> {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.watch(process.pidfd(), ticket, News::End)?;
        if let Some(socket) = &process.socket {
            self.watch(socket.as_fd(), ticket, News::Words)?;
        }
        self.watched.insert(ticket, id);
        Ok(ticket)
    }

    fn watch(&self, fd: BorrowedFd<'_>, ticket: Ticket, news: News) -> io::Result<()> {
        let data = EventData::new_u64(ticket.0 << 1 | u64::from(news == News::Words));
        Ok(epoll::add(&self.epoll, fd, data, EventFlags::IN)?)
    }

    /// After its descriptors are closed, which takes them out of the kernel's list.
    pub fn forget(&mut self, ticket: Ticket) {
        self.watched.remove(&ticket);
    }

    /// Readable when somebody has something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Who has what now. Does not wait.
    pub fn news(&self) -> io::Result<Vec<(Uuid, News)>> {
        let mut events = Vec::with_capacity(AT_ONCE);
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, room, Some(&Timespec::default())) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let news = events.iter().filter_map(|event: &epoll::Event| {
            let data = event.data.u64();
            let id = self.watched.get(&Ticket(data >> 1))?;
            let what = if data & 1 == 0 {
                News::End
            } else {
                News::Words
            };
            Some((*id, what))
        });
        Ok(news.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::spawn::Output;
    use super::*;

    fn cat(watch: &mut Watch) -> (Process, Ticket, Uuid) {
        let process = {
            let program = super::super::program::Program::at("/bin/cat").unwrap();
            let place = super::super::spawn::Place::default();
            Process::start(&program, c"-", &[], Output::Nowhere, place).unwrap()
        };
        let id = Uuid::new_v4();
        let ticket = watch.add(id, &process).unwrap();
        (process, ticket, id)
    }

    #[test]
    fn only_who_has_something_is_told_until_it_is_forgotten() {
        let mut watch = Watch::new().unwrap();
        let (mut process, ticket, id) = cat(&mut watch);
        let (_other, ..) = cat(&mut watch);
        assert_eq!(watch.news().unwrap(), []);
        process.kill();
        process
            .ends_within(std::time::Duration::from_secs(20))
            .unwrap();
        for _ in 0..2 {
            let news = watch.news().unwrap();
            assert!(news.contains(&(id, News::End)), "{news:?}");
            assert!(news.iter().all(|(who, _)| *who == id), "{news:?}");
        }
        drop(process);
        watch.forget(ticket);
        assert_eq!(watch.news().unwrap(), []);
    }

    #[test]
    fn more_news_than_are_taken_in_at_once_come_later() {
        let mut watch = Watch::new().unwrap();
        let mut children: Vec<_> = (0..AT_ONCE + 3).map(|_| cat(&mut watch)).collect();
        children.iter().for_each(|(process, ..)| process.kill());
        let mut seen = std::collections::HashSet::new();
        while !children.is_empty() {
            for (id, _) in watch.news().unwrap() {
                seen.insert(id);
                if let Some(place) = children.iter().position(|(.., other)| *other == id) {
                    let (process, ticket, _) = children.swap_remove(place);
                    drop(process);
                    watch.forget(ticket);
                }
            }
        }
        assert_eq!(seen.len(), AT_ONCE + 3);
    }
}
