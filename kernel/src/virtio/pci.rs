//! How virtio-drivers reaches a PC's devices: configuration space through the two ports that every PC has,
//! memory that is at its physical address, registers through the window. It knows no kind of device.

use core::ptr::NonNull;

use drayage_entry::PAGE_BYTES;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use x86_64::instructions::port::Port;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::pages::Pages;
use crate::memory::window;

/// PCI configuration mechanism 1: an address port and a data port (PCI Local Bus 3.0, 3.2.2.3.2).
pub(super) struct ConfigPorts;

impl ConfigPorts {
    fn select(function: DeviceFunction, register: u8) {
        let address = 1 << 31
            | u32::from(function.bus) << 16
            | u32::from(function.device) << 11
            | u32::from(function.function) << 8
            | u32::from(register & 0xfc);
        // SAFETY: this machine has no Xen, so it is a PC and we are in ring 0; nobody else selects registers.
        unsafe { Port::new(0xcf8).write(address) };
    }
}

impl ConfigurationAccess for ConfigPorts {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        Self::select(function, register);
        // SAFETY: as in `select`; reading a register that is not there gives all ones.
        unsafe { Port::new(0xcfc).read() }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        Self::select(function, register);
        // SAFETY: as in `select`; virtio-drivers writes command and address registers only.
        unsafe { Port::new(0xcfc).write(data) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// Finds the first virtio device of a kind on bus 0, where QEMU puts what its command line names, and switches
/// it on.
pub(super) fn find(kind: DeviceType) -> Option<(PciRoot<ConfigPorts>, DeviceFunction)> {
    let mut root = PciRoot::new(ConfigPorts);
    let (function, _) = root
        .enumerate_bus(0)
        .find(|(_, info)| virtio_drivers::transport::pci::virtio_device_type(info) == Some(kind))?;
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    Some((root, function))
}

/// Memory as the devices of a PC without an IOMMU see it.
pub(super) struct Identity;

// SAFETY: pages come from the page allocator, zeroed and in nobody else's use; all memory is mapped at its
// physical address, so what is shared is where the device is told; registers are mapped for good.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let address = Pages::allocate(pages).map_or(0, Pages::leak);
        // virtio-drivers takes address 0 for a failure and does not look at the pointer then.
        (address, at(address))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        // The only device lives as long as the guest; what one that failed to start had is lost.
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, len: usize) -> NonNull<u8> {
        // A device whose registers find no page table is a machine with no page of memory left at its start:
        // there is no NIC then, and the access faults with a report.
        window::map_device(address, len).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr().expose_provenance() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn at(address: u64) -> NonNull<u8> {
    debug_assert!(address.is_multiple_of(PAGE_BYTES));
    NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize)).unwrap_or(NonNull::dangling())
}

/// A transport without event indices: virtio-drivers 0.13 compares them without a thought for the wrap
/// (`VirtQueue::should_notify`), and would stop kicking the device after 65536 packets.
pub(super) struct WithoutEventIndex(pub(super) PciTransport);

/// `VIRTIO_F_EVENT_IDX` (virtio 1.2, 6).
const EVENT_INDEX: u64 = 1 << 29;

impl Transport for WithoutEventIndex {
    fn read_device_features(&mut self) -> u64 {
        self.0.read_device_features() & !EVENT_INDEX
    }
    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }
    fn write_driver_features(&mut self, features: u64) {
        self.0.write_driver_features(features);
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }
    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }
    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }
    fn set_guest_page_size(&mut self, bytes: u32) {
        self.0.set_guest_page_size(bytes);
    }
    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.0.queue_set(queue, size, descriptors, driver_area, device_area);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }
    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        self.0.read_config_space(offset)
    }
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        self.0.write_config_space(offset, value)
    }
}
