//! The slots of one revision that belong to nobody yet. Pure.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::launcher::Urgency;
use super::pace::Pace;
use super::session::Moment;
use super::slot::SlotId;

/// See the module documentation.
#[derive(Debug)]
pub struct Stock {
    pub revision: Uuid,
    pub pace: Pace,
    /// Why the last start failed.
    pub last_failure: Option<String>,
    /// When the revision was asked for, or was last tried.
    pub tried: Moment,
    warming: BTreeMap<SlotId, Urgency>,
    urgent: usize,
    /// The longest ready first.
    ready: BTreeSet<(Moment, SlotId)>,
}

impl Stock {
    pub fn new(revision: Uuid, seed: u64, now: Moment) -> Self {
        Self {
            revision,
            pace: Pace::new(seed),
            last_failure: None,
            tried: now,
            warming: BTreeMap::new(),
            urgent: 0,
            ready: BTreeSet::new(),
        }
    }

    pub fn warming(&self) -> usize {
        self.warming.len()
    }

    /// Those that were started because somebody waits.
    pub fn urgent(&self) -> usize {
        self.urgent
    }

    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// All that will be ready, unless they fail.
    pub fn supply(&self) -> usize {
        self.warming.len() + self.ready.len()
    }

    pub fn begin(&mut self, slot: SlotId, urgency: Urgency) {
        self.warming.insert(slot, urgency);
        self.urgent += usize::from(urgency == Urgency::Claim);
    }

    pub fn ready_at(&mut self, slot: SlotId, now: Moment) {
        self.remove_warming(slot);
        self.ready.insert((now, slot));
    }

    /// The slot does not belong here any more.
    pub fn remove(&mut self, slot: SlotId, ready_at: Moment) {
        self.remove_warming(slot);
        self.ready.remove(&(ready_at, slot));
    }

    /// The one that is ready for the longest time.
    pub fn oldest_ready(&self) -> Option<SlotId> {
        self.ready.first().map(|(_, slot)| *slot)
    }

    /// When the youngest became ready.
    pub fn youngest_ready_at(&self) -> Option<Moment> {
        self.ready.last().map(|(since, _)| *since)
    }

    /// The one that is missed least: not up yet and not waited for, if there is such a one.
    pub fn least_wanted(&self) -> Option<SlotId> {
        let mut youngest_first = self.warming.iter().rev();
        let refill = youngest_first.find(|(_, urgency)| **urgency == Urgency::Refill);
        let warming = refill.or_else(|| self.warming.last_key_value());
        let warming = warming.map(|(slot, _)| *slot);
        warming.or_else(|| self.ready.last().map(|(_, slot)| *slot))
    }

    /// The one that became ready last.
    pub fn youngest_ready(&self) -> Option<SlotId> {
        self.ready.last().map(|(_, slot)| *slot)
    }

    /// All of them.
    pub fn slots(&self) -> Vec<SlotId> {
        let ready = self.ready.iter().map(|(_, slot)| *slot);
        self.warming.keys().copied().chain(ready).collect()
    }

    fn remove_warming(&mut self, slot: SlotId) {
        if self.warming.remove(&slot) == Some(Urgency::Claim) {
            self.urgent -= 1;
        }
    }
}
