//! How an interface gets its addresses: static ones, a link-local one, a DHCP lease, a router's prefix. It
//! knows the stack's interface, not the packets.

use core::fmt;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::time::Duration;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr, Ipv6Address, Ipv6Cidr};

use crate::settings::{Addressing, Ipv4Source};

/// How long a lost DHCP request holds a boot up; smoltcp's own choice is 10 s.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns the address that every interface has on its link (RFC 4291, appendix A).
fn link_local(mac: EthernetAddress) -> Ipv6Cidr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Cidr::new(
        Ipv6Address::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f)),
        64,
    )
}

/// Gives a new interface its static addresses and routers.
pub(super) fn set_up(interface: &mut Interface, mac: EthernetAddress, addressing: &Addressing) {
    interface.update_ip_addrs(|addresses| {
        // The link-local address comes first: smoltcp solicits routers from it. There is room for all: the
        // settings take four, and the stack is built with eight.
        let local = IpCidr::Ipv6(link_local(mac));
        for cidr in core::iter::once(local).chain(addressing.fixed.iter().copied()) {
            let _ = addresses.push(cidr);
        }
    });
    let routes = interface.routes_mut();
    if let Some(gateway) = addressing.gateway_v4 {
        // The table is empty, and has room for four.
        let _ = routes.add_default_ipv4_route(gateway);
    }
    if let Some(gateway) = addressing.gateway_v6 {
        let _ = routes.add_default_ipv6_route(gateway);
    }
}

/// Returns a DHCP client where one is wanted.
pub(super) fn client(addressing: &Addressing) -> Option<dhcpv4::Socket<'static>> {
    (addressing.ipv4 == Ipv4Source::Dhcp).then(|| {
        let mut client = dhcpv4::Socket::new();
        let mut retries = client.get_retry_config();
        retries.discover_timeout = DISCOVER_TIMEOUT;
        client.set_retry_config(retries);
        client
    })
}

/// Gives up the lease and asks for one: the network may be another.
pub(super) fn ask_again(sockets: &mut SocketSet<'static>, client: SocketHandle) {
    sockets.get_mut::<dhcpv4::Socket<'_>>(client).reset();
}

/// Takes what the DHCP client has learned, and says so on the console. Returns whether it has learned anything.
pub(super) fn follow_lease(
    name: &str,
    interface: &mut Interface,
    sockets: &mut SocketSet<'static>,
    client: SocketHandle,
    console: &mut dyn fmt::Write,
) -> bool {
    let Some(event) = sockets.get_mut::<dhcpv4::Socket<'_>>(client).poll() else { return false };
    let had_address = interface.ipv4_addr().is_some();
    interface.update_ip_addrs(|addresses| addresses.retain(|address| !matches!(address, IpCidr::Ipv4(_))));
    interface.routes_mut().remove_default_ipv4_route();
    match event {
        dhcpv4::Event::Configured(lease) => {
            // smoltcp panics on an address that no host can have; the server may say anything.
            if !is_host(lease.address) {
                let _ = writeln!(
                    console,
                    "net: {name}: dhcp server {} offered {}, which no host can have: ignored",
                    lease.server.address, lease.address
                );
                return true;
            }
            interface.update_ip_addrs(|addresses| {
                let _ = addresses.push(IpCidr::Ipv4(lease.address));
            });
            let _ = write!(console, "net: {name}: dhcp lease {}", lease.address);
            if let Some(router) = lease.router.filter(|router| is_host(Ipv4Cidr::new(*router, 32))) {
                let _ = interface.routes_mut().add_default_ipv4_route(router);
                let _ = write!(console, ", gateway {router}");
            }
            let _ = writeln!(console, ", server {}", lease.server.address);
        }
        dhcpv4::Event::Deconfigured if had_address => {
            let _ = writeln!(console, "net: {name}: dhcp lease lost");
        }
        // The client's first report, before it has asked anybody.
        dhcpv4::Event::Deconfigured => {}
    }
    true
}

fn is_host(cidr: Ipv4Cidr) -> bool {
    let address = cidr.address();
    !address.is_multicast() && !address.is_broadcast() && !address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_comes_from_the_mac() {
        let local = link_local(EthernetAddress([0x00, 0x16, 0x3e, 0x01, 0x02, 0x03]));
        assert_eq!(local, "fe80::216:3eff:fe01:203/64".parse().unwrap());
    }
}
