//! A sender of UDP frames straight onto a device: `sendmmsg` on an AF_PACKET socket that blocks on
//! its socket buffer, so that a slow device slows the sender and nothing spins. Knows nothing of
//! who receives.

use std::io;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};

use crate::frame::{MAX_FRAME, MIN_FRAME, Template, UdpFlow};
use crate::report::SendReport;
use crate::sys;

/// How long the sender steps back when the device's own queue is full.
const QUEUE_FULL_PAUSE_NS: u64 = 100_000;

/// What to send, and how fast.
#[derive(Debug, Clone)]
pub struct SendOptions {
    /// Device to send out of.
    pub device: String,
    /// Addresses.
    pub flow: UdpFlow,
    /// Size of one frame without its FCS.
    pub frame_bytes: usize,
    /// Number of frames.
    pub count: u64,
    /// Frames a second; as fast as the socket buffer allows when absent.
    pub rate: Option<u64>,
    /// Frames handed over in one system call.
    pub batch: usize,
    /// Socket buffer to block on; the system's default when absent.
    pub buffer_bytes: Option<usize>,
    /// When the first frame leaves, by CLOCK_MONOTONIC, so that several senders begin together; at once when absent.
    pub at_ns: Option<u64>,
}

/// Sends a stream of numbered frames.
pub fn send(options: &SendOptions) -> Result<SendReport> {
    if !(MIN_FRAME..=MAX_FRAME).contains(&options.frame_bytes) {
        bail!("frame of {} bytes: {MIN_FRAME} to {MAX_FRAME} are possible", options.frame_bytes);
    }
    if options.batch == 0 || options.rate == Some(0) {
        bail!("a batch and a rate must be above 0");
    }
    let socket = open(options)?;
    let template = Template::new(&options.flow, options.frame_bytes);
    let mut frames = vec![template; options.batch];
    let mut queue_full = 0;
    let mut sent = 0;
    if let Some(at_ns) = options.at_ns {
        sys::sleep_until(at_ns);
    }
    let started_ns = sys::monotonic_ns();
    while sent < options.count {
        if let Some(rate) = options.rate {
            sys::sleep_until(started_ns + (u128::from(sent) * 1_000_000_000 / u128::from(rate)) as u64);
        }
        let batch = (options.count - sent).min(options.batch as u64) as usize;
        for (at, frame) in frames[..batch].iter_mut().enumerate() {
            frame.set_sequence(sent + at as u64);
        }
        let mut done = 0;
        while done < batch {
            match sys::send_many(&socket, &frames[done..batch]) {
                Ok(taken) => done += taken,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    queue_full += 1;
                    sys::sleep_until(sys::monotonic_ns() + QUEUE_FULL_PAUSE_NS);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("sending out of {:?}", options.device));
                }
            }
        }
        sent += batch as u64;
    }
    let elapsed_ns = sys::monotonic_ns() - started_ns;
    Ok(SendReport { sent, elapsed_ns, queue_full, frame_bytes: options.frame_bytes })
}

fn open(options: &SendOptions) -> Result<Socket> {
    let index = sys::device_index(&options.device)?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("opening an AF_PACKET socket")?;
    if let Some(bytes) = options.buffer_bytes {
        sys::force_send_buffer(&socket, bytes).with_context(|| format!("send buffer of {bytes} bytes"))?;
    }
    socket
        .bind(&sys::packet_address(index))
        .with_context(|| format!("binding a socket to {:?}", options.device))?;
    Ok(socket)
}
