//! The machine on Xen, as the loop sees it: vifs that come and go as xenstore says, and sleep until an event.

use alloc::vec::Vec;

use drayage_kernel::app::Role;
use drayage_kernel::net::{Change, Machine};
use drayage_kernel::settings::{Direction, Settings, Staging};
use drayage_netfront::platform::{DomainId, StoreError};
use drayage_netfront::{Event, Fired, Netfront, Options, Reading, Stage, Use, Vif};
use drayage_wire::control::status;

use crate::console::println;
use crate::events::Port;
use crate::platform::Xen;
use crate::{hypercall, time, toolstack, xenstore};

/// How long the backends have to take what was sent last.
const DRAIN_NS: u64 = 1_000_000_000;
/// How long the backends have to let go of the vifs before the guest ends.
const CLOSE_NS: u64 = 5_000_000_000;
/// Ports that are waited for.
const MAX_PORTS: usize = 32;

/// A Xen guest.
pub(crate) struct Guest {
    netfront: Netfront<Xen>,
    ports: Vec<Port>,
}

impl Guest {
    /// Starts to look for vifs.
    ///
    /// # Errors
    /// [`StoreError`]: without a watch no vif is found.
    pub(crate) fn new(settings: &Settings) -> Result<Self, StoreError> {
        let wanted = |direction| match direction {
            Direction::Containers => Use::Offered,
            Direction::Plain => Use::Never,
        };
        let mut options = Options {
            rx_containers: wanted(settings.containers.rx),
            tx_containers: wanted(settings.containers.tx),
            staged: match settings.staged {
                Staging::IfTrusted => Stage::IfTrusted,
                Staging::On => Stage::Always,
                Staging::Off => Stage::Never,
            },
            ..Options::default()
        };
        if settings.app.role == Role::Router {
            // What comes in as one large segment could only leave as several.
            options.segments = Use::Never;
        }
        if let Some(bytes) = settings.container_bytes {
            options.rx_container_max_bytes = bytes;
        }
        Ok(Self { netfront: Netfront::new(Xen, options)?, ports: Vec::with_capacity(MAX_PORTS) })
    }

    /// Closes the vifs in order: backends take what was sent, are told, and let go first. One that does not
    /// costs some seconds.
    pub(crate) fn close(mut self) {
        let deadline_ns = time::now_ns() + DRAIN_NS;
        // Every vif is asked, also behind one that is not done: the asking hands over what is left.
        while self.netfront.vifs_mut().iter_mut().filter_map(|vif| (!vif.drain()).then_some(())).count() > 0
            && time::now_ns() < deadline_ns
        {
            self.sleep(Some(deadline_ns));
        }
        self.netfront.close();
        let deadline_ns = time::now_ns() + CLOSE_NS;
        while !self.netfront.is_closed() {
            while let Some(event) = xenstore::take_event() {
                self.netfront.watch_fired(&event.path, &event.token);
            }
            self.netfront.service();
            if self.netfront.is_closed() {
                break;
            }
            if time::now_ns() >= deadline_ns {
                println!("net: a backend did not let go of its vif");
                break;
            }
            self.sleep(Some(deadline_ns));
        }
    }

    fn report(&mut self, number: u32, event: Event) -> Option<Change> {
        match event {
            Event::Up => {
                if let Some(vif) = self.netfront.vif_mut(number) {
                    describe(vif);
                }
                Some(Change::Up(number))
            }
            Event::Staged => {
                if let Some(vif) = self.netfront.vif_mut(number) {
                    describe_staged(vif);
                }
                None
            }
            Event::Down => Some(Change::Down(number)),
            Event::Removed => Some(Change::Gone(number)),
            Event::Failed(problem) => {
                println!("net: vif{number}: does not work: {problem}");
                None
            }
        }
    }
}

/// Says what has been agreed with a vif's backend.
fn describe(vif: &Vif<Xen>) {
    let DomainId(peer) = vif.peer();
    let limit = |bytes: Option<usize>| bytes.unwrap_or_default();
    let (rx, tx) = vif
        .agreed()
        .map(|agreed| (limit(agreed.rx_container_max_bytes()), limit(agreed.tx_container_max_bytes())))
        .unwrap_or_default();
    println!(
        "net: vif{}: up, backend in domain {peer}, mtu={} rx_container_bytes={rx} tx_container_bytes={tx}",
        vif.handle(),
        vif.mtu()
    );
}

/// Says which of our pages the backend maps, and what received packets are read from then.
fn describe_staged(vif: &Vif<Xen>) {
    let staged = vif.staged();
    let rx = match staged.rx {
        None | Some(Reading::Revoked) => "off",
        Some(Reading::InPlace) => "in-place",
        Some(Reading::Copied) => "copied",
    };
    let tx = if staged.tx { "on" } else { "off" };
    let answer = match staged.refused {
        None => "",
        Some(status::NOT_SUPPORTED) => ": not supported by the backend",
        Some(_) => ": refused by the backend",
    };
    println!("net: vif{}: staged rx={rx} tx={tx}{answer}", vif.handle());
}

impl Machine for Guest {
    type Nic = Vif<Xen>;

    const PREFIX: &'static str = "vif";

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn next_change(&mut self) -> Option<Change> {
        while let Some(event) = xenstore::take_event() {
            if self.netfront.watch_fired(&event.path, &event.token) == Fired::Foreign
                && event.token == toolstack::TOKEN
                && let Some(request) = toolstack::look()
            {
                return Some(Change::Stop(request));
            }
        }
        self.netfront.service();
        while let Some(change) = self.netfront.next_change() {
            if let Some(change) = self.report(change.handle, change.event) {
                return Some(change);
            }
        }
        None
    }

    fn nic(&mut self, number: u32) -> Option<&mut Vif<Xen>> {
        self.netfront.vif_mut(number)
    }

    fn nics(&mut self, numbers: [u32; 2]) -> [Option<&mut Vif<Xen>>; 2] {
        let mut found = [None, None];
        for vif in self.netfront.vifs_mut() {
            if let Some(at) = numbers.iter().position(|number| *number == vif.handle()) {
                found[at] = Some(vif);
            }
        }
        found
    }

    fn cpu_ns(&self) -> Option<u64> {
        hypercall::running_ns().ok()
    }

    fn sleep(&mut self, until_ns: Option<u64>) {
        self.ports.clear();
        let ports = self.netfront.vifs().iter().flat_map(Vif::ports);
        // Never more than there is room for: no allocation.
        self.ports.extend(ports.take(MAX_PORTS).map(|port| Port(port.0)));
        time::sleep_until(until_ns, &self.ports);
    }
}
