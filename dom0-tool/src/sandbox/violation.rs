//! Names a refused system call in the log, with its first argument, and lets it fail with `EPERM`.
//!
//! The filter raises SIGSYS in the thread that made the call; what is done about it happens in the signal's handler,
//! and so allocates nothing and takes no lock. Where the C library has all signals blocked, as while it starts another
//! process, the kernel ends this one: that is not mended by going on.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is printed before the number of a call and its first argument.
pub const MARK: &str = "drayage: the sandbox refused system call ";

/// Calls that were named.
static NAMED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Installs the handler.
pub(super) fn report() -> io::Result<()> {
    // SAFETY: zeroes are a `struct sigaction` with no flags, an empty mask, and the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_refused as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: the action is live, and its handler has the signature that SA_SIGINFO asks for and does only what a
    // signal's handler may do.
    let rc = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn on_refused(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's `ucontext_t`, which is this handler's
    // alone until it returns.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    // The kernel puts the call's number back where the thread had it (`syscall_rollback`), and takes the result of
    // the call from there.
    let first = registers[libc::REG_RDI as usize] as u64;
    let result = &mut registers[libc::REG_RAX as usize];
    let number = *result as u64;
    *result = -i64::from(libc::EPERM);
    let bit = 1 << (number % 64);
    let named = NAMED[(number / 64 % 8) as usize].fetch_or(bit, Ordering::Relaxed) & bit != 0;
    if !named {
        let mut line = Line { bytes: [0; 180], used: 0 };
        line.push(MARK.as_bytes());
        line.number(number);
        line.push(b" of ");
        line.number(first);
        line.push(b": please report this; until it is mended, --no-sandbox runs without\n");
        // SAFETY: the buffer is live and so long. A log that cannot be written to changes nothing.
        let _ = unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.used) };
    }
}

/// A line in the making.
struct Line {
    bytes: [u8; 180],
    used: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (slot, byte) in self.bytes[self.used..].iter_mut().zip(text) {
            *slot = *byte;
            self.used += 1;
        }
    }

    fn number(&mut self, number: u64) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.push(&[b'0' + (number % 10) as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_without_allocating() {
        let mut line = Line { bytes: [0; 180], used: 0 };
        line.push(b"call ");
        line.number(0);
        line.push(b" ");
        line.number(u64::MAX);
        assert_eq!(&line.bytes[..line.used], b"call 0 18446744073709551615");
        line.push(&[b'x'; 220]);
        assert_eq!(line.used, 180);
    }
}
