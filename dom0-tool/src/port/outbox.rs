//! Frames on their way out of a socket: kept until the end of a pass, and sent with one system call.
//!
//! It knows a socket that takes one frame a message, with or without a header in front.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{Flushed, MAX_FRAME_BYTES, Sent};
use crate::scattered::{MOST_PARTS, Scattered};

/// Frames that may wait, and more than a scattered one has parts.
const FRAMES: usize = 128;
const _: () = assert!(FRAMES >= MOST_PARTS + 2);
/// Bytes that may wait.
const BYTES: usize = 4 * MAX_FRAME_BYTES;

/// Frames that wait.
#[derive(Debug)]
pub(super) struct Outbox {
    memory: Box<[u8]>,
    used: usize,
    header_bytes: usize,
    /// Where each frame, with its header, ends.
    ends: Vec<usize>,
    /// What came of those that were sent before the end of the pass.
    early: Flushed,
    vectors: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
}

// SAFETY: `vectors` and `messages` are filled and read within one call of `flush`; what their pointers were
// between calls is never looked at.
unsafe impl Send for Outbox {}

impl Outbox {
    /// Makes an empty one for frames with headers of so many bytes.
    pub(super) fn new(header_bytes: usize) -> Self {
        Self {
            memory: vec![0; BYTES].into_boxed_slice(),
            used: 0,
            header_bytes,
            ends: Vec::with_capacity(FRAMES),
            early: Flushed::default(),
            vectors: Vec::with_capacity(FRAMES),
            messages: Vec::with_capacity(FRAMES),
        }
    }

    /// Keeps a frame behind a header that `fill` writes.
    pub(super) fn push(&mut self, socket: &OwnedFd, frame: &[u8], fill: impl FnOnce(&mut [u8])) -> Sent {
        let len = self.header_bytes + frame.len();
        if len > self.memory.len() {
            return Sent::No;
        }
        if self.ends.len() == FRAMES || self.memory.len() - self.used < len {
            self.send_early(socket);
        }
        let (header, rest) = self.memory[self.used..].split_at_mut(self.header_bytes);
        fill(header);
        rest[..frame.len()].copy_from_slice(frame);
        self.used += len;
        self.ends.push(self.used);
        Sent::Queued
    }

