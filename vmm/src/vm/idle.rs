//! Threads that wait for their work.
//!
//! A new thread is a stack, an alternate stack for signals and some twenty system calls, which every microVM needs
//! at the moment when somebody waits for it. Made ahead, it costs one wake-up.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use crate::sandbox::{Filters, ThreadClass};

type Work = Box<dyn FnOnce() + Send>;

/// A thread with a name and nothing to do. Dropped, it ends.
pub struct IdleThread {
    work: Sender<Work>,
    thread: JoinHandle<()>,
}

impl IdleThread {
    /// With the filter of its class, if any: without it, there is no thread.
    pub fn spawn(name: String, filters: Filters, class: ThreadClass) -> io::Result<Self> {
        let (work, receiver) = mpsc::channel::<Work>();
        let (say, installed) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let ready = filters.install(class);
            let go_on = ready.is_ok();
            // Who has made this thread waits for it.
            let _ = say.send(ready);
            drop(say);
            if go_on && let Ok(work) = receiver.recv() {
                drop(receiver);
                work();
            }
        })?;
        installed
            .recv()
            .unwrap_or(Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { work, thread })
    }

    /// Does `work` and ends.
    pub fn start(self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let Self {
            work: sender,
            thread,
        } = self;
        // The thread receives until it has work, and cannot have ended before.
        let _ = sender.send(Box::new(work));
        thread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_does_its_work_under_its_name_and_ends() {
        let thread =
            IdleThread::spawn("patient".to_owned(), Filters::Off, ThreadClass::Vcpu).unwrap();
        let (done, name) = mpsc::channel();
        let handle = thread.start(move || {
            let name = std::thread::current().name().map(str::to_owned);
            done.send(name).unwrap();
        });
        handle.join().unwrap();
        assert_eq!(name.recv().unwrap().as_deref(), Some("patient"));
    }

    #[test]
    fn thread_that_gets_no_work_ends() {
        let IdleThread { work, thread } =
            IdleThread::spawn("idle".to_owned(), Filters::Off, ThreadClass::Vcpu).unwrap();
        drop(work);
        thread.join().unwrap();
    }
}
