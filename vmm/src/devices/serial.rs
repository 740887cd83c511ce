//! The serial port: a 16550A for kernel panics and debugging.
//!
//! The guest sees COM1 without a terminal behind it: output goes to a file, input never comes. A
//! quiet guest does not touch it, because container output travels over vsock.
//!
//! # Threads
//! vCPU threads write registers and, at the end of a line, the file. So the file must be one that
//! never blocks for long: a regular file or a memfd, not a pipe that somebody forgets to read.
//!
//! # Trust
//! The guest may print for ever. At most `limit` bytes reach the file, then a closing line, then
//! nothing (peers had this wrong: CVE-2020-27174). Nothing is kept in memory but one line.
//!
//! # Snapshot
//! Saved: [`SerialSaved`], which is the registers and the line that has no end yet. Not saved: the file, the
//! budget. An interrupt that the guest has not seen is raised again, or its driver waits for ever (firecracker
//! issue 5764).
//!
//! # Not here
//! Input, modem control, other UARTs. Registers are `vm-superio`'s.

use std::fs::File;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;
use crate::snapshot::bounded;

/// How many ports the device takes.
pub const LEN: u64 = 8;
/// Enough of a console for a panic with its trace and the messages before it.
pub const CONSOLE_LIMIT: u64 = 256 * 1024;

/// A line is written when it ends or has this many bytes: a system call per byte would make a panic
/// trace take longer than the boot.
const LINE_BYTES: usize = 256;
/// FIFO_SIZE of `vm-superio`. Input comes only from a guest that puts the port into loop-back mode.
const FIFO_BYTES: usize = 64;
/// Bits of interrupt-enable and interrupt-identification register: data received, transmitter empty.
const IER_RECEIVED: u8 = 1;
const IER_EMPTY: u8 = 1 << 1;
const IIR_EMPTY: u8 = 1 << 1;
const IIR_RECEIVED: u8 = 1 << 2;
const CUT: &[u8] = b"\n[console limit reached, the rest is dropped]\n";

/// A serial port without its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialSaved {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    #[serde(deserialize_with = "bounded::<_, _, FIFO_BYTES>")]
    input: Vec<u8>,
    /// What the guest has printed of a line.
    #[serde(deserialize_with = "bounded::<_, _, LINE_BYTES>")]
    line: Vec<u8>,
}

impl SerialSaved {
    /// For people.
    pub fn summary(&self) -> String {
        format!(
            "interrupts enabled {:#x}, identified {:#x}, {} bytes of an unfinished line",
            self.interrupt_enable,
            self.interrupt_identification,
            self.line.len()
        )
    }

    fn registers(&self) -> SerialState {
        SerialState {
            baud_divisor_low: self.baud_divisor[0],
            baud_divisor_high: self.baud_divisor[1],
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.input.clone(),
        }
    }
}

/// Interrupts the guest when the transmitter is empty, if there is a line for that.
struct Irq(Option<EventFd>);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |event| event.write(1))
    }
}

/// Collects lines and stops at the limit.
struct Console<W: Write> {
    out: W,
    left: u64,
    line: Vec<u8>,
}

impl<W: Write> Console<W> {
    fn new(out: W, limit: u64) -> Self {
        Self {
            out,
            left: limit,
            line: Vec::with_capacity(LINE_BYTES),
        }
    }

    fn put(&mut self, byte: u8) {
        if self.left == 0 {
            return;
        }
        self.line.push(byte);
        self.left -= 1;
        if self.left == 0 {
            self.line.extend_from_slice(CUT);
        }
        if byte == b'\n' || self.line.len() >= LINE_BYTES || self.left == 0 {
            self.write_line();
        }
    }

    /// A full disk loses console text; it must not stop the guest.
    fn write_line(&mut self) {
        let _ = self.out.write_all(&self.line);
        self.line.clear();
    }
}

impl<W: Write> Write for Console<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|&byte| self.put(byte));
        Ok(bytes.len())
    }

    /// The UART flushes after every byte; lines decide here when to write.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Drop for Console<W> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.write_line();
        }
    }
}

/// COM1, writing to a file.
pub struct Serial<W: Write = File> {
    uart: Uart<Irq, NoEvents, Console<W>>,
}

impl<W: Write> Serial<W> {
    /// Lets at most `limit` bytes of guest output reach `console`.
    pub fn new(console: W, limit: u64, irq: Option<EventFd>) -> Self {
        Self {
            uart: Uart::new(Irq(irq), Console::new(console, limit)),
        }
    }

    /// Goes on where a saved port stopped, with a budget of its own. `None` if no port can have that state.
    pub fn restore(
        saved: &SerialSaved,
        console: W,
        limit: u64,
        irq: Option<EventFd>,
    ) -> Option<Self> {
        let mut console = Console::new(console, limit);
        saved.line.iter().for_each(|&byte| console.put(byte));
        Uart::from_state(&saved.registers(), Irq(irq), NoEvents, console)
            .ok()
            .map(|uart| Self { uart })
    }