    /// Sends a frame at once, behind all that waits, and a header in front of it; the system reads what is not here.
    ///
    /// # Errors
    /// What the system said. The frame was then not sent, but what waited was.
    pub(super) fn send_scattered(
        &mut self,
        socket: &OwnedFd,
        header: &[u8],
        frame: &Scattered<'_>,
    ) -> io::Result<()> {
        self.send_early(socket);
        self.vectors.clear();
        let vector = |start: *const u8, iov_len| libc::iovec { iov_base: start.cast_mut().cast(), iov_len };
        let head = frame.head();
        self.vectors.push(vector(header.as_ptr(), header.len()));
        self.vectors.push(vector(head.as_ptr(), head.len()));
        self.vectors.extend(frame.rest().map(|span| vector(span.start().as_ptr(), span.len())));
        // SAFETY: the structure is integers and pointers, of which all zeroes are values.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vectors.as_mut_ptr();
        message.msg_iovlen = self.vectors.len();
        let message = &mut libc::mmsghdr { msg_hdr: message, msg_len: 0 };
        // SAFETY: the message names the vectors, and these a header and bytes that are borrowed until this ends, and spans, of
        // which as many bytes can be read while they live. Sending reads all of them, and writes only how many it sent.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), message, 1, libc::MSG_DONTWAIT) };
        if sent == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends what waits, before the end of the pass.
    fn send_early(&mut self, socket: &OwnedFd) {
        if self.ends.is_empty() {
            return;
        }
        let now = self.send_all(socket);
        self.early.sent += now.sent;
        self.early.sent_bytes += now.sent_bytes;
        self.early.drops += now.drops;
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, socket: &OwnedFd) -> Flushed {
        if self.ends.is_empty() {
            return std::mem::take(&mut self.early);
        }
        let early = std::mem::take(&mut self.early);
        let now = self.send_all(socket);
        Flushed {
            sent: early.sent + now.sent,
            sent_bytes: early.sent_bytes + now.sent_bytes,
            drops: early.drops + now.drops,
        }
    }

    fn send_all(&mut self, socket: &OwnedFd) -> Flushed {
        self.vectors.clear();
        self.messages.clear();
        let base = self.memory.as_mut_ptr();
        let mut start = 0;
        for end in &self.ends {
            // SAFETY: every start lies in the memory: each frame was written there.
            let iov_base = unsafe { base.add(start) }.cast();
            self.vectors.push(libc::iovec { iov_base, iov_len: end - start });
            start = *end;
        }
        for vector in &mut self.vectors {
            // SAFETY: the structure is integers and pointers, of which all zeroes are values.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            self.messages.push(message);
        }
        let mut done = Flushed::default();
        let mut at = 0;
        while at < self.messages.len() {
            let left = &mut self.messages[at..];
            let count = left.len() as libc::c_uint;
            // SAFETY: every message names one vector and every vector one frame, all of which are live and are
            // not touched meanwhile; sending reads the frames.
            let sent =
                unsafe { libc::sendmmsg(socket.as_raw_fd(), left.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
            if let Ok(sent) = usize::try_from(sent) {
                done.sent += sent as u64;
                let frames = self.vectors[at..at + sent].iter();
                done.sent_bytes += frames.map(|v| (v.iov_len - self.header_bytes) as u64).sum::<u64>();
                at += sent;
            } else if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                // The first of them was refused; the others are another matter.
                done.drops += 1;
                at += 1;
            }
        }
        self.ends.clear();
        self.used = 0;
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

    /// A socket that keeps messages apart stands for the network.
    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap()
    }

    fn take(from: &OwnedFd) -> Option<Vec<u8>> {
        let mut bytes = vec![0; MAX_FRAME_BYTES];
        let (_, len) = recv(from, &mut bytes, RecvFlags::empty()).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    #[test]
    fn frames_wait_for_the_flush_and_keep_their_order() {
        let (near, far) = pair();
        let mut outbox = Outbox::new(2);
        for n in 0..5u8 {
            assert_eq!(
                outbox.push(&near, &[n; 60], |header| header.copy_from_slice(&[0xab, n])),
                Sent::Queued
            );
        }
        assert_eq!(take(&far), None, "nothing before the flush");
        assert_eq!(outbox.flush(&near), Flushed { sent: 5, sent_bytes: 300, drops: 0 });
        for n in 0..5u8 {
            let message = take(&far).unwrap();
            assert_eq!((&message[..2], &message[2..]), (&[0xab, n][..], &[n; 60][..]));
        }
        assert_eq!(outbox.flush(&near), Flushed::default(), "once");
    }

    #[test]
    fn what_the_socket_does_not_take_is_counted() {
        let (near, far) = pair();
        let mut outbox = Outbox::new(0);
        let mut queued = 0;
        let mut done = Flushed::default();
        for _ in 0..3 {
            for _ in 0..FRAMES {
                assert_eq!(outbox.push(&near, &[7; 1514], |_| ()), Sent::Queued);
                queued += 1;
            }
            let flushed = outbox.flush(&near);
            done.sent += flushed.sent;
            done.drops += flushed.drops;
        }
        assert!(done.drops > 0 && done.sent > 0, "{done:?}");
        assert_eq!(done.sent + done.drops, queued);
        let arrived = std::iter::from_fn(|| take(&far)).count() as u64;
        assert_eq!(arrived, done.sent);
    }

    #[test]
    fn a_scattered_frame_goes_at_once_and_behind_what_waits() {
        let (near, far) = pair();
        let mut outbox = Outbox::new(2);
        let mut pages = vec![7u8; 9000];
        pages[8999] = 9;
        let start = std::ptr::NonNull::from(pages.as_mut_slice()).cast();
        // SAFETY: so many bytes are there, and nobody refers to them until they are given back below.
        let shared = unsafe { drayage_shared::SharedBytes::new(start, 9000) };
        let mut rest = [None; MOST_PARTS];
        rest[0] = shared.span(0, 4096).ok();
        rest[1] = shared.span(4096, 4904).ok();
        let frame = [[5u8; 144].as_slice(), &[0xee; 9000]].concat();
        let frame = Scattered { frame: &frame, known: 144, rest };
        assert_eq!(outbox.push(&near, &[1; 60], |header| header.fill(0xab)), Sent::Queued);
        outbox.send_scattered(&near, &[0xcd; 2], &frame).unwrap();
        assert_eq!(take(&far).unwrap(), [[0xab; 2].as_slice(), &[1; 60]].concat());
        let came = take(&far).unwrap();
        assert_eq!((&came[..2], &came[2..146], came.len()), (&[0xcd; 2][..], &[5; 144][..], 9146));
        assert!(came[146..9145].iter().all(|byte| *byte == 7) && came[9145] == 9);
        assert_eq!(outbox.flush(&near), Flushed { sent: 1, sent_bytes: 60, drops: 0 }, "what waited");
        drop(far);
        assert!(outbox.send_scattered(&near, &[0xcd; 2], &frame).is_err());
        drop(pages);
    }

    #[test]
    fn more_than_there_is_room_for_is_sent_early() {
        let (near, far) = pair();
        let mut outbox = Outbox::new(0);
        for n in 0..FRAMES + 3 {
            assert_eq!(outbox.push(&near, &[n as u8; 8], |_| ()), Sent::Queued);
        }
        assert!(take(&far).is_some());
        let flushed = outbox.flush(&near);
        assert_eq!(flushed.sent + flushed.drops, FRAMES as u64 + 3);
    }
}
