//! Counts what a thread allocates, so that a test can say how much is too much. It is the allocator of every program that uses this crate;
//! what other threads allocate does not count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    /// Bytes allocated by this thread and not given back. Negative while it frees what came from others.
    static LIVE: Cell<i64> = const { Cell::new(0) };
    /// The most there ever was since it was set.
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// Runs `act` and panics if it ever had more than `limit` bytes.
pub fn within<R>(limit: u64, act: impl FnOnce() -> R) -> R {
    let before = LIVE.get();
    PEAK.set(before);
    let result = act();
    let most = PEAK.get() - before;
    assert!(
        i64::try_from(limit).is_ok_and(|limit| most <= limit),
        "{most} bytes were allocated at once, {limit} is the limit"
    );
    result
}

fn count(bytes: usize, sign: i64) {
    let live = LIVE.get() + sign * i64::try_from(bytes).unwrap_or(i64::MAX);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// SAFETY: every method hands its arguments to the system's allocator and returns its answer; counting
// touches neither the memory nor the layout, and allocates nothing: the counters are constants of the
// thread without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promises are the system allocator's, which made `at`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both may exist for a moment.
        count(new_size, 1);
        count(layout.size(), -1);
        // SAFETY: the caller's promises are the system allocator's, which made `at`.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocate_1000() -> usize {
        std::hint::black_box(vec![1_u8; 1000]).len()
    }

    #[test]
    fn allocation_within_the_limit_passes() {
        assert_eq!(within(1000, allocate_1000), 1000);
    }

    #[test]
    #[should_panic(expected = "1000 bytes were allocated at once, 999 is the limit")]
    fn allocation_above_the_limit_is_noticed() {
        within(999, allocate_1000);
    }
}
