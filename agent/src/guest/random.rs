//! The kernel's random numbers.
//!
//! A guest that is forked from a snapshot starts with the generator of every other fork. Bytes written to
//! `/dev/urandom` would not help: they wait in the input pool for the next reseed, up to a minute later.
//! So they are added *and* the generator is made to take a new key, which reaches everybody:
//! `getrandom`, `/dev/random`, the vDSO's `getrandom` and the kernel's own batches all compare a
//! generation that `crng_reseed` raises (`drivers/char/random.c`).
//!
//! The kernel does the same when it hears of a new VMGenID. That is its second chance, not ours: it happens some
//! time after the restore and reports nothing.

use std::ffi::c_int;
use std::fs::File;
use std::mem::size_of;

use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use wire::Identity;

use crate::attempt::{Attempt, SetupError};

/// Of the random devices, the one that never blocks. Both take the same requests.
const DEVICE: &str = "/dev/urandom";

/// From `linux/random.h`. The type in the opcode is the kernel's, and is not that of the argument.
const RNDADDENTROPY: Opcode = opcode::write::<[c_int; 2]>(b'R', 0x03);
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);

/// `struct rand_pool_info` with its bytes.
#[repr(C)]
struct Entropy {
    bits: c_int,
    bytes: c_int,
    buffer: [u8; Identity::SEED_BYTES],
}

const _: () = assert!(
    size_of::<Entropy>() == 2 * size_of::<c_int>() + Identity::SEED_BYTES,
    "the kernel reads the bytes right behind the two numbers"
);

impl Entropy {
    fn new(seed: &[u8; Identity::SEED_BYTES]) -> Self {
        const BYTES: c_int = 64;
        const _: () = assert!(BYTES as usize == Identity::SEED_BYTES);
        Self {
            bits: BYTES * 8,
            bytes: BYTES,
            buffer: *seed,
        }
    }
}

/// Opens what [`reseed`] needs. Done ahead, since it would be done anew in each fork.
pub fn open() -> Result<File, SetupError> {
    File::open(DEVICE).attempt(|| format!("open {DEVICE}"))
}

/// Makes all random numbers from now on depend on `seed`. Needs the capability `CAP_SYS_ADMIN`.
pub fn reseed(device: &File, seed: &[u8; Identity::SEED_BYTES]) -> Result<(), SetupError> {
    // SAFETY: `RNDADDENTROPY` reads two numbers and as many bytes behind them as the second says, all of which
    // `Entropy` holds, and writes nothing.
    let add = unsafe { Setter::<RNDADDENTROPY, Entropy>::new(Entropy::new(seed)) };
    // SAFETY: the pattern above describes this ioctl.
    unsafe { ioctl(device, add) }
        .attempt(|| "add to the kernel's random numbers (RNDADDENTROPY)".into())?;
    // SAFETY: `RNDRESEEDCRNG` takes no argument.
    let reseed = unsafe { NoArg::<RNDRESEEDCRNG>::new() };
    // SAFETY: the pattern above describes this ioctl.
    unsafe { ioctl(device, reseed) }
        .attempt(|| "make the kernel use them at once (RNDRESEEDCRNG)".into())
}

#[cfg(test)]
pub mod tests {
    use std::mem::offset_of;
    use std::thread;

    use super::*;
    use crate::attempt::chain;

    #[test]
    fn requests_have_the_numbers_and_the_layout_of_the_kernels_header() {
        assert_eq!(RNDADDENTROPY, 0x4008_5203);
        assert_eq!(RNDRESEEDCRNG, 0x5207);
        assert_eq!(offset_of!(Entropy, bits), 0);
        assert_eq!(offset_of!(Entropy, bytes), 4);
        assert_eq!(offset_of!(Entropy, buffer), 8);
        let entropy = Entropy::new(&[7; 64]);
        assert_eq!((entropy.bits, entropy.bytes), (512, 64));
    }

    /// What the kernel answers to one of the two requests.
    #[derive(Debug, Clone, Copy)]
    pub enum Answer {
        Done,
        Refused,
    }

    /// From now on the calling thread gets these answers, and its requests never reach the kernel. Neither does
    /// what it asks of the clock: the machine that runs the tests keeps its own.
    pub fn fake_answers(add: Answer, reseed: Answer) {
        let code = |code: u32| u16::try_from(code).unwrap();
        let load = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
        let equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
        let give = code(libc::BPF_RET | libc::BPF_K);
        // Offsets in `struct seccomp_data`: the system call's number, the lower half of its second argument.
        const NUMBER: u32 = 0;
        const SECOND_ARGUMENT: u32 = 24;
        let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
        let call = |number: libc::c_long| u32::try_from(number).unwrap();
        let answer = |answer| {
            let errno = match answer {
                Answer::Done => 0,
                Answer::Refused => libc::EPERM.unsigned_abs(),
            };
            step(give, libc::SECCOMP_RET_ERRNO | errno, 0, 0)
        };
        let mut program = [
            step(load, NUMBER, 0, 0),
            step(equal, call(libc::SYS_clock_settime), 0, 1),
            answer(Answer::Done),
            step(equal, call(libc::SYS_ioctl), 0, 5),
            step(load, SECOND_ARGUMENT, 0, 0),
            step(equal, RNDADDENTROPY, 0, 1),
            answer(add),
            step(equal, RNDRESEEDCRNG, 0, 1),
            answer(reseed),
            step(give, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let filter = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap(),
            filter: program.as_mut_ptr(),
        };
        rustix::thread::set_no_new_privs(true).unwrap();
        // SAFETY: the kernel copies the program, which lives until the call has returned. A filter can only
        // refuse this thread what it asks for.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const filter,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Runs `reseed` where the kernel gives these answers. A filter stays with its thread for ever.
    fn reseed_with(add: Answer, then: Answer) -> Result<(), String> {
        let run = move || {
            fake_answers(add, then);
            reseed(&open().unwrap(), &[7; 64]).map_err(|error| chain(&error))
        };
        thread::spawn(run).join().unwrap()
    }

    #[test]
    fn reseed_is_done_when_both_requests_are_and_not_before() {
        assert_eq!(reseed_with(Answer::Done, Answer::Done), Ok(()));
        let refused = |what: &str| {
            Err(format!(
                "Cannot {what}: Operation not permitted (os error 1)"
            ))
        };
        assert_eq!(
            reseed_with(Answer::Refused, Answer::Done),
            refused("add to the kernel's random numbers (RNDADDENTROPY)")
        );
        assert_eq!(
            reseed_with(Answer::Done, Answer::Refused),
            refused("make the kernel use them at once (RNDRESEEDCRNG)")
        );
    }

    /// No filter here: the kernel's own answer to somebody without `CAP_SYS_ADMIN`.
    #[test]
    fn reseed_without_the_capability_is_a_failure() {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let run = || {
            let mut mine = capabilities(None).unwrap();
            mine.effective.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, mine).unwrap();
            reseed(&open().unwrap(), &[7; 64]).map_err(|error| chain(&error))
        };
        assert_eq!(
            thread::spawn(run).join().unwrap(),
            Err(
                "Cannot add to the kernel's random numbers (RNDADDENTROPY): \
                 Operation not permitted (os error 1)"
                    .into()
            )
        );
    }
}
