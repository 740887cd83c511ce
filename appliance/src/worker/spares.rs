//! Shells made ahead, so that a start does only what depends on the session.
//!
//! One task owns them. It hands one out to whoever asks, makes another one when no guest comes up
//! any more, and replaces those that die while they wait. It never makes somebody wait: without a
//! spare the answer is none, and the caller makes a shell of its own; and a spare that is made while
//! a guest comes up would take the warden's time and the CPU's from it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::launch::LaunchError;
use super::shell::{Shell, ShellMaker};
use super::turns::Turns;
use crate::exit::chain;
use crate::warden::protocol::Ending;

/// Callers that wait for an answer, which comes at once.
const QUEUE: usize = 64;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Guests that come up without a pause do not keep spares from being made for longer than this, once there are few left.
const LONGEST_WAIT: Duration = Duration::from_millis(250);
/// A spare that has lived so long did not die of what it is made of.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Where spares are taken from. They are killed when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Spares {
    wishes: mpsc::Sender<oneshot::Sender<Shell>>,
    complete: watch::Receiver<bool>,
}

impl Spares {
    /// Keeps `count` of them, until it is said how this appliance ends.
    pub fn keep(
        count: usize,
        maker: ShellMaker,
        turns: Turns,
        ending: watch::Receiver<Option<Ending>>,
    ) -> Self {
        let (wishes, inbox) = mpsc::channel(QUEUE);
        let (say, complete) = watch::channel(false);
        let keeper = Keeper {
            count,
            maker,
            turns,
            idle: VecDeque::with_capacity(count),
            making: None,
            wanted_since: Instant::now(),
            backoff: Backoff::default(),
            retry_at: None,
            complete: say,
        };
        tokio::spawn(keeper.run(inbox, ending));
        Self { wishes, complete }
    }

    /// Resolves when there are as many as there shall be, or when no more are made.
    pub async fn complete(&self) {
        // An error: nobody keeps them any more.
        let _ = self.complete.clone().wait_for(|complete| *complete).await;
    }

    /// A spare, if there is one.
    pub async fn take(&self) -> Option<Shell> {
        let (answer, answered) = oneshot::channel();
        self.wishes.send(answer).await.ok()?;
        answered.await.ok()
    }
}

struct Idle {
    shell: Shell,
    since: Instant,
}

struct Keeper {
    count: usize,
    maker: ShellMaker,
    turns: Turns,
    /// Oldest first.
    idle: VecDeque<Idle>,
    /// One at a time: whoever cannot wait makes a shell itself.
    making: Option<JoinHandle<Result<Shell, LaunchError>>>,
    /// When one was taken or made last.
    wanted_since: Instant,
    backoff: Backoff,
    /// Nothing is made before.
    retry_at: Option<Instant>,
    complete: watch::Sender<bool>,
}

impl Keeper {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<oneshot::Sender<Shell>>,
        mut ending: watch::Receiver<Option<Ending>>,
    ) {
        let turns = self.turns.clone();
        loop {
            self.refill();
            let retry_at = self.retry_at;
            let too_long = self.wanted_since + LONGEST_WAIT;
            let waits = self.may_make();
            let runs_short = waits && self.runs_short() && too_long > Instant::now();
            tokio::select! {
                // Whoever waits comes first.
                biased;
                wish = inbox.recv() => match wish {
                    Some(answer) => self.hand_out(answer),
                    None => break,
                },
                _ = ending.wait_for(Option::is_some) => break,
                () = poll_fn(|context| self.poll(context)) => {}
                () = turns.one_ended(), if waits => {}
                () = sleep_until(too_long), if runs_short => {}
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.retry_at = None;
                }
            }
        }
        // From here on there are none: the channel is closed. All die side by side.
        drop(inbox);
        let ends: Vec<_> = self
            .idle
            .drain(..)
            .map(|idle| tokio::spawn(idle.shell.end()))
            .collect();
        for end in ends {
            let _ = end.await;
        }
    }

    fn may_make(&self) -> bool {
        self.making.is_none() && self.retry_at.is_none() && self.idle.len() < self.count
    }

    /// Whether those who come up at once could take all that are left.
    fn runs_short(&self) -> bool {
        self.idle.len() <= self.turns.total()
    }

    fn refill(&mut self) {
        self.complete.send_replace(self.idle.len() >= self.count);
        let waited = self.wanted_since.elapsed() >= LONGEST_WAIT;
        let their_turn = self.turns.all_free() || (self.runs_short() && waited);
        if self.may_make() && their_turn {
            let maker = self.maker.clone();
            // On a task of its own: nobody who asks for a spare waits for the warden.
            self.making = Some(tokio::spawn(async move { maker.make().await }));
        }
    }

    fn hand_out(&mut self, answer: oneshot::Sender<Shell>) {
        // One that has just died is no use. The next turn of the loop registers the real waker.
        let _ = self.poll(&mut Context::from_waker(Waker::noop()));
        let Some(idle) = self.idle.pop_front() else {
            return;
        };
        self.wanted_since = Instant::now();
        if idle.since.elapsed() >= HEALTHY_AFTER {
            self.backoff = Backoff::default();
        }
        if let Err(shell) = answer.send(idle.shell) {
            // Whoever asked has gone; nothing has run in it.
            self.idle.push_front(Idle { shell, ..idle });
        }
    }

    /// Takes in what was made and takes out what has died.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut changed = false;
        if let Some(making) = &mut self.making
            && let Poll::Ready(made) = std::pin::Pin::new(making).poll(context)
        {
            changed = true;
            self.making = None;
            match made {
                Ok(Ok(shell)) => {
                    let since = Instant::now();
                    self.wanted_since = since;
                    self.idle.push_back(Idle { shell, since });
                }
                Ok(Err(error)) => self.failed(&format!("Cannot make a spare: {}", chain(&error))),
                Err(error) => self.failed(&format!("Cannot make a spare: {error}")),
            }
        }
        let mut place = 0;
        while let Some(idle) = self.idle.get_mut(place) {
            let Poll::Ready(end) = idle.shell.poll_ended(context) else {
                place += 1;
                continue;
            };
            changed = true;
            let lived = idle.since.elapsed();
            let id = idle.shell.id;
            self.idle.remove(place);
            if lived >= HEALTHY_AFTER {
                self.backoff = Backoff::default();
            }
            match end {
                Some(end) => {
                    let report = end.report.unwrap_or_default();
                    self.failed(&format!("Spare {id} ended with {}: {report}", end.status));
                }
                None => self.failed(&format!("Spare {id} ended with the warden")),
            }
        }
        if changed {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn failed(&mut self, what: &str) {
        let delay = self.backoff.next();
        tracing::warn!(?delay, "{what}");
        self.retry_at = Some(Instant::now() + delay);
    }
}

/// How long to wait after each failure in a row. Pure.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let delay = FIRST_DELAY.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        delay.min(LONGEST_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_up_to_its_limit() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> = (0..4).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800]);
        for _ in 0..100 {
            assert!(backoff.next() <= LONGEST_DELAY);
        }
        assert_eq!(backoff.next(), LONGEST_DELAY);
    }
}
