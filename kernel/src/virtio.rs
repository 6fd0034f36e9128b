//! The NIC of a machine without Xen: virtio-net, polled, behind the same interface as a vif. It knows
//! virtio-drivers and where buffers are; not what frames are for.

mod pci;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use drayage_kernel::net::{Counters, Nic, Rearmed};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::VirtioPciError;

use pci::{Identity, WithoutEventIndex};

/// Buffers in each direction.
const BUFFERS: usize = 64;
/// A frame and the header in front of it.
const BUFFER_BYTES: usize = 2048;
/// The largest frame: no offloads are negotiated.
const FRAME_BYTES: usize = 1514;

type Buffer = Box<[u8; BUFFER_BYTES]>;

/// Why there is no NIC.
#[derive(Debug)]
pub(crate) enum NicError {
    /// The machine has none that we know.
    Missing,
    /// It is there and does not work.
    Pci(VirtioPciError),
    /// It is there and does not work.
    Device(virtio_drivers::Error),
}

impl fmt::Display for NicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => {
                f.write_str("there is no virtio NIC on PCI bus 0; try -nic user,model=virtio-net-pci")
            }
            Self::Pci(error) => write!(f, "the virtio NIC cannot be reached: {error}"),
            Self::Device(error) => write!(f, "the virtio NIC cannot be used: {error}"),
        }
    }
}

/// The NIC.
pub(crate) struct VirtioNic {
    device: Queues,
    /// Receive buffers; the one at `held` is ours, all others are the device's.
    rx: Vec<Buffer>,
    held: Option<usize>,
    tx: Sender,
    counters: Counters,
}

/// The queues. A buffer's token is the number of its only descriptor, so below `BUFFERS`.
struct Queues(VirtIONetRaw<Identity, WithoutEventIndex, BUFFERS>);

/// The sending side's buffers.
struct Sender {
    /// Buffers by the token that they are under way with, and the length sent.
    under_way: [Option<(Buffer, usize)>; BUFFERS],
    free: Vec<Buffer>,
    /// Where a frame goes for which there is no room.
    spill: Buffer,
    frames: u64,
    dropped: u64,
}

impl VirtioNic {
    /// Finds the NIC and brings it up.
    ///
    /// # Errors
    /// There is none, or it does not work.
    pub(crate) fn find() -> Result<Self, NicError> {
        let (mut root, function) = pci::find(DeviceType::Network).ok_or(NicError::Missing)?;
        let transport = PciTransport::new::<Identity, _>(&mut root, function).map_err(NicError::Pci)?;
        let raw = VirtIONetRaw::new(WithoutEventIndex(transport)).map_err(NicError::Device)?;
        let mut nic = Self {
            device: Queues(raw),
            rx: Vec::with_capacity(BUFFERS),
            held: None,
            tx: Sender {
                under_way: [const { None }; BUFFERS],
                free: (0..BUFFERS).map(|_| buffer()).collect(),
                spill: buffer(),
                frames: 0,
                dropped: 0,
            },
            counters: Counters::default(),
        };
        for at in 0..BUFFERS {
            nic.rx.push(buffer());
            nic.lend(at).map_err(NicError::Device)?;
        }
        Ok(nic)
    }

    /// Gives a receive buffer to the device.
    fn lend(&mut self, at: usize) -> virtio_drivers::Result<()> {
        // SAFETY: the buffer is on the heap and stays where it is; it is touched again only once the device has
        // given back the token, which `take` sees to.
        let token = unsafe { self.device.0.receive_begin(&mut self.rx[at][..]) }?;
        // A new queue hands out descriptors in order, and an old one the one that came back last.
        if usize::from(token) == at { Ok(()) } else { Err(virtio_drivers::Error::WrongToken) }
    }

    /// Takes the oldest frame from the device: where it lies.
    fn take(&mut self) -> Option<(usize, core::ops::Range<usize>)> {
        if let Some(at) = self.held.take()
            && self.lend(at).is_err()
        {
            self.counters.rx_dropped += 1;
        }
        let token = self.device.0.poll_receive()?;
        let at = usize::from(token);
        let buffer = self.rx.get_mut(at)?;
        // SAFETY: it is the buffer that was lent with this token; `lend` checked that they go together.
        let (header, len) = unsafe { self.device.0.receive_complete(token, &mut buffer[..]) }.ok()?;
        self.held = Some(at);
        Some((at, header..header + len.min(BUFFER_BYTES - header)))
    }
}

fn buffer() -> Buffer {
    Box::new([0; BUFFER_BYTES])
}

impl Sender {
    /// Takes back the buffers that have been sent.
    fn reclaim(&mut self, device: &mut Queues) {
        while let Some(token) = device.0.poll_transmit() {
            let slot = self.under_way.get_mut(usize::from(token)).and_then(Option::take);
            let Some((buffer, len)) = slot else { return };
            // SAFETY: it is the buffer, and the length, that was sent with this token.
            if unsafe { device.0.transmit_complete(token, &buffer[..len]) }.is_err() {
                self.dropped += 1;
            }
            self.free.push(buffer);
        }
    }

    fn send<R>(&mut self, device: &mut Queues, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.reclaim(device);
        let len = len.min(FRAME_BYTES);
        let Some(mut buffer) = self.free.pop() else {
            self.dropped += 1;
            return fill(&mut self.spill[..len]);
        };
        // The header is 12 bytes at most, and the buffer has room for it and the largest frame.
        let header = device.0.fill_buffer_header(&mut buffer[..]).unwrap_or_default();
        let result = fill(&mut buffer[header..header + len]);
        // SAFETY: the buffer is on the heap, moves into `under_way` with its token, and is touched again only
        // once the device has given that back.
        match unsafe { device.0.transmit_begin(&buffer[..header + len]) } {
            Ok(token) => {
                self.frames += 1;
                if let Some(slot) = self.under_way.get_mut(usize::from(token)) {
                    *slot = Some((buffer, header + len));
                }
            }
            Err(_) => {
                self.dropped += 1;
                self.free.push(buffer);
            }
        }
        result
    }
}

pub(crate) struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(crate) struct Sending<'a> {
    device: &'a mut Queues,
    sender: &'a mut Sender,
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.sender.send(self.device, len, f)
    }
}

impl Device for VirtioNic {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let (at, range) = self.take()?;
        self.counters.rx_frames += 1;
        let frame = self.rx[at].get(range).unwrap_or_default();
        Some((Received(frame), Sending { device: &mut self.device, sender: &mut self.tx }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.tx.reclaim(&mut self.device);
        (!self.tx.free.is_empty()).then_some(Sending { device: &mut self.device, sender: &mut self.tx })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES;
        capabilities
    }
}

impl Nic for VirtioNic {
    fn mac(&self) -> [u8; 6] {
        self.device.0.mac_address()
    }

    // The device is told about every frame as it is queued: it is QEMU's, on this machine for trying things out.
    fn flush(&mut self) {}

    // Nothing wakes this machine: its sleep is short, and then everything is looked at.
    fn rearm(&mut self) -> Rearmed {
        match self.device.0.poll_receive() {
            Some(_) => Rearmed::WorkWaiting,
            None => Rearmed::Armed,
        }
    }

    fn drain(&mut self) -> bool {
        self.tx.reclaim(&mut self.device);
        self.tx.under_way.iter().all(Option::is_none)
    }

    fn counters(&self) -> Counters {
        Counters { tx_frames: self.tx.frames, tx_dropped: self.tx.dropped, ..self.counters }
    }
}
