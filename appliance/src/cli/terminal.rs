//! The operator's terminal while a command in a session has it.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use wire::exec::WindowSize;

/// How the terminal was before, while it is another way. Static, so that it is put right even after a panic, which
/// runs no destructor in the shipped binary.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static ON_PANIC: Once = Once::new();

/// The terminal passes every key on as it is. Dropping this puts it back.
pub struct RawMode(());

impl RawMode {
    pub fn enter() -> io::Result<Self> {
        ON_PANIC.call_once(|| {
            let others = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                others(panic);
            }));
        });
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let this = Self(());
        tcsetattr(stdin, OptionalActions::Drain, &raw)?;
        Ok(this)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // It fails only when the terminal is gone.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &before);
    }
}

/// The size of the window, of a usual one if nobody knows.
pub fn size() -> WindowSize {
    let known = [
        tcgetwinsize(rustix::stdio::stdin()),
        tcgetwinsize(rustix::stdio::stdout()),
    ];
    let known = known
        .into_iter()
        .flatten()
        .find(|size| size.ws_row > 0 && size.ws_col > 0);
    known.map_or(
        WindowSize {
            rows: 24,
            columns: 80,
        },
        |size| WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
    )
}
