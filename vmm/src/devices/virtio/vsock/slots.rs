//! A bounded table whose entries are named by tokens that are not reused at once. Pure.
//!
//! Event loop and queues remember clients by token, and may do so for a moment after the client is
//! gone. A token therefore carries a generation: an old one finds nothing instead of the next client.

/// Bits of a token that name the slot.
const SLOT_BITS: u32 = 10;
/// The bits that name the slot.
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// As many entries as a table can hold.
pub const CAPACITY: usize = 1 << SLOT_BITS;
/// Generations before a slot's tokens repeat. Leaves the upper tokens of 32 bits to the caller.
const GENERATIONS: u32 = 1 << 20;

/// The tokens that a table gives out are below this.
pub const TOKENS: u32 = GENERATIONS << SLOT_BITS;

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Entries by token.
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Adds an entry; `make` gets the token first. `None` if the table is full.
    pub fn insert(&mut self, make: impl FnOnce(u32) -> Option<T>) -> Option<u32> {
        let index = match self.free.last() {
            Some(&index) => index,
            None if self.slots.len() < CAPACITY => {
                self.slots.push(Slot {
                    generation: 0,
                    value: None,
                });
                let index = u32::try_from(self.slots.len() - 1).ok()?;
                self.free.push(index);
                index
            }
            None => return None,
        };
        let slot = &mut self.slots[index as usize];
        let token = slot.generation << SLOT_BITS | index;
        slot.value = Some(make(token)?);
        self.free.pop();
        Some(token)
    }

    pub fn get_mut(&mut self, token: u32) -> Option<&mut T> {
        self.slot_mut(token)?.value.as_mut()
    }

    /// Everything there is, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }

    pub fn remove(&mut self, token: u32) -> Option<T> {
        let slot = self.slot_mut(token)?;
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        self.free.push(token & SLOT_MASK);
        Some(value)
    }

    /// Changes an entry into another that keeps its token.
    pub fn replace(&mut self, token: u32, change: impl FnOnce(T) -> T) {
        if let Some(slot) = self.slot_mut(token) {
            slot.value = slot.value.take().map(change);
        }
    }

    /// The tokens of all entries.
    pub fn tokens(&self) -> Vec<u32> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.value.is_some())
            .map(|(index, slot)| slot.generation << SLOT_BITS | index)
            .collect()
    }

    fn slot_mut(&mut self, token: u32) -> Option<&mut Slot<T>> {
        let slot = self.slots.get_mut((token & SLOT_MASK) as usize)?;
        (slot.generation == token >> SLOT_BITS).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_of_a_removed_entry_does_not_find_the_next_one() {
        let mut slots = Slots::new();
        let old = slots.insert(|_| Some("old")).unwrap();
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert(|_| Some("new")).unwrap();
        assert_ne!(old, new);
        assert_eq!(slots.get_mut(old), None);
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.get_mut(new), Some(&mut "new"));
        assert_eq!(slots.tokens(), [new]);
    }

    #[test]
    fn full_table_takes_no_more_until_an_entry_goes() {
        let mut slots = Slots::new();
        let tokens: Vec<u32> = (0..CAPACITY)
            .map(|n| slots.insert(|_| Some(n)).unwrap())
            .collect();
        assert_eq!(slots.insert(|_| Some(0)), None);
        slots.remove(tokens[500]).unwrap();
        let token = slots.insert(|_| Some(7)).unwrap();
        assert!(token < TOKENS);
        assert_eq!(slots.insert(|_| Some(0)), None);
        assert_eq!(slots.tokens().len(), CAPACITY);
    }

    #[test]
    fn entry_that_is_not_made_takes_no_slot() {
        let mut slots: Slots<u8> = Slots::new();
        for _ in 0..2 * CAPACITY {
            assert_eq!(slots.insert(|_| None), None);
        }
        assert!(slots.insert(|_| Some(1)).is_some());
    }
}
