//! The leak audit: the host before the first test, and after the last one when nothing of the tests runs any more.
//!
//! It is the last test of every run. On a host that is there for the tests alone (`CABANA_OWN_HOST=1`, which the labs
//! say) whatever is new on it is a leak, and memory is weighed; elsewhere only what is known to be theirs counts.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::artifacts;
use crate::process;
use crate::traces::{Memory, Traces};

/// What the kernel may take to finish with what has ended: it frees microVMs, cgroups and memory by and by.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks, when there is no process whose end could be waited for.
const PAUSE: Duration = Duration::from_millis(200);
/// Half of the smallest guest. What is lost beyond that is no noise: see `tests/README.md` for what was measured.
const MEMORY_BOUND_KIB: u64 = 64 << 10;
/// What a hundred guests' worth of the kernel's own objects is not.
const SLAB_BOUND_KIB: u64 = 16 << 10;

/// The host at some time.
#[derive(Debug)]
pub struct Audit {
    whole: bool,
    before: Traces,
    memory: Memory,
}

impl Audit {
    pub fn begin() -> Self {
        let whole = artifacts::host_is_ours();
        Self {
            whole,
            before: Traces::of_tests(whole),
            memory: Memory::now(),
        }
    }

    /// Begins where another program of the same run has [`noted`](Self::note) the host.
    pub fn begun_at(file: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let parsed = text.split_once('\n').and_then(|(memory, things)| {
            let (available, slab) = memory.split_once(' ')?;
            Some(Self {
                whole: artifacts::host_is_ours(),
                before: Traces::from_text(things),
                memory: Memory {
                    available: available.parse().ok()?,
                    slab: slab.parse().ok()?,
                },
            })
        });
        parsed.ok_or_else(|| format!("{} holds no picture of a host", file.display()))
    }

    /// Writes the host down for a later program. `file` must lie where no test leaves anything.
    pub fn note(&self, file: &Path) -> Result<(), String> {
        let Memory { available, slab } = self.memory;
        let text = format!("{available} {slab}\n{}", self.before.to_text());
        fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
    }

    /// What is new on the host.
    pub fn leaks(&self) -> Vec<String> {
        let mut leaks = Traces::of_tests(self.whole).since(&self.before);
        if self.whole {
            leaks.extend(self.lost(Memory::now()));
        }
        leaks
    }

    /// Panics with the names of what is left on the host, once everything had time to end.
    pub fn finish(&self) {
        self.finish_within(SETTLE_LIMIT);
    }

    pub fn finish_within(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut leaks = self.leaks();
        while !leaks.is_empty() && Instant::now() < deadline {
            // What ends does so with its process, or a little later.
            match process::all().first() {
                Some(process) => drop(process.ends_within(PAUSE)),
                None => std::thread::sleep(PAUSE),
            }
            leaks = self.leaks();
        }
        println!("leak audit: {}", self.verdict(&leaks));
        assert!(leaks.is_empty(), "the tests have left: {leaks:#?}");
    }

    fn verdict(&self, leaks: &[String]) -> String {
        let things = self.before.count();
        let found = match leaks.len() {
            0 => "nothing is left".to_owned(),
            count => format!("{count} LEAKS"),
        };
        if !self.whole {
            return format!("{found} of what is known to be the tests' ({things} things before)");
        }
        let now = Memory::now();
        format!(
            "{found} on the host ({things} things before); available memory {} MiB before and {} MiB after (may lose {}), \
             unreclaimable slab {} KiB before and {} KiB after (may gain {})",
            self.memory.available >> 10,
            now.available >> 10,
            MEMORY_BOUND_KIB >> 10,
            self.memory.slab,
            now.slab,
            SLAB_BOUND_KIB,
        )
    }

    fn lost(&self, now: Memory) -> Vec<String> {
        let mut lost = Vec::new();
        let available = self.memory.available.saturating_sub(now.available);
        if available > MEMORY_BOUND_KIB {
            lost.push(format!(
                "memory: {} MiB are not available any more",
                available >> 10
            ));
        }
        let slab = now.slab.saturating_sub(self.memory.slab);
        if slab > SLAB_BOUND_KIB {
            lost.push(format!("memory: the kernel holds {slab} KiB more in slabs"));
        }
        lost
    }
}
