//! Who may come up now: so many guests at a time, so that a burst does not take the CPUs from
//! sessions that run. Those that a caller waits for come before those that nobody waits for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::launch::Urgency;

/// The turns of a host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Turns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    total: usize,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug)]
struct State {
    free: usize,
    claims: VecDeque<oneshot::Sender<Turn>>,
    refills: VecDeque<oneshot::Sender<Turn>>,
}

/// The right to come up, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    /// `None`: it was not given to anybody.
    turns: Option<Turns>,
}

impl Turns {
    pub fn new(total: usize) -> Self {
        let state = State {
            free: total,
            claims: VecDeque::new(),
            refills: VecDeque::new(),
        };
        let inner = Inner {
            total,
            state: Mutex::new(state),
            ended: Notify::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Among the equally urgent, in the order of the calls. A caller that goes away loses its place
    /// and nothing else.
    pub async fn take(&self, urgency: Urgency) -> Turn {
        let my_turn = {
            let mut state = self.state();
            // Nobody waits while one is free.
            if state.free > 0 {
                state.free -= 1;
                return Turn {
                    turns: Some(self.clone()),
                };
            }
            let (sender, my_turn) = oneshot::channel();
            match urgency {
                Urgency::Claim => state.claims.push_back(sender),
                Urgency::Refill => state.refills.push_back(sender),
            }
            my_turn
        };
        match my_turn.await {
            Ok(turn) => turn,
            // The sender is kept until it is used.
            Err(_) => std::future::pending().await,
        }
    }

    /// How many may come up at once.
    pub fn total(&self) -> usize {
        self.inner.total
    }

    /// Nobody comes up at the moment.
    pub fn all_free(&self) -> bool {
        self.state().free == self.inner.total
    }

    /// Resolves when a turn has ended since the last call. For one caller.
    pub async fn one_ended(&self) {
        self.inner.ended.notified().await;
    }

    fn release(&self) {
        let mut state = self.state();
        loop {
            let State {
                claims, refills, ..
            } = &mut *state;
            let Some(next) = claims.pop_front().or_else(|| refills.pop_front()) else {
                state.free += 1;
                return;
            };
            let turn = Turn {
                turns: Some(self.clone()),
            };
            match next.send(turn) {
                Ok(()) => return,
                // It does not wait any more.
                Err(turn) => turn.forget(),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Drops it without giving anything back.
    fn forget(mut self) {
        self.turns = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            // First, so that whoever is told finds it free.
            turns.release();
            turns.inner.ended.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Urgency::{Claim, Refill};
    use super::*;

    #[tokio::test]
    async fn turn_that_ends_is_told_and_is_free_by_then() {
        let turns = Turns::new(2);
        assert!(turns.all_free());
        let first = turns.take(Claim).await;
        let second = turns.take(Refill).await;
        assert!(!turns.all_free());
        drop(first);
        turns.one_ended().await;
        assert!(!turns.all_free());
        drop(second);
        turns.one_ended().await;
        assert!(turns.all_free());
    }

    /// Polls everybody who waits once, in this order, and then hands the one turn on until all had it.
    async fn order_of(waiting: &[(u8, Urgency)], gone: &[u8]) -> Vec<u8> {
        let turns = Turns::new(1);
        let mut held = Some(turns.take(Claim).await);
        let (had, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for (number, urgency) in waiting.iter().copied() {
            let (turns, had) = (turns.clone(), had.clone());
            let task = tokio::spawn(async move {
                let turn = turns.take(urgency).await;
                had.send(number).unwrap();
                drop(turn);
            });
            // One thread: it waits in line now.
            tokio::task::yield_now().await;
            tasks.push((number, task));
        }
        for (number, task) in &tasks {
            if gone.contains(number) {
                task.abort();
            }
        }
        tokio::task::yield_now().await;
        held.take();
        let mut seen = Vec::new();
        while seen.len() < waiting.len() - gone.len() {
            seen.push(order.recv().await.unwrap());
        }
        // Nothing is lost on the way.
        turns.take(Claim).await;
        tokio::task::yield_now().await;
        assert!(turns.all_free());
        seen
    }

    #[tokio::test]
    async fn claims_come_before_refills_and_each_in_their_order() {
        let waiting = [(1, Refill), (2, Claim), (3, Refill), (4, Claim), (5, Claim)];
        assert_eq!(order_of(&waiting, &[]).await, [2, 4, 5, 1, 3]);
    }

    #[tokio::test]
    async fn whoever_went_away_is_passed_over() {
        let waiting = [(1, Refill), (2, Claim), (3, Refill), (4, Claim)];
        assert_eq!(order_of(&waiting, &[1, 2]).await, [4, 3]);
    }

    #[tokio::test]
    async fn turn_that_nobody_takes_any_more_goes_to_the_next() {
        let turns = Turns::new(1);
        let held = turns.take(Claim).await;
        let mut gave_up = Box::pin(turns.take(Claim));
        let waits = std::future::poll_fn(|context| {
            std::task::Poll::Ready(gave_up.as_mut().poll(context).is_pending())
        });
        assert!(waits.await);
        // It is given the turn, and goes away without having looked.
        drop(held);
        drop(gave_up);
        assert!(turns.all_free());
    }
}
