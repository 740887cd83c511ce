//! Files of a snapshot that somebody wrote on purpose, read through the public interface. No KVM needed.
//!
//! Whatever a file holds, reading it gives a result or an error: no panic, no abort, and no more memory
//! than a few times the limit of its format, which an allocator that counts measures.
//!
//! `fuzz` changes good files at random, checksums put right again, so that the changes get past them: see the crate `fuzz`.

mod exemplar;
mod fuzz;
mod sealed;
mod state_file;
mod working_set_file;

use std::fs::File;
use std::os::unix::fs::FileExt;

use ::fuzz::allocation::within;
use vmm::memory::working_set::WorkingSet;
use vmm::snapshot::{Inspection, SnapshotError, inspect};

/// Memory of the guests here. The smallest there is.
const MEM_MIB: u32 = 48;

/// A file with these bytes.
fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().expect("a temporary file");
    file.write_all_at(bytes, 0)
        .expect("a write to a temporary file");
    file
}

/// Reads a state file and prints it, which must not take more memory than it may.
fn read_state(bytes: &[u8]) -> Result<(Inspection, String), SnapshotError> {
    let file = file(bytes);
    within(3 * vmm::snapshot::format::MAX_STATE_BYTES, || {
        let inspection = inspect(&file)?;
        let text = inspection.to_string();
        Ok((inspection, text))
    })
}

/// Reads the working set of a guest, asks it everything that does not need the guest.
fn read_working_set(bytes: &[u8], mem_mib: u32) -> Result<WorkingSet, SnapshotError> {
    let file = file(bytes);
    within(8 << 20, || {
        let set = WorkingSet::read(&file, mem_mib)?;
        let touched: u64 = set
            .guest_ranges()
            .iter()
            .map(|range| range.end - range.start)
            .sum();
        let (written, read) = set.pages();
        assert!(touched >= (written + read) * vmm::memory::PAGE);
        assert!(
            touched <= u64::from(mem_mib) << 20,
            "more than the guest has"
        );
        Ok(set)
    })
}
