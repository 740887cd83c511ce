//! What an input reached: the counters that `-C instrument-coverage` compiles in, read between two inputs. The compiler has them for reports;
//! here they tell an input that is worth changing further from one that is not.
//!
//! `cargo dev fuzz` compiles the crates of the workspace with `--cfg guided` and this flag, and nothing else: what dependencies do with an
//! input counts as far as it leads somewhere else here. Without the flag there are no counters, and nothing is kept.

/// How often each counter was ever seen, as one bit for each kind of often.
#[derive(Default)]
pub struct Seen(Vec<u8>);

impl Seen {
    /// Forgets the input before.
    pub fn begin() {
        counters().fill(0);
    }

    /// Whether something was reached since `begin` that never was, or was so often that it never was as often. `often` says whether how
    /// often counts at all.
    pub fn is_new(&mut self, often: bool) -> bool {
        let counters = counters();
        self.0.resize(counters.len(), 0);
        let mut new = false;
        for (seen, count) in self.0.iter_mut().zip(&*counters) {
            if *count == 0 {
                continue;
            }
            // 1, 2, 3, 4 to 7, 8 to 15, and so on.
            let kind = match *count {
                _ if !often => 0,
                few if few < 4 => few - 1,
                many => u64::from(many.ilog2()).min(6) + 1,
            };
            let bit = 1 << kind;
            new |= *seen & bit == 0;
            *seen |= bit;
        }
        new
    }

    /// Of how many counters how many were reached.
    pub fn reached(&self) -> (usize, usize) {
        (
            self.0.iter().filter(|seen| **seen != 0).count(),
            counters().len(),
        )
    }
}

#[cfg(not(guided))]
fn counters() -> &'static mut [u64] {
    &mut []
}

#[cfg(guided)]
fn counters() -> &'static mut [u64] {
    unsafe extern "C" {
        fn __llvm_profile_begin_counters() -> *mut u64;
        fn __llvm_profile_end_counters() -> *mut u64;
    }
    // SAFETY: the compiler's runtime has this function in every program with the flag; it answers an address of the program's own data.
    let begin = unsafe { __llvm_profile_begin_counters() };
    // SAFETY: the same.
    let end = unsafe { __llvm_profile_end_counters() };
    let count = (end as usize - begin as usize) / size_of::<u64>();
    // SAFETY: between the two are the program's counters, which are data of it for as long as it runs, aligned as what they are. `cargo dev
    // fuzz` runs one target in a process, so that the only other thread there is waits for it; what the target's own threads count meanwhile
    // may be lost, and is lost between the counting itself as well, which is why nothing but a hint is made of it.
    unsafe { std::slice::from_raw_parts_mut(begin, count) }
}
