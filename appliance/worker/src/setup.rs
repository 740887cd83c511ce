//! The first message to a child of the warden.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::channel;
use crate::exit::{Exit, Failure};

/// The setup and descriptors that the warden sends to a new child; `None` when it is gone already.
/// `name` is what `ps` and `top` show, since all children are started as `/proc/self/exe`.
pub fn first_message<S: serde::de::DeserializeOwned>(
    name: &CStr,
) -> Result<Option<(OwnedFd, S, Vec<OwnedFd>)>, Failure> {
    // Only for people to look at.
    let _ = rustix::thread::set_name(name);
    let by_hand = |error: &dyn std::error::Error| {
        let line = format!("This command is started by `cabana serve`, not by hand: {error}");
        Failure::new(Exit::Usage, line)
    };
    let socket = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| by_hand(&error))?;
    let message = channel::receive(socket.as_fd(), false).map_err(|error| by_hand(&error))?;
    let Some(message) = message else {
        return Ok(None);
    };
    let setup = serde_json::from_slice(&message.bytes).map_err(|error| by_hand(&error))?;
    Ok(Some((socket, setup, message.fds)))
}
