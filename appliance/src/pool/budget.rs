//! What of this host sessions may take. One budget for all pools.
//!
//! Every slot reserves its guest's memory and CPU share before its worker is started, and gives them
//! back when nothing is left of the worker. So a host is not promised twice, however many pools there
//! are; how much more than it has may be promised is the operator's choice.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::store::PoolRecord;

/// What the host and the appliance keep for themselves: a twentieth of the memory, at least this.
const KEPT_MIB: u64 = 256;
const KEPT_PART: u64 = 20;
/// What is reserved for a worker beside the memory of its guest.
const WORKER_MIB: u64 = 16;

/// The names of the properties that a pool may be too large in.
const MAX_SESSIONS: &str = "properties.scaleConfiguration.maxConcurrentSessions";
const READY_SESSIONS: &str = "properties.scaleConfiguration.readySessionInstances";

/// Memory and CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub mem_mib: u64,
    pub cpu_millis: u64,
}

/// The host's budget. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    total: Size,
    taken: Mutex<Size>,
}

/// A part of the budget, until it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    size: Size,
}

/// What is scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Memory,
    Cpu,
}

/// There is no room for one more slot now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    pub resource: Resource,
    pub needed: u64,
    pub taken: u64,
    pub total: u64,
}

/// There never is room for what a pool promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TooLarge {
    pub property: &'static str,
    pub message: String,
}

impl Budget {
    /// Of a host of this size, of which so much may be promised.
    pub fn of_host(host: Size, memory_overcommit: f64, cpu_overcommit: f64) -> Self {
        let kept = KEPT_MIB.max(host.mem_mib / KEPT_PART);
        Self::new(Size {
            mem_mib: times(host.mem_mib.saturating_sub(kept), memory_overcommit),
            cpu_millis: times(host.cpu_millis, cpu_overcommit),
        })
    }

