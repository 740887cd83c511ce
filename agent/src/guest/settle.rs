//! Standing still before a snapshot.
//!
//! What a guest has begun and not finished when it is saved, every fork of it finishes again: writes the same blocks to its
//! disk, lets the same processes go to sleep, gives the same free pages back. Each page that is written on the way is
//! from then on the fork's own. So it is all done before, once.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use super::disk;
use crate::attempt::{Attempt, SetupError};

/// Writing to it folds the counters of each CPU into those of the machine and gives some of the free pages back that the
/// kernel keeps for the CPU: an eighth of what it may keep at most (`decay_pcp_high` in `mm/page_alloc.c`). It does the same
/// once a second by itself. The boot frees megabytes (initramfs, its own start-up code), so a fork would be busy with
/// that for a quarter of a minute.
const REFRESH: &str = "/proc/sys/vm/stat_refresh";
/// After so many, a hundredth of what was kept is left.
const REFRESHES: u32 = 32;
/// What the kernel does behind somebody's back is done some ticks later. Nobody says when.
const PATIENCE: Duration = Duration::from_millis(50);

/// Finishes what is left to do.
pub fn settle() -> Result<(), SetupError> {
    File::open(disk::SCRATCH)
        .and_then(|disk| Ok(rustix::fs::syncfs(disk)?))
        .attempt(|| "write the disk back".into())?;
    for _ in 0..REFRESHES {
        fs::write(REFRESH, "1").attempt(|| format!("write 1 to {REFRESH}"))?;
    }
    thread::sleep(PATIENCE);
    Ok(())
}
