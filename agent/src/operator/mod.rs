//! Commands that an operator runs beside the container's own processes.
//!
//! Each connection to [`wire::port::EXEC`] is one command; what is said on it is in [`wire::exec`]. A command runs where
//! the container runs, as [`crate::container::enter`] gets it there, and never anywhere else: without a running container
//! there is nothing to run beside. It ends with the container, because it is in its PID namespace and its control
//! group, and when the operator's connection goes away.

mod child;
mod exec;
mod stdio;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use wire::Exit;

use crate::container::{Container, Place};
use crate::poller::{ExecPart, Poller, Readiness};
use exec::{BUFFER_BYTES, Exec, Moved};

/// Commands at one time.
pub const MAX_COMMANDS: usize = 16;
/// Streams at one time: those of commands, and those that are being told that there are too many.
const MAX_STREAMS: usize = 2 * MAX_COMMANDS;

/// All commands of operators.
pub struct Operator {
    execs: HashMap<u32, Exec>,
    next_id: u32,
    /// Those that used up their turn and have more to do.
    waiting: VecDeque<u32>,
    buffer: Box<[u8]>,
}

/// What a command needs to know of what is around it.
pub struct Around<'a> {
    pub poller: &'a Poller,
    pub place: Result<Place<'a>, &'a str>,
    /// The name of the guest, or why it has none.
    pub hostname: Result<&'a str, String>,
    running: usize,
}

impl<'a> Around<'a> {
    pub fn new(
        poller: &'a Poller,
        container: &'a Result<Container, String>,
        hostname: Result<&'a str, String>,
    ) -> Self {
        Self {
            poller,
            place: match container {
                Ok(container) => container.place(),
                Err(message) => Err(message),
            },
            hostname,
            running: 0,
        }
    }

    /// Whether one more may run.
    fn may_start(&self) -> Result<(), String> {
        if self.running < MAX_COMMANDS {
            return Ok(());
        }
        Err(format!(
            "{MAX_COMMANDS} commands run in this session already; end one of them first"
        ))
    }
}

impl Operator {
    pub fn new() -> Self {
        Self {
            execs: HashMap::new(),
            next_id: 0,
            waiting: VecDeque::new(),
            // Made with the first command: most guests never see one.
            buffer: Box::default(),
        }
    }

    /// Takes a new stream, which does not block. One above the limit is closed.
    pub fn open(&mut self, client: OwnedFd, mut around: Around<'_>, now: Instant) {
        if self.execs.len() >= MAX_STREAMS {
            return;
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        if let Ok(exec) = Exec::new(id, client, around.poller, now) {
            self.execs.insert(id, exec);
            self.advance(id, &mut around, now);
        }
    }

    pub fn on_event(
        &mut self,
        id: u32,
        (part, readiness): (ExecPart, Readiness),
        mut around: Around<'_>,
        now: Instant,
    ) {
        if let Some(exec) = self.execs.get_mut(&id) {
            exec.note(part, readiness, around.poller);
            self.advance(id, &mut around, now);
        }
    }

    /// A child of the agent ended.
    pub fn on_reaped(&mut self, pid: Pid, exit: Exit, mut around: Around<'_>, now: Instant) {
        let running: Vec<u32> = self.running().collect();
        for id in running {
            if let Some(exec) = self.execs.get_mut(&id) {
                exec.on_reaped(pid, exit, around.poller);
                self.advance(id, &mut around, now);
            }
        }
    }

    /// Everything beside the container ends with it. In a PID namespace the kernel sees to that; what is not in
    /// it yet, or has none, is ended here.
    pub fn on_container_ended(&mut self) {
        for exec in self.execs.values_mut() {
            exec.kill();
        }
    }

    /// Whether there is nobody left to be told anything.
    pub fn is_idle(&self) -> bool {
        self.execs.is_empty()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.execs.values().filter_map(Exec::deadline).min()
    }

    pub fn on_time(&mut self, now: Instant) {
        for exec in self.execs.values_mut() {
            exec.on_time(now);
        }
        self.execs.retain(|_, exec| !exec.is_over());
    }

    /// How long the loop may sleep: not at all while a command waits for its turn.
    pub fn patience(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(Duration::ZERO)
    }

    /// Gives one turn to each command that had more to do.
    pub fn take_turns(&mut self, mut around: Around<'_>, now: Instant) {
        for _ in 0..self.waiting.len() {
            if let Some(id) = self.waiting.pop_front() {
                self.advance(id, &mut around, now);
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = u32> {
        let running = self.execs.iter().filter(|(_, exec)| exec.is_running());
        running.map(|(id, _)| *id)
    }

    fn advance(&mut self, id: u32, around: &mut Around<'_>, now: Instant) {
        around.running = self.running().count();
        let Some(exec) = self.execs.get_mut(&id) else {
            return;
        };
        let moved = exec.advance(around, &mut self.buffer, now);
        if exec.is_over() {
            self.execs.remove(&id);
        } else if moved == Moved::Turn && !self.waiting.contains(&id) {
            self.waiting.push_back(id);
        }
    }
}
