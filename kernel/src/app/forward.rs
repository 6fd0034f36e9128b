//! `app=forward`: routes IPv4 and IPv6 between the interfaces 0 and 1 (the loop does that, see `net::transit`), says
//! what its routes are, and tells its counters to whoever sends a datagram to its port.

use alloc::boxed::Box;
use core::fmt::{self, Write};

use smoltcp::socket::udp::UdpMetadata;
use smoltcp::wire::IpAddress;

use super::line::Line;
use super::{App, Next, Starter};
use crate::net::{Counters, Net, Routed, UdpHandle};
use crate::settings::{Key, SettingError, Words};

pub(super) const PORT: Key = Key { name: "port", form: "a UDP port that tells the counters, 1 to 65535" };

/// Requests that are answered in one turn.
const ANSWERS: usize = 8;

pub(super) fn configure(words: &Words<'_>) -> Result<Starter, SettingError> {
    let port = words.port(&PORT)?.unwrap_or(10);
    Ok(Box::new(move |net| {
        let name = net.name();
        net.print(format_args!("forward: {name}: counters on udp port {port}"));
        Box::new(Forward { control: net.open_udp(port), gateways: [None; 2] })
    }))
}

struct Forward {
    control: UdpHandle,
    /// The default routes that were printed last.
    gateways: [Option<IpAddress>; 2],
}

impl App for Forward {
    fn poll(&mut self, net: &mut Net<'_>) -> Next {
        self.follow_routes(net);
        self.answer_requests(net);
        Next::OnTraffic
    }

    fn finish(&mut self, net: &mut Net<'_>) {
        let report = Report::of(net);
        let name = net.name();
        net.print(format_args!("forward: {name}: {report}"));
    }
}

impl Forward {
    /// Says where packets for other networks go, whenever that changes.
    fn follow_routes(&mut self, net: &mut Net<'_>) {
        let gateways = net.gateways();
        if gateways == self.gateways {
            return;
        }
        self.gateways = gateways;
        let name = net.name();
        for gateway in gateways.into_iter().flatten() {
            net.print(format_args!("forward: {name}: default route by {gateway}"));
        }
    }

    fn answer_requests(&mut self, net: &mut Net<'_>) {
        for _ in 0..ANSWERS {
            let mut udp = net.udp(self.control);
            let Some(request) = udp.receive() else { return };
            if request.to.is_none() {
                continue;
            }
            let answer: UdpMetadata = request.answer();
            let mut line = Line::default();
            // The line has room for the longest numbers.
            let _ = write!(line, "{}", Report::of(net));
            // Someone who asks faster than answers leave gets fewer of them.
            let _ = net.udp(self.control).send(line.as_bytes(), answer);
        }
    }
}

/// The counters in one line of `key=value` words: of the packets that came in on this interface.
struct Report {
    routed: Routed,
    nic: Counters,
}

impl Report {
    fn of(net: &Net<'_>) -> Self {
        Self { routed: net.routed(), nic: net.counters() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { routed, nic } = self;
        write!(f, "packets={} dropped={} expired={}", routed.forwarded, routed.dropped(), routed.expired)?;
        write!(f, " no_route={} unresolved={}", routed.no_route, routed.unresolved)?;
        write!(f, " too_big={} malformed={} full={}", routed.too_big, routed.malformed, routed.full)?;
        write!(f, " errors_sent={} dropped_by_nic={}", routed.errors_sent, nic.rx_dropped)
    }
}