    /// Exactly this.
    pub fn new(total: Size) -> Self {
        let inner = Inner {
            total,
            taken: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// For one slot of this pool.
    pub fn reserve(&self, pool: &PoolRecord) -> Result<Reservation, Shortage> {
        let (size, total) = (slot(pool), self.inner.total);
        let mut taken = self
            .inner
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let short = |resource, needed: u64, taken: u64, total: u64| {
            (taken + needed > total).then_some(Shortage {
                resource,
                needed,
                taken,
                total,
            })
        };
        let memory = short(Resource::Memory, size.mem_mib, taken.mem_mib, total.mem_mib);
        let cpu = || {
            short(
                Resource::Cpu,
                size.cpu_millis,
                taken.cpu_millis,
                total.cpu_millis,
            )
        };
        if let Some(shortage) = memory.or_else(cpu) {
            return Err(shortage);
        }
        taken.mem_mib += size.mem_mib;
        taken.cpu_millis += size.cpu_millis;
        Ok(Reservation {
            budget: self.clone(),
            size,
        })
    }

    /// For a slot of this pool that is there already, whatever the host has left: its configuration may have become smaller.
    pub fn reserve_anyway(&self, pool: &PoolRecord) -> Reservation {
        let size = slot(pool);
        let taken = &self.inner.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.mem_mib += size.mem_mib;
        taken.cpu_millis += size.cpu_millis;
        Reservation {
            budget: self.clone(),
            size,
        }
    }

    /// Whether a pool may promise what it does, beside these others.
    pub fn admit(&self, pool: &PoolRecord, others: &[Arc<PoolRecord>]) -> Result<(), TooLarge> {
        let (each, count) = (slot(pool), u64::from(pool.max_sessions));
        self.fits(MAX_SESSIONS, many(pool, pool.max_sessions), |resource| {
            let each = resource.of(each);
            format!("{count} sessions of {}", resource.amount(each))
        })?;
        let before = others.iter().fold(Size::default(), |sum, other| {
            let ready = many(other, other.ready_sessions);
            Size {
                mem_mib: sum.mem_mib + ready.mem_mib,
                cpu_millis: sum.cpu_millis + ready.cpu_millis,
            }
        });
        let own = many(pool, pool.ready_sessions);
        let all = Size {
            mem_mib: before.mem_mib + own.mem_mib,
            cpu_millis: before.cpu_millis + own.cpu_millis,
        };
        self.fits(READY_SESSIONS, all, |resource| {
            let (before, each) = (resource.of(before), resource.of(each));
            let (before, each) = (resource.amount(before), resource.amount(each));
            let ready = pool.ready_sessions;
            format!(
                "{ready} ready sessions of {each}, beside the ready sessions of other pools with {before},"
            )
        })
    }

    fn fits(
        &self,
        property: &'static str,
        wanted: Size,
        what: impl Fn(Resource) -> String,
    ) -> Result<(), TooLarge> {
        for resource in [Resource::Memory, Resource::Cpu] {
            let (wanted, total) = (resource.of(wanted), resource.of(self.inner.total));
            if wanted > total {
                let (wanted, total) = (resource.amount(wanted), resource.amount(total));
                let (what, key) = (what(resource), resource.key());
                let message = format!(
                    "{what} take {wanted}, and this host has {total} for sessions; \
                     lower it, or raise `{key}` in the appliance's configuration"
                );
                return Err(TooLarge { property, message });
            }
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let taken = &self.budget.inner.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.mem_mib -= self.size.mem_mib;
        taken.cpu_millis -= self.size.cpu_millis;
    }
}

impl Resource {
    fn of(self, size: Size) -> u64 {
        match self {
            Self::Memory => size.mem_mib,
            Self::Cpu => size.cpu_millis,
        }
    }

    fn amount(self, number: u64) -> String {
        match self {
            Self::Memory => format!("{number} MiB"),
            Self::Cpu => format!("{} CPUs", number as f64 / 1000.0),
        }
    }

    /// The key of the configuration that has the factor.
    fn key(self) -> &'static str {
        match self {
            Self::Memory => "memory_overcommit",
            Self::Cpu => "cpu_overcommit",
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = |number| self.resource.amount(number);
        let (needed, taken, total) = (amount(self.needed), amount(self.taken), amount(self.total));
        write!(
            f,
            "The host has no room for one more session, which takes {needed}: {taken} of {total} are taken"
        )
    }
}

fn slot(pool: &PoolRecord) -> Size {
    Size {
        mem_mib: u64::from(pool.mem_mib) + WORKER_MIB,
        cpu_millis: pool.cpu_millis.into(),
    }
}

fn many(pool: &PoolRecord, count: u32) -> Size {
    let (each, count) = (slot(pool), u64::from(count));
    Size {
        mem_mib: each.mem_mib * count,
        cpu_millis: each.cpu_millis * count,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float becomes an integer by saturation, and less than one MiB does not matter"
)]
fn times(number: u64, factor: f64) -> u64 {
    (number as f64 * factor) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::pool as record;

    fn pool(name: &str, max_sessions: u32, ready_sessions: u32) -> PoolRecord {
        PoolRecord {
            max_sessions,
            ready_sessions,
            mem_mib: 1024 - 16,
            cpu_millis: 500,
            ..record(name)
        }
    }

    fn budget(mem_mib: u64, cpu_millis: u64) -> Budget {
        Budget::new(Size {
            mem_mib,
            cpu_millis,
        })
    }

    #[test]
    fn reservation_counts_until_it_is_dropped() {
        let (budget, pool) = (budget(2048, 5000), pool("alpha", 9, 0));
        let first = budget.reserve(&pool).unwrap();
        let _second = budget.reserve(&pool).unwrap();
        let shortage = budget.reserve(&pool).unwrap_err();
        assert_eq!(
            shortage.to_string(),
            "The host has no room for one more session, which takes 1024 MiB: 2048 MiB of 2048 MiB are taken"
        );
        drop(first);
        assert!(budget.reserve(&pool).is_ok());
    }

    #[test]
    fn cpu_is_counted_as_memory_is() {
        let (budget, pool) = (budget(1 << 20, 999), pool("alpha", 9, 0));
        let _first = budget.reserve(&pool).unwrap();
        let shortage = budget.reserve(&pool).unwrap_err();
        assert_eq!((shortage.resource, shortage.taken), (Resource::Cpu, 500));
    }

    #[test]
    fn host_keeps_a_twentieth_of_its_memory_and_at_least_a_quarter_of_a_gibibyte() {
        let total = |mem_mib, memory, cpu| {
            let host = Size {
                mem_mib,
                cpu_millis: 4000,
            };
            Budget::of_host(host, memory, cpu).inner.total
        };
        let is = |mem_mib, cpu_millis| Size {
            mem_mib,
            cpu_millis,
        };
        assert_eq!(total(2048, 1.0, 8.0), is(1792, 32_000));
        assert_eq!(total(100_000, 1.0, 0.5), is(95_000, 2000));
        assert_eq!(total(2048, 2.5, 1.0), is(4480, 4000));
        assert_eq!(total(100, 1.0, 1.0), is(0, 4000));
    }

    #[test]
    fn pool_that_promises_more_than_the_host_has_is_refused_with_all_numbers() {
        let budget = budget(4096, 4000);
        budget.admit(&pool("alpha", 4, 4), &[]).unwrap();
        let error = budget.admit(&pool("alpha", 5, 0), &[]).unwrap_err();
        assert_eq!(error.property, MAX_SESSIONS);
        for number in [
            "5 sessions of 1024 MiB",
            "5120 MiB",
            "4096 MiB",
            "`memory_overcommit`",
        ] {
            assert!(error.message.contains(number), "{number}: {error}");
        }
        let greedy = PoolRecord {
            cpu_millis: 2000,
            ..pool("alpha", 3, 0)
        };
        let error = budget.admit(&greedy, &[]).unwrap_err();
        for number in [
            "3 sessions of 2 CPUs",
            "6 CPUs",
            "4 CPUs",
            "`cpu_overcommit`",
        ] {
            assert!(error.message.contains(number), "{number}: {error}");
        }
    }

    #[test]
    fn ready_sessions_of_all_pools_must_fit_together() {
        let budget = budget(4096, 1 << 20);
        let others = [Arc::new(pool("beta", 4, 3))];
        budget.admit(&pool("alpha", 4, 1), &others).unwrap();
        let error = budget.admit(&pool("alpha", 4, 2), &others).unwrap_err();
        assert_eq!(error.property, READY_SESSIONS);
        for number in ["2 ready sessions", "3072 MiB", "5120 MiB", "4096 MiB"] {
            assert!(error.message.contains(number), "{number}: {error}");
        }
    }
}
