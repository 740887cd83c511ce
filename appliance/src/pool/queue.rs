//! Claims that have no slot yet, in the order in which they came. Pure.
//!
//! There is one entry per identifier, with everybody who waits for it. An entry whose identifier
//! still has a session that ends is held back: there is one session per identifier, always.

use std::collections::{BTreeMap, HashMap};

use super::Identifier;
use super::session::Ticket;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Identifier, Entry>,
    /// Those that may have a slot, by their place in the order.
    free: BTreeMap<u64, Identifier>,
    /// Those that are held back.
    held: BTreeMap<u64, Identifier>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    place: u64,
    tickets: Vec<Ticket>,
}

impl Queue {
    /// How many sessions are waited for.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// A caller comes for something that is waited for already. `false`: it is not.
    pub fn join(&mut self, identifier: &Identifier, ticket: Ticket) -> bool {
        let entry = self.entries.get_mut(identifier);
        entry.map(|entry| entry.tickets.push(ticket)).is_some()
    }

    /// A new entry, last in order.
    pub fn push(&mut self, identifier: Identifier, tickets: Vec<Ticket>, held: bool) {
        let place = self.next;
        self.next += 1;
        let order = if held { &mut self.held } else { &mut self.free };
        order.insert(place, identifier.clone());
        self.entries.insert(identifier, Entry { place, tickets });
    }

    /// Nothing holds this one back any more; it keeps its place.
    pub fn release(&mut self, identifier: &Identifier) {
        if let Some(entry) = self.entries.get(identifier)
            && let Some(identifier) = self.held.remove(&entry.place)
        {
            self.free.insert(entry.place, identifier);
        }
    }

    /// A caller goes away. When it was the last one, nobody waits for the identifier any more.
    pub fn abandon(&mut self, identifier: &Identifier, ticket: Ticket) {
        let Some(entry) = self.entries.get_mut(identifier) else {
            return;
        };
        entry.tickets.retain(|other| *other != ticket);
        if entry.tickets.is_empty() {
            let place = entry.place;
            self.free.remove(&place);
            self.held.remove(&place);
            self.entries.remove(identifier);
        }
    }

    /// Takes the first that may have a slot.
    pub fn next(&mut self) -> Option<(Identifier, Vec<Ticket>)> {
        let (_, identifier) = self.free.pop_first()?;
        let entry = self.entries.remove(&identifier)?;
        Some((identifier, entry.tickets))
    }

    /// Takes the callers of the first, held back or not.
    pub fn take_first(&mut self) -> Option<Vec<Ticket>> {
        let places = [self.free.first_key_value(), self.held.first_key_value()];
        let first = places
            .into_iter()
            .flatten()
            .min_by_key(|(place, _)| **place);
        let place = *first?.0;
        self.take(place)
    }

    /// Takes the callers of the last, held back or not.
    pub fn take_last(&mut self) -> Option<Vec<Ticket>> {
        let places = [self.free.last_key_value(), self.held.last_key_value()];
        let last = places
            .into_iter()
            .flatten()
            .max_by_key(|(place, _)| **place);
        let place = *last?.0;
        self.take(place)
    }

    fn take(&mut self, place: u64) -> Option<Vec<Ticket>> {
        let free = self.free.remove(&place);
        let identifier = free.or_else(|| self.held.remove(&place))?;
        self.entries.remove(&identifier).map(|entry| entry.tickets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> Identifier {
        format!("user-{n}").parse().unwrap()
    }

    fn queue_of(entries: &[(u8, bool)]) -> Queue {
        let mut queue = Queue::default();
        for (n, held) in entries {
            queue.push(id(*n), vec![Ticket((*n).into())], *held);
        }
        queue
    }

    #[test]
    fn first_that_comes_is_first_served_and_all_who_wait_for_it_with_it() {
        let mut queue = queue_of(&[(1, false), (2, false)]);
        assert!(queue.join(&id(1), Ticket(11)) && !queue.join(&id(3), Ticket(3)));
        assert_eq!(queue.next(), Some((id(1), vec![Ticket(1), Ticket(11)])));
        assert_eq!(queue.next(), Some((id(2), vec![Ticket(2)])));
        assert_eq!((queue.next(), queue.len()), (None, 0));
    }

    #[test]
    fn entry_that_is_held_back_keeps_its_place() {
        let mut queue = queue_of(&[(1, true), (2, false), (3, false)]);
        assert_eq!(queue.next().unwrap().0, id(2));
        queue.release(&id(1));
        assert_eq!(queue.next().unwrap().0, id(1));
        assert_eq!(queue.next().unwrap().0, id(3));
    }

    #[test]
    fn entry_without_callers_is_gone() {
        let mut queue = queue_of(&[(1, false), (2, true)]);
        queue.join(&id(1), Ticket(11));
        queue.abandon(&id(1), Ticket(1));
        assert_eq!(queue.len(), 2);
        queue.abandon(&id(1), Ticket(11));
        queue.abandon(&id(2), Ticket(2));
        queue.release(&id(2));
        assert_eq!((queue.next(), queue.len()), (None, 0));
    }

    #[test]
    fn those_at_both_ends_can_be_sent_away() {
        let mut queue = queue_of(&[(1, true), (2, false), (3, true)]);
        assert_eq!(queue.take_first(), Some(vec![Ticket(1)]));
        assert_eq!(queue.take_last(), Some(vec![Ticket(3)]));
        assert_eq!(queue.take_last(), Some(vec![Ticket(2)]));
        assert_eq!((queue.take_first(), queue.len()), (None, 0));
    }
}
