//! Where lines go: Xen's console ring, or the serial port of a machine without Xen. A full ring is waited for,
//! so that no line is lost while the other end lives; one that is not emptied for seconds is given up until it
//! has room again, and says then how much was lost. Not for the data path.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use drayage_entry::Channel;
use drayage_kernel::console_ring::{is_drained, room, slot};
use spin::Mutex;

use crate::events::{self, Port};
use crate::{hypercall, serial, shared_info, time};

/// How long a ring without progress is waited for.
const STALL_NS: u64 = 5_000_000_000;

/// Prints a line to the console.
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}
pub(crate) use println;

/// `struct xencons_interface` (public/io/console.h).
#[repr(C)]
struct Ring {
    input: [AtomicU8; 1024],
    output: [AtomicU8; 2048],
    input_consumer: AtomicU32,
    input_producer: AtomicU32,
    output_consumer: AtomicU32,
    output_producer: AtomicU32,
}

const _: () = assert!(core::mem::offset_of!(Ring, output_producer) == 3084);

/// Where the output goes.
enum Output {
    /// Nowhere yet.
    Nowhere,
    /// The serial port.
    Serial,
    /// Xen's ring.
    Xen { ring: &'static Ring, port: Port, lost_bytes: u64 },
}

static CONSOLE: Mutex<Output> = Mutex::new(Output::Nowhere);

/// Sends output to the serial port.
pub(crate) fn start_serial() {
    serial::start();
    *CONSOLE.lock() = Output::Serial;
}

/// Sends output to Xen's ring.
///
/// # Safety
/// The channel must be the console's, as the boot information has it, with its page mapped for good.
pub(crate) unsafe fn start_xen(channel: Channel) {
    let page = core::ptr::with_exposed_provenance::<Ring>(channel.page as usize);
    // SAFETY: our caller vouches for the page; all fields are atomics, so the other end may write at any time.
    let ring = unsafe { &*page };
    *CONSOLE.lock() = Output::Xen { ring, port: Port(channel.port), lost_bytes: 0 };
}

/// The console, for whoever wants something to write to.
pub(crate) struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        CONSOLE.lock().write_str(text)
    }
}

/// Prints to the console; `println!` is the way to call it.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    // The console itself never fails; a Display that does is not the console's business.
    let _ = CONSOLE.lock().write_fmt(text);
}

/// Prints from a place that may have interrupted a print: a panic or an exception.
pub(crate) fn print_emergency(text: fmt::Arguments<'_>) {
    // SAFETY: one processor, no interrupts: whoever holds the lock was interrupted by what is being reported,
    // and never runs again.
    unsafe { CONSOLE.force_unlock() };
    print(text);
}

/// Waits until the other end has taken all output, or shows no sign of doing so.
pub(crate) fn drain() {
    if let Output::Xen { ring, port, .. } = &*CONSOLE.lock() {
        let is_done = || {
            let producer = ring.output_producer.load(Ordering::Relaxed);
            is_drained(producer, ring.output_consumer.load(Ordering::Acquire))
        };
        wait(*port, is_done);
    }
}

/// Waits for a condition that the console's other end brings about; returns whether it came.
fn wait(port: Port, is_done: impl Fn() -> bool) -> bool {
    if shared_info::get().is_none() {
        // Early in the boot there is no clock and no way to clear the port's pending bit.
        return (0..100_000).any(|_| {
            hypercall::yield_now();
            is_done()
        });
    }
    let give_up_ns = time::now_ns() + STALL_NS;
    loop {
        events::take_pending(port);
        if is_done() {
            return true;
        }
        let now_ns = time::now_ns();
        if now_ns >= give_up_ns {
            return false;
        }
        hypercall::poll(&[port.0], now_ns + 100_000_000);
    }
}

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (i, line) in text.split('\n').enumerate() {
            if i > 0 {
                self.write_bytes(b"\r\n");
            }
            self.write_bytes(line.as_bytes());
        }
        Ok(())
    }
}

impl Output {
    fn write_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Nowhere => {}
            Self::Serial => serial::write(bytes),
            Self::Xen { ring, port, lost_bytes } => {
                if *lost_bytes > 0 && ring.room() >= 128 {
                    let mut note = Note::default();
                    let _ = write!(note, "\r\n[console: {lost_bytes} bytes lost]\r\n");
                    ring.put(&note.bytes[..note.len]);
                    *lost_bytes = 0;
                }
                let mut rest = bytes;
                while !rest.is_empty() {
                    let taken = if *lost_bytes > 0 { 0 } else { ring.put(rest) };
                    rest = &rest[taken..];
                    events::notify(*port);
                    if !rest.is_empty() && (*lost_bytes > 0 || !wait(*port, || ring.room() > 0)) {
                        *lost_bytes += rest.len() as u64;
                        return;
                    }
                }
            }
        }
    }
}

impl Ring {
    fn room(&self) -> u32 {
        let consumer = self.output_consumer.load(Ordering::Acquire);
        room(self.output_producer.load(Ordering::Relaxed), consumer)
    }

    /// Writes as many bytes as there is room for, and returns how many.
    fn put(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room() as usize);
        let mut producer = self.output_producer.load(Ordering::Relaxed);
        for byte in &bytes[..count] {
            self.output[slot(producer)].store(*byte, Ordering::Relaxed);
            producer = producer.wrapping_add(1);
        }
        self.output_producer.store(producer, Ordering::Release);
        count
    }
}

/// A short text on the stack.
struct Note {
    bytes: [u8; 64],
    len: usize,
}

impl Default for Note {
    fn default() -> Self {
        Self { bytes: [0; 64], len: 0 }
    }
}

impl Write for Note {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
