//! The kernel command line: ours, then the caller's.

use vm_memory::{Bytes, GuestAddress};

use crate::memory::{Memory, layout};

/// What every guest gets. The caller's part follows, and for most options the last one wins.
///
/// - `console=ttyS0 loglevel=3`: only what is critical reaches the serial port, where each byte is an exit. Not
///   `quiet`, which lets errors through, and a kernel without a PCI bus calls that an error. A panic is always told.
/// - `8250.nr_uarts=1`: do not probe ports that are not there.
/// - `panic=-1`: a kernel panic resets at once, which the host sees as `VmExit::Reset`, after its text.
/// - `tsc=nowatchdog`: do not compare the TSC with another clock twice a second. The guest tells the time by kvm-clock,
///   whatever becomes of the TSC. A fork in which the two clocks part, even a little, would begin by starting a thread
///   that gives the TSC up.
/// - `pci=off`: there is no PCI bus; the kernel has PCI compiled in only because ACPICA needs it.
/// - `noreplace-smp`: a kernel that finds one processor would turn each of its 7,000 lock prefixes into a no-op, one by one, and
///   change to other page tables and back for each. An uncontended lock prefix costs a few cycles.
/// - `rcupdate.rcu_expedited=1`: mounts, control groups and namespaces wait for grace periods, which ordinarily last some
///   ticks of 10 ms each. Expedited ones interrupt the few processors of a guest instead.
const BUILT_IN: &str = "console=ttyS0 loglevel=3 8250.nr_uarts=1 panic=-1 pci=off tsc=nowatchdog \
    noreplace-smp rcupdate.rcu_expedited=1";

/// Why a command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CmdlineError {
    #[error("The command line has {length} bytes, the kernel takes {max}")]
    TooLong { length: usize, max: usize },
    #[error("The command line has a control or non-ASCII character at byte {at}")]
    Character { at: usize },
}

/// The whole line, without its terminator.
pub fn build(extra: &str) -> Result<String, CmdlineError> {
    if let Some(at) = extra
        .bytes()
        .position(|byte| byte != b' ' && !byte.is_ascii_graphic())
    {
        return Err(CmdlineError::Character { at });
    }
    let line = [BUILT_IN, extra.trim()].join(" ").trim_end().to_owned();
    let max = layout::CMDLINE_MAX - 1;
    if line.len() > max {
        return Err(CmdlineError::TooLong {
            length: line.len(),
            max,
        });
    }
    Ok(line)
}

/// Writes the line and its terminator.
pub fn write(line: &str, memory: &Memory) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_slice(line.as_bytes(), GuestAddress(layout::CMDLINE))?;
    memory.write_obj(0_u8, GuestAddress(layout::CMDLINE + line.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_options_come_last() {
        let line = build("loglevel=7").unwrap();
        assert_eq!(line, format!("{BUILT_IN} loglevel=7"));
    }

    #[test]
    fn empty_addition_leaves_no_blank_at_the_end() {
        assert_eq!(build("").unwrap(), BUILT_IN);
    }

    #[test]
    fn line_longer_than_the_kernel_takes_is_refused() {
        assert!(matches!(
            build(&"a".repeat(2048)),
            Err(CmdlineError::TooLong { max: 2047, .. })
        ));
    }

    #[test]
    fn newline_in_the_addition_is_refused_with_its_place() {
        assert!(matches!(
            build("a\nb"),
            Err(CmdlineError::Character { at: 1 })
        ));
    }
}
