//! What a state file holds, for people.

use std::fmt;
use std::fs::File;

use super::format::{self, Header, SnapshotError};
use super::state::State;

/// What can be told of a state file. The header is good; the rest may not be.
#[derive(Debug)]
pub struct Inspection {
    pub header: Header,
    /// One line per vCPU and device, or why there are none.
    pub summary: Result<Vec<String>, SnapshotError>,
}

/// Reads a state file. Fails if not even its header can be believed.
pub fn inspect(state: &File) -> Result<Inspection, SnapshotError> {
    let (envelope, header) = format::open(state)?;
    let summary = format::decode(state, &envelope).map(|state: State| {
        let mut lines = state.summary();
        if let Err(error) = state.check(&header, header.disks.into()) {
            lines.push(format!("unusable  {error}"));
        }
        lines
    });
    Ok(Inspection { header, summary })
}

impl fmt::Display for Inspection {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = &self.header;
        writeln!(to, "format    {}", header.version)?;
        writeln!(to, "memory    {} MiB", header.mem_mib)?;
        writeln!(to, "vcpus     {}", header.vcpus)?;
        writeln!(to, "disks     {}", header.disks)?;
        write!(to, "state     {} bytes, SHA-256 ", header.payload_bytes)?;
        for byte in header.payload_sum {
            write!(to, "{byte:02x}")?;
        }
        writeln!(to)?;
        match &self.summary {
            Ok(lines) => lines.iter().try_for_each(|line| writeln!(to, "{line}")),
            Err(error) => writeln!(to, "unusable  {error}"),
        }
    }
}