    /// The registers and the unfinished line. No vCPU runs.
    pub fn save(&self) -> SerialSaved {
        let state = self.uart.state();
        SerialSaved {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
            line: self.uart.writer().line.clone(),
        }
    }

    /// Whether the guest was interrupted and has not looked why.
    pub fn interrupt_pending(&self) -> bool {
        let state = self.uart.state();
        let pending = |enable, identified| {
            state.interrupt_enable & enable != 0 && state.interrupt_identification & identified != 0
        };
        pending(IER_EMPTY, IIR_EMPTY) || pending(IER_RECEIVED, IIR_RECEIVED)
    }
}

impl<W: Write + Send> BusDevice for Serial<W> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are one byte wide; wider reads get the rest as zeros.
        data.fill(0);
        if let (Some(first), Ok(offset)) = (data.first_mut(), u8::try_from(offset)) {
            *first = self.uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (&[value], Ok(offset)) = (data, u8::try_from(offset)) {
            // Only the interrupt can fail, when its counter is full: then it is pending already.
            let _ = self.uart.write(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const DATA: u64 = 0;
    const LINE_STATUS: u64 = 5;

    /// Counts writes and keeps the text.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
        }
        fn writes(&self) -> usize {
            self.0.lock().unwrap().1
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.lock().unwrap();
            inner.0.extend_from_slice(bytes);
            inner.1 += 1;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn print(serial: &mut Serial<Sink>, text: &[u8]) {
        text.iter().for_each(|&byte| serial.write(DATA, &[byte]));
    }

    #[test]
    fn line_is_written_at_once_when_it_ends() {
        let sink = Sink::default();
        let mut serial = Serial::new(sink.clone(), 1000, None);
        print(&mut serial, b"hello\nwor");
        assert_eq!(sink.text(), "hello\n");
        assert_eq!(sink.writes(), 1);
    }

    #[test]
    fn unfinished_line_is_written_when_the_device_goes() {
        let sink = Sink::default();
        let mut serial = Serial::new(sink.clone(), 1000, None);
        print(&mut serial, b"panic: no newline");
        drop(serial);
        assert_eq!(sink.text(), "panic: no newline");
    }

    #[test]
    fn cve_2020_27174_guest_that_prints_for_ever_writes_no_more_than_the_limit() {
        let sink = Sink::default();
        let mut serial = Serial::new(sink.clone(), 1000, None);
        for _ in 0..10_000 {
            print(&mut serial, b"y\n");
        }
        drop(serial);
        assert_eq!(sink.text().len(), 1000 + CUT.len());
        assert!(sink.text().ends_with("dropped]\n"));
    }

    #[test]
    fn line_without_end_is_not_kept_in_memory() {
        let sink = Sink::default();
        let mut serial = Serial::new(sink.clone(), 100_000, None);
        print(&mut serial, &[b'x'; 10_000]);
        assert!(sink.text().len() >= 10_000 - LINE_BYTES);
    }

    #[test]
    fn transmitter_reads_as_ready_and_odd_widths_do_no_harm() {
        let sink = Sink::default();
        let mut serial = Serial::new(sink.clone(), 1000, None);
        let mut status = [0; 1];
        serial.read(LINE_STATUS, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
        let mut wide = [0xaa; 4];
        serial.read(LINE_STATUS, &mut wide);
        assert_eq!(wide[1..], [0; 3]);
        serial.read(LINE_STATUS, &mut []);
        serial.write(DATA, b"ab");
        serial.write(DATA, &[]);
        drop(serial);
        assert_eq!(sink.text(), "");
    }

    #[test]
    fn firecracker_5764_restored_port_finishes_the_line_and_keeps_registers_and_interrupt() {
        let (first, second) = (Sink::default(), Sink::default());
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut serial = Serial::new(first.clone(), 1000, Some(event));
        serial.write(1, &[IER_EMPTY]);
        print(&mut serial, b"done\nhalf of");
        let saved = serial.save();
        assert!(serial.interrupt_pending());
        let mut serial = Serial::restore(&saved, second.clone(), 1000, None).unwrap();
        assert_eq!(serial.save(), saved);
        assert!(serial.interrupt_pending());
        print(&mut serial, b" a line\n");
        assert_eq!(
            (first.text(), second.text()),
            ("done\n".into(), "half of a line\n".into())
        );
        // The guest looks why it was interrupted.
        serial.read(2, &mut [0]);
        assert!(!serial.interrupt_pending());
    }

    #[test]
    fn empty_transmitter_interrupts_once_it_is_asked_to() {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut serial = Serial::new(Sink::default(), 1000, Some(event.try_clone().unwrap()));
        serial.write(1, &[0b10]);
        assert_eq!(event.read().unwrap(), 1);
    }
}
