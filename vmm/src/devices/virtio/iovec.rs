//! Moves bytes between guest memory and host descriptors without a copy in between.
//!
//! `vm-memory` does this one piece at a time; a request of many pieces then costs a system call
//! each. These are the vectored calls, and the only unsafe code of the virtio devices: the safe
//! wrappers take `&mut [u8]`, which must never be formed over memory that the guest can write.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use vm_memory::VolatileSlice;

/// Pieces given to the kernel at a time, far below its limit of 1024. Callers handle short counts.
const MAX_PIECES: usize = 128;

/// Reads from `offset` of a file into guest memory. Zero at the end of the file.
pub fn read_at(file: &File, to: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    with_pieces(to, |pieces, count| {
        // SAFETY: the kernel writes to every piece. Each is valid for writes of its length, see
        // `with_pieces`, and nothing in Rust holds a reference to the bytes.
        unsafe { libc::preadv(file.as_raw_fd(), pieces, count, offset) }
    })
}

/// Writes guest memory to `offset` of a file.
pub fn write_at(file: &File, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    with_pieces(from, |pieces, count| {
        // SAFETY: the kernel reads every piece. Each is valid for reads of its length, see
        // `with_pieces`. The guest may change the bytes meanwhile; then it gets what it wrote.
        unsafe { libc::pwritev(file.as_raw_fd(), pieces, count, offset) }
    })
}

/// Sends guest memory on a stream socket, without waiting and without SIGPIPE.
pub fn send(socket: impl AsFd, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let fd = socket.as_fd().as_raw_fd();
    with_message(from, |message| {
        // SAFETY: the kernel reads the message and every piece it names. `message` is valid for the
        // call, its pieces are valid for reads, see `with_pieces`, and `socket` keeps `fd` open.
        unsafe { libc::sendmsg(fd, message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
    })
}

/// Receives from a stream socket into guest memory, without waiting. Zero at the end of the stream.
pub fn receive(socket: impl AsFd, to: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let fd: RawFd = socket.as_fd().as_raw_fd();
    with_message(to, |message| {
        // SAFETY: the kernel writes to every piece the message names, and to `message`. `message` is
        // valid for the call and ours alone, its pieces are valid for writes, see `with_pieces`, and
        // `socket` keeps `fd` open.
        unsafe { libc::recvmsg(fd, message, libc::MSG_DONTWAIT) }
    })
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Describes pieces of guest memory to `call`. The descriptions are valid until `call` returns: the
/// slices borrow the mapping, and `vm-memory` checked their bounds when it made them.
fn with_pieces(
    slices: &[VolatileSlice<'_>],
    call: impl FnOnce(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let mut pieces = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; MAX_PIECES];
    let mut count = 0;
    for (piece, slice) in pieces.iter_mut().zip(slices) {
        piece.iov_base = slice.ptr_guard_mut().as_ptr().cast();
        piece.iov_len = slice.len();
        count += 1;
    }
    let result = call(pieces.as_ptr(), count);
    // Negative is the only value that does not fit.
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn with_message(
    slices: &[VolatileSlice<'_>],
    call: impl FnOnce(*mut libc::msghdr) -> isize,
) -> io::Result<usize> {
    with_pieces(slices, |pieces, count| {
        // SAFETY: all zeros is a valid message: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.cast_mut();
        message.msg_iovlen = usize::try_from(count).unwrap_or(0);
        call(&raw mut message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn slices(parts: &mut [Vec<u8>]) -> Vec<VolatileSlice<'_>> {
        parts
            .iter_mut()
            .map(|part| VolatileSlice::from(part.as_mut_slice()))
            .collect()
    }

    #[test]
    fn pieces_are_gathered_and_scattered_in_order() {
        let file = tempfile::tempfile().unwrap();
        let mut from = [b"abc".to_vec(), b"d".to_vec(), b"ef".to_vec()];
        assert_eq!(write_at(&file, &slices(&mut from), 2).unwrap(), 6);
        let mut to = [vec![0; 4], vec![0; 10]];
        assert_eq!(read_at(&file, &slices(&mut to), 1).unwrap(), 7);
        assert_eq!(to[0], b"\0abc");
        assert_eq!(&to[1][..3], b"def");
        assert_eq!(read_at(&file, &slices(&mut to), 8).unwrap(), 0);
    }

    #[test]
    fn more_pieces_than_fit_give_a_short_count() {
        let file = tempfile::tempfile().unwrap();
        let mut from = vec![vec![7]; MAX_PIECES + 1];
        assert_eq!(write_at(&file, &slices(&mut from), 0).unwrap(), MAX_PIECES);
    }

    #[test]
    fn offset_beyond_what_files_have_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let mut part = [vec![0; 1]];
        for offset in [u64::MAX, 1 << 63] {
            assert!(read_at(&file, &slices(&mut part), offset).is_err());
            assert!(write_at(&file, &slices(&mut part), offset).is_err());
        }
    }

    #[test]
    fn stream_moves_bytes_and_tells_empty_from_ended() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut part = [b"hello".to_vec()];
        assert_eq!(send(&near, &slices(&mut part)).unwrap(), 5);
        let mut text = [0; 5];
        far.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        let empty = receive(&near, &slices(&mut part)).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        far.write_all(b"hi").unwrap();
        assert_eq!(receive(&near, &slices(&mut part)).unwrap(), 2);
        drop(far);
        assert_eq!(receive(&near, &slices(&mut part)).unwrap(), 0);
        let gone = send(&near, &slices(&mut part)).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }
}
