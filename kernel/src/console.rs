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

/// Output and the line that is being written: one notification a line, not one for each piece of it.
struct Writer {
    output: Output,
    line: Line,
}

static CONSOLE: Mutex<Writer> = Mutex::new(Writer { output: Output::Nowhere, line: Line::new() });

/// Sends output to the serial port.
pub(crate) fn start_serial() {
    serial::start();
    CONSOLE.lock().output = Output::Serial;
}

/// Sends output to Xen's ring.
///
/// # Safety
/// The channel must be the console's, as the boot information has it, with its page mapped for good.
pub(crate) unsafe fn start_xen(channel: Channel) {
    let page = core::ptr::with_exposed_provenance::<Ring>(channel.page as usize);
    // SAFETY: our caller vouches for the page; all fields are atomics, so the other end may write at any time.
    let ring = unsafe { &*page };
    CONSOLE.lock().output = Output::Xen { ring, port: Port(channel.port), lost_bytes: 0 };
}

/// The console, for whoever wants something to write to.
pub(crate) struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        CONSOLE.lock().write_str(text)
    }
}

/// Prints to the console; `println!` is the way to call it.
#[inline(never)]
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
    let mut writer = CONSOLE.lock();
    writer.flush();
    if let Output::Xen { ring, port, .. } = &writer.output {
        let is_done = || {
            let producer = ring.output_producer.load(Ordering::Relaxed);
            is_drained(producer, ring.output_consumer.load(Ordering::Acquire))
        };
        wait(*port, &is_done);
    }
}

/// Waits for a condition that the console's other end brings about; returns whether it came.
#[inline(never)]
fn wait(port: Port, is_done: &dyn Fn() -> bool) -> bool {
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
        hypercall::poll([port.0].into_iter(), now_ns + 100_000_000);
    }
}

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (i, part) in text.split('\n').enumerate() {
            if i > 0 {
                self.put(b"\r\n");
                self.flush();
            }
            self.put(part.as_bytes());
        }
        Ok(())
    }
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(Line::BYTES) {
            if !self.line.put(piece) {
                self.flush();
                self.line.put(piece);
            }
        }
    }

    #[inline(never)]
    fn flush(&mut self) {
        self.output.write_bytes(self.line.take());
    }
}

impl Output {
    fn write_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Nowhere => {}
            Self::Serial => serial::write(bytes),
            Self::Xen { ring, port, lost_bytes } => {
                if *lost_bytes > 0 && ring.room() >= 128 {
                    let mut note = Line::new();
                    let _ = write!(note, "\r\n[console: {lost_bytes} bytes lost]\r\n");
                    ring.put(note.take());
                    *lost_bytes = 0;
                }
                let mut rest = bytes;
                while !rest.is_empty() {
                    let taken = if *lost_bytes > 0 { 0 } else { ring.put(rest) };
                    rest = &rest[taken..];
                    events::notify(*port);
                    if !rest.is_empty() && (*lost_bytes > 0 || !wait(*port, &|| ring.room() > 0)) {
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

/// A short text in place.
struct Line {
    bytes: [u8; Self::BYTES],
    len: usize,
}

impl Line {
    const BYTES: usize = 256;

    const fn new() -> Self {
        Self { bytes: [0; Self::BYTES], len: 0 }
    }

    /// Adds bytes, all or none; returns whether there was room.
    fn put(&mut self, more: &[u8]) -> bool {
        let end = self.len + more.len();
        let Some(room) = self.bytes.get_mut(self.len..end) else { return false };
        room.copy_from_slice(more);
        self.len = end;
        true
    }

    /// Returns what was added, and starts anew.
    fn take(&mut self) -> &[u8] {
        &self.bytes[..core::mem::take(&mut self.len)]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.put(text.as_bytes()) { Ok(()) } else { Err(fmt::Error) }
    }
}
