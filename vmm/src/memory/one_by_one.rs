//! Has the kernel map each page of a fork when it is touched, and no other with it.
//!
//! At a read fault in a mapping of a file, the kernel also maps what it has in memory of the 64 KiB around
//! (`do_fault_around`, mm/memory.c). That is good for forks, and bad for whoever wants to learn which pages a fork
//! needs: most of what is mapped then was not touched. The kernel leaves it out where pages may be protected
//! against writes through userfaultfd (`uffd_disable_fault_around`), so the memory is registered for that.
//!
//! Nothing is ever protected and nothing waits for an answer: with `UFFD_FEATURE_WP_ASYNC` (Linux 6.7,
//! Documentation/admin-guide/mm/userfaultfd.rst), which registers mappings of every kind of file, the kernel resolves such
//! faults by itself. A descriptor that gets no faults of the kernel's needs no privilege (Linux 5.11), whatever
//! `vm.unprivileged_userfaultfd` says.

use std::io;
use std::os::fd::OwnedFd;

use rustix::mm::UserfaultfdFlags;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::Memory;

// include/uapi/linux/userfaultfd.h; its structures are `repr(C)`.
const UFFD: u32 = 0xaa;
const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: u32 = 1;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
ioctl_iowr_nr!(UFFDIO_REGISTER, UFFD, 0x00, Register);
ioctl_iowr_nr!(UFFDIO_API, UFFD, 0x3f, Api);

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// As long as this lives, what is mapped of a memory is what was touched of it.
#[derive(Debug)]
pub struct OneByOne {
    /// The registration ends when it is closed.
    _descriptor: OwnedFd,
}

impl OneByOne {
    /// From now on for `memory`, a fresh private mapping.
    pub fn keep(memory: &Memory) -> io::Result<Self> {
        let flags =
            UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        // SAFETY: the descriptor alone changes nothing; what it is used for is judged below.
        let descriptor = unsafe { rustix::mm::userfaultfd(flags) }?;
        let mut api = Api {
            api: UFFD_API,
            features: UFFD_FEATURE_WP_ASYNC,
            ioctls: 0,
        };
        // SAFETY: the kernel reads the structure and writes back what it can do; nothing else refers to it.
        check(unsafe { ioctl_with_mut_ref(&descriptor, UFFDIO_API(), &mut api) })?;
        for region in memory.iter() {
            let mut register = Register {
                start: region.as_ptr() as u64,
                len: region.len(),
                mode: UFFDIO_REGISTER_MODE_WP,
                ioctls: 0,
            };
            // SAFETY: the kernel reads the structure and writes back what may be done with the range.
            // - Valid: the range is that of `region`, a live mapping, and the kernel checks that it is one.
            // - Harmless: the registration changes neither content nor permission of a page, and since this program
            //   protects none, no access to the range ever waits. It ends with the mapping at the latest.
            check(unsafe { ioctl_with_mut_ref(&descriptor, UFFDIO_REGISTER(), &mut register) })?;
        }
        Ok(Self {
            _descriptor: descriptor,
        })
    }
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
