//! Finds the device behind an address, for port I/O and for memory-mapped I/O alike.
//!
//! A microVM has two of these: one for ports, one for guest-physical addresses. They are filled
//! before the first vCPU runs and never changed afterwards, so lookups take no lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::lock;

/// What a read finds where no device is, as on a real bus that nobody drives.
const UNCLAIMED: u8 = 0xff;

/// Something with registers.
///
/// `data` is what the guest asked for: any length the CPU can produce, at any offset inside the
/// device's range. An access never reaches beyond the range.
pub trait BusDevice: Send {
    fn read(&mut self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("Range {base:#x}+{len:#x} is empty or passes the end of the address space")]
    Range { base: u64, len: u64 },
    #[error("Range {base:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap { base: u64, len: u64, other: u64 },
}

struct Entry {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// An address space of devices.
#[derive(Default)]
pub struct Bus {
    entries: BTreeMap<u64, Entry>,
}

impl Bus {
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `device` the addresses `base..base + len`.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let end = match base.checked_add(len) {
            Some(end) if len > 0 => end,
            _ => return Err(BusError::Range { base, len }),
        };
        // The only candidate is the last device that starts before our end.
        if let Some((&other, entry)) = self.entries.range(..end).next_back()
            && other + entry.len > base
        {
            return Err(BusError::Overlap { base, len, other });
        }
        self.entries.insert(base, Entry { len, device });
        Ok(())
    }

    /// Reads registers. What no device answers, or only a part of, reads as all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((offset, device)) => lock(device).read(offset, data),
            None => data.fill(UNCLAIMED),
        }
    }

    /// Writes registers. What no device takes, or only a part of, is dropped.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(addr, data.len()) {
            lock(device).write(offset, data);
        }
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let (&base, entry) = self.entries.range(..=addr).next_back()?;
        let offset = addr - base;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (end <= entry.len).then_some((offset, &*entry.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers the last access.
    #[derive(Default)]
    struct Recorder {
        read_at: Option<(u64, usize)>,
        written: Option<(u64, Vec<u8>)>,
    }

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            self.read_at = Some((offset, data.len()));
            data.fill(0x5a);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written = Some((offset, data.to_vec()));
        }
    }

    fn bus_with_device_at(base: u64, len: u64) -> (Bus, Arc<Mutex<Recorder>>) {
        let device = Arc::new(Mutex::new(Recorder::default()));
        let mut bus = Bus::new();
        bus.insert(base, len, device.clone()).unwrap();
        (bus, device)
    }

    #[test]
    fn access_inside_a_range_reaches_the_device_with_its_offset() {
        let (bus, device) = bus_with_device_at(0x1000, 0x100);
        let mut data = [0; 4];
        bus.read(0x10fc, &mut data);
        bus.write(0x1000, &[1, 2]);
        assert_eq!(data, [0x5a; 4]);
        assert_eq!(lock(&device).read_at, Some((0xfc, 4)));
        assert_eq!(lock(&device).written, Some((0, vec![1, 2])));
    }

    #[test]
    fn access_that_nobody_claims_reads_all_ones() {
        let (bus, device) = bus_with_device_at(0x1000, 0x100);
        for addr in [0, 0xfff, 0x1100, u64::MAX] {
            let mut data = [0; 2];
            bus.read(addr, &mut data);
            bus.write(addr, &data);
            assert_eq!(data, [0xff; 2], "at {addr:#x}");
        }
        assert_eq!(lock(&device).read_at, None);
        assert_eq!(lock(&device).written, None);
    }

    #[test]
    fn access_that_crosses_the_end_of_a_device_does_not_reach_it() {
        let (bus, device) = bus_with_device_at(0x1000, 0x100);
        let mut data = [0; 8];
        bus.read(0x10fc, &mut data);
        assert_eq!(data, [0xff; 8]);
        assert_eq!(lock(&device).read_at, None);
    }

    #[test]
    fn overlapping_and_impossible_ranges_are_refused() {
        let (mut bus, _) = bus_with_device_at(0x1000, 0x100);
        let device = || Arc::new(Mutex::new(Recorder::default()));
        for (base, len) in [(0x1000, 1), (0xfff, 2), (0x10ff, 1), (0, 0x2000)] {
            let error = bus.insert(base, len, device()).unwrap_err();
            assert!(
                matches!(error, BusError::Overlap { other: 0x1000, .. }),
                "{error}"
            );
        }
        for (base, len) in [(0x5000, 0), (u64::MAX, 2)] {
            let error = bus.insert(base, len, device()).unwrap_err();
            assert!(matches!(error, BusError::Range { .. }), "{error}");
        }
        bus.insert(0xfff, 1, device()).unwrap();
        bus.insert(0x1100, 1, device()).unwrap();
    }
}
