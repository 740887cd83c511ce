//! How often a source address may come without a good token.
//!
//! Guessing at tokens leads nowhere; this keeps guessers, and clients with a token that has ended, from being told
//! why a hundred times a second. It counts failures and nothing else: a good token is served from any address,
//! whatever its neighbours behind the same address do.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures at once, and one more per [`PACE`]: a person who tries, or a client that starts many requests
/// with a token that has just ended, does not meet it.
const BURST: u32 = 60;
const PACE: Duration = Duration::from_secs(1);
/// Addresses that are told apart: about 300 KiB. Those beyond it share one count.
const MAX_SOURCES: usize = 4096;
/// The table is searched for addresses that have calmed down so often at most.
const SWEEP_PACE: Duration = Duration::from_secs(1);

/// Counts failures by source.
pub struct Failures {
    table: Mutex<Table>,
}

struct Table {
    sources: HashMap<IpAddr, Count>,
    /// Of all sources that have no place of their own.
    others: Count,
    swept: Instant,
}

/// When its failures will be forgiven; each puts it off by one pace.
#[derive(Clone, Copy)]
struct Count(Instant);

impl Count {
    /// One more. `Err`: too many, and when there may be another.
    fn add(&mut self, now: Instant) -> Result<(), Duration> {
        let forgiven = self.0.max(now) + PACE;
        let excess = (forgiven - now).saturating_sub(PACE * BURST);
        if excess.is_zero() {
            self.0 = forgiven;
            return Ok(());
        }
        Err(excess)
    }
}

impl Failures {
    pub fn new(now: Instant) -> Self {
        let table = Table {
            sources: HashMap::new(),
            others: Count(now),
            swept: now,
        };
        Self {
            table: Mutex::new(table),
        }
    }

    /// Counts a failure. `Err`: there were too many; after this time there may be one more.
    pub fn count(&self, peer: IpAddr, now: Instant) -> Result<(), Duration> {
        let source = source(peer);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = &mut *table;
        let is_known = table.sources.contains_key(&source);
        if !is_known && table.sources.len() >= MAX_SOURCES && now >= table.swept + SWEEP_PACE {
            table.swept = now;
            table.sources.retain(|_, count| count.0 > now);
        }
        if is_known || table.sources.len() < MAX_SOURCES {
            table.sources.entry(source).or_insert(Count(now)).add(now)
        } else {
            table.others.add(now)
        }
    }
}

/// Who has one IPv6 address has the 64 bits behind its prefix.
fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn burst_is_told_why_and_then_one_each_pace() {
        let start = Instant::now();
        let failures = Failures::new(start);
        let one = ip("192.0.2.1");
        for _ in 0..BURST {
            failures.count(one, start).unwrap();
        }
        assert_eq!(failures.count(one, start), Err(PACE));
        // Being refused puts nothing off.
        assert_eq!(failures.count(one, start), Err(PACE));
        failures.count(ip("192.0.2.2"), start).unwrap();
        failures.count(one, start + PACE).unwrap();
        assert!(failures.count(one, start + PACE).is_err());
        let later = start + PACE * (BURST + 1);
        for _ in 0..BURST {
            failures.count(one, later).unwrap();
        }
        assert!(failures.count(one, later).is_err());
    }

    #[test]
    fn address_is_counted_with_all_that_its_owner_has() {
        assert_eq!(
            source(ip("2001:db8::1")),
            source(ip("2001:db8::ffff:0:0:2"))
        );
        assert_ne!(source(ip("2001:db8::1")), source(ip("2001:db8:0:1::1")));
        assert_eq!(source(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_ne!(source(ip("192.0.2.1")), source(ip("192.0.2.2")));
    }

    #[test]
    fn table_is_bounded_and_cannot_be_emptied_by_filling_it() {
        let start = Instant::now();
        let failures = Failures::new(start);
        let nth = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        for _ in 0..BURST {
            failures.count(nth(0), start).unwrap();
        }
        let now = start + SWEEP_PACE / 2;
        let most = u32::try_from(MAX_SOURCES).unwrap();
        for n in 1..most + BURST {
            failures.count(nth(n), now).unwrap();
        }
        assert_eq!(failures.table.lock().unwrap().sources.len(), MAX_SOURCES);
        assert!(failures.count(nth(0), now).is_err());
        // Those without a place have used up what they share.
        assert!(failures.count(nth(most + BURST), now).is_err());
        // Those that have calmed down make room.
        let later = now + PACE * BURST * 2;
        failures.count(nth(most + BURST), later).unwrap();
        assert_eq!(failures.table.lock().unwrap().sources.len(), 1);
    }
}
