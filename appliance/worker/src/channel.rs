//! Messages with descriptors over a `SOCK_SEQPACKET` pair: one send, one message, whole or not at all.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The longest message. Fits twice into the default socket buffer, so a first message never waits.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// The most descriptors in one message: an image worker gets one for each of 128 layers, and a few. The kernel
/// takes 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 136;

/// One message as it came.
#[derive(Debug)]
pub struct Message {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// A connected pair; both ends close on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Sends one message. With `dont_wait` a full buffer is [`io::ErrorKind::WouldBlock`].
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    dont_wait: bool,
) -> io::Result<()> {
    // An empty message could not be told from the end of the stream.
    if bytes.is_empty() || bytes.len() > MAX_MESSAGE_BYTES || fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, dont_wait);
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message; `None` is the end of the stream. A message that was cut is an error.
pub fn receive(socket: BorrowedFd<'_>, dont_wait: bool) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, dont_wait);
    let received = loop {
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut buffer, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // Alignment leaves room for one descriptor too many.
    let cut = received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if cut || fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the message was cut",
        ));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    Ok(Some(Message { bytes, fds }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_travel_with_their_message() {
        let (left, right) = pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"seen").unwrap();
        file.rewind().unwrap();
        send(left.as_fd(), b"one", &[file.as_fd()], true).unwrap();
        send(left.as_fd(), b"two", &[], true).unwrap();
        let first = receive(right.as_fd(), true).unwrap().unwrap();
        let second = receive(right.as_fd(), true).unwrap().unwrap();
        assert_eq!(
            (&first.bytes[..], &second.bytes[..]),
            (&b"one"[..], &b"two"[..])
        );
        assert_eq!((first.fds.len(), second.fds.len()), (1, 0));
        let mut text = String::new();
        let received = first.fds.into_iter().next().unwrap();
        std::fs::File::from(received)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "seen");
    }

    #[test]
    fn closed_peer_is_the_end_and_an_empty_socket_would_block() {
        let (left, right) = pair().unwrap();
        let error = receive(right.as_fd(), true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert!(receive(right.as_fd(), true).unwrap().is_none());
    }

    #[test]
    fn message_with_too_many_descriptors_or_bytes_is_refused_on_both_ends() {
        let (left, right) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let many = [file.as_fd(); MAX_FDS + 1];
        send(left.as_fd(), b"x", &many, true).unwrap_err();
        send(left.as_fd(), &vec![0; MAX_MESSAGE_BYTES + 1], &[], true).unwrap_err();
        send(left.as_fd(), b"", &[], true).unwrap_err();

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let flags = SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&left, &[IoSlice::new(b"x")], &mut control, flags).unwrap();
        let error = receive(right.as_fd(), true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
