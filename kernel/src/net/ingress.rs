//! What comes in, a frame at a time: a router takes what is for others, plain datagrams go the short way into their
//! queues, and the stack gets the rest. It knows none of the three from within.

use drayage_netfront::inbox::{Inboxes, Sorted, Sums};
use drayage_netfront::take_frame;
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::IpCidr;

use super::nic::Nic;
use super::transit::{Taken, Transit};
use super::watch::{Verdict, Watch};
use super::{BATCH_BYTES, BATCH_FRAMES, SHORT_BATCH_FRAMES};

/// All that a frame may be for.
pub(super) struct Ingress<'a> {
    pub(super) interface: &'a mut Interface,
    pub(super) sockets: &'a mut SocketSet<'static>,
    pub(super) watch: &'a mut Watch,
    pub(super) inboxes: &'a mut Inboxes,
}

/// Where a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    /// Into a queue, or on to another interface: that is all that it takes.
    Short,
    /// Any other way.
    Long,
}

impl Ingress<'_> {
    /// Takes a batch. Returns whether there was any frame.
    pub(super) fn take_batch<N: Nic>(
        self,
        nic: &mut N,
        mut transit: Option<&mut Transit<'_, N>>,
        now: Instant,
    ) -> bool {
        let Self { interface, sockets, watch, inboxes } = self;
        let mut long = 0;
        for frames in 0..SHORT_BATCH_FRAMES {
            let mut transit = transit.as_deref_mut();
            if transit.as_mut().is_some_and(|transit| !transit.is_open()) {
                return frames > 0;
            }
            let mut went = Went::Long;
            let taken = take_frame(nic, now, interface, sockets, |frame| {
                watch.batch_bytes += frame.len();
                if transit.as_mut().is_some_and(|transit| transit.take(frame) == Taken::Taken) {
                    went = Went::Short;
                    return Sorted::Taken;
                }
                if inboxes.sort(frame) == Sorted::Taken {
                    went = Went::Short;
                    return Sorted::Taken;
                }
                match watch.see(frame) {
                    Verdict::Pass => Sorted::Stack,
                    Verdict::Refuse => Sorted::Taken,
                }
            });
            if taken.is_none() {
                if let Some(transit) = transit {
                    transit.note_drained();
                }
                return frames > 0;
            }
            long += usize::from(went == Went::Long);
            if long >= BATCH_FRAMES || watch.batch_bytes >= BATCH_BYTES {
                break;
            }
        }
        true
    }
}

/// Tells the queues what the interface is, at the begin of a turn.
pub(super) fn begin<N: Nic>(inboxes: &mut Inboxes, nic: &N, interface: &Interface, now_ns: u64) {
    let sums = if nic.capabilities().checksum.udp.rx() { Sums::Unverified } else { Sums::Verified };
    let addresses = interface.ip_addrs().iter().filter_map(|cidr| match cidr {
        IpCidr::Ipv4(cidr) => Some((cidr.address().octets(), cidr.prefix_len())),
        IpCidr::Ipv6(_) => None,
    });
    inboxes.configure(nic.mac(), sums, addresses);
    inboxes.begin(now_ns);
}
