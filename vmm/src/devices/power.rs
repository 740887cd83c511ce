//! How a guest ends its own microVM: ACPI power-off, ACPI reset, keyboard-controller reset.
//!
//! The guest sees the two sleep registers and the reset register that the FADT of a
//! hardware-reduced ACPI platform names, and port 0x64 of a PC, which Linux uses when ACPI fails.
//!
//! # Threads
//! Registers are written by vCPU threads. The wish is one atomic that every vCPU thread reads after
//! a port access; the first wish wins, since a guest that powers off cannot change its mind.
//!
//! # Trust
//! Any byte at any time. Only the documented values do something, and nothing is stored per write.
//!
//! # Snapshot
//! Nothing to save: a microVM with a pending wish is ending, and cannot be paused.
//!
//! # Not here
//! Sleep states other than S5, wake-up, the power button. Spec: ACPI 6.5, sections 4.8.3.6 to
//! 4.8.3.8.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::bus::BusDevice;

/// Offset of the ACPI sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the ACPI sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the ACPI reset register.
pub const RESET: u64 = 2;
/// How many ports [`Power`] takes.
pub const LEN: u64 = 3;

/// The sleep type that `_S5` has to name.
pub const S5_SLEEP_TYPE: u8 = 5;
/// The value that the FADT has to name for the reset register.
pub const RESET_VALUE: u8 = 1;

/// Position of the sleep type in the sleep control register.
const SLEEP_TYPE_SHIFT: u8 = 2;
/// "Sleep enable" in the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
/// What powers off: S5 and "enable". The other bits are reserved.
const POWER_OFF: u8 = SLEEP_ENABLE | S5_SLEEP_TYPE << SLEEP_TYPE_SHIFT;
const SLEEP_MASK: u8 = SLEEP_ENABLE | 0b111 << SLEEP_TYPE_SHIFT;

/// The command port of the keyboard controller.
pub const I8042_COMMAND_PORT: u64 = 0x64;
/// "Pulse output line 0", which on a PC is the CPU's reset line.
const I8042_RESET: u8 = 0xfe;

/// How the guest wants to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerWish {
    PowerOff,
    Reset,
}

/// The guest's wish, shared by the registers and the vCPU threads.
#[derive(Debug, Default)]
pub struct PowerState {
    wish: AtomicU8,
}

const NONE: u8 = 0;
const WISH_POWER_OFF: u8 = 1;
const WISH_RESET: u8 = 2;

impl PowerState {
    /// What the guest asked for, if anything. Cheap enough for every exit.
    pub fn wish(&self) -> Option<PowerWish> {
        match self.wish.load(Ordering::Acquire) {
            WISH_POWER_OFF => Some(PowerWish::PowerOff),
            WISH_RESET => Some(PowerWish::Reset),
            _ => None,
        }
    }

    fn set(&self, wish: u8) {
        // A failed exchange means that an earlier wish stands.
        let _ = self
            .wish
            .compare_exchange(NONE, wish, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// The ACPI registers, [`LEN`] consecutive byte ports.
pub struct Power {
    state: Arc<PowerState>,
}

impl Power {
    pub fn new(state: Arc<PowerState>) -> Self {
        Self { state }
    }
}

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // No wake-up event is ever pending, and the control register reads as zero.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        if offset == SLEEP_CONTROL && value & SLEEP_MASK == POWER_OFF {
            self.state.set(WISH_POWER_OFF);
        } else if offset == RESET && value == RESET_VALUE {
            self.state.set(WISH_RESET);
        }
    }
}

/// The keyboard controller's command port, as far as a reset needs it.
pub struct I8042 {
    state: Arc<PowerState>,
}

impl I8042 {
    pub fn new(state: Arc<PowerState>) -> Self {
        Self { state }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Both buffers empty: Linux waits for that before it sends the reset command.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [I8042_RESET] {
            self.state.set(WISH_RESET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power() -> (Power, Arc<PowerState>) {
        let state = Arc::new(PowerState::default());
        (Power::new(state.clone()), state)
    }

    #[test]
    fn s5_with_enable_powers_off() {
        let (mut power, state) = power();
        power.write(SLEEP_CONTROL, &[0x34]);
        assert_eq!(state.wish(), Some(PowerWish::PowerOff));
    }

    #[test]
    fn other_bytes_in_any_register_do_nothing() {
        let (mut power, state) = power();
        for value in 0..=u8::MAX {
            if value & SLEEP_MASK != POWER_OFF {
                power.write(SLEEP_CONTROL, &[value]);
            }
            power.write(SLEEP_STATUS, &[value]);
            if value != RESET_VALUE {
                power.write(RESET, &[value]);
            }
        }
        power.write(SLEEP_CONTROL, &[0x34, 0x34]);
        power.write(SLEEP_CONTROL, &[]);
        assert_eq!(state.wish(), None);
    }

    #[test]
    fn first_wish_stands() {
        let (mut power, state) = power();
        power.write(RESET, &[RESET_VALUE]);
        power.write(SLEEP_CONTROL, &[0x34]);
        assert_eq!(state.wish(), Some(PowerWish::Reset));
    }

    #[test]
    fn keyboard_controller_resets_on_its_one_command() {
        let state = Arc::new(PowerState::default());
        let mut i8042 = I8042::new(state.clone());
        let mut status = [0xff];
        i8042.read(0, &mut status);
        i8042.write(0, &[0xd1]);
        assert_eq!((status, state.wish()), ([0], None));
        i8042.write(0, &[0xfe]);
        assert_eq!(state.wish(), Some(PowerWish::Reset));
    }
}
