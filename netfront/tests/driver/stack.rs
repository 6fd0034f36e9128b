//! smoltcp on the driver: what a user of the crate does with it.

use drayage_netfront::Options;
use drayage_wire::container::{Checksum, Meta};
use drayage_wire::netif::{rx_flags, status};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};

use crate::peer::{CONTAINERS, STOCK, datagram, pack, unpack};
use crate::states::connected_as;

fn buffer(bytes: usize) -> udp::PacketBuffer<'static> {
    udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; bytes])
}

/// Who has 10.0.0.2, asked by 10.0.0.1.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    frame.resize(60, 0);
    frame
}

#[test]
fn an_echo_over_udp_with_and_without_containers() {
    for features in [STOCK, CONTAINERS] {
        let containers = features == CONTAINERS;
        let (mut guest, mut peer) = connected_as(Options::default(), features);
        let vif = guest.vif(0);
        let mac = EthernetAddress(vif.mac());
        let mut interface = Interface::new(Config::new(mac.into()), vif, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(Ipv4Address::new(10, 0, 0, 2).into(), 24)).unwrap();
        });
        let mut sockets = SocketSet::new(Vec::new());
        let mut socket = udp::Socket::new(buffer(65_536), buffer(65_536));
        socket.bind(7).unwrap();
        let echo = sockets.add(socket);
        let mut now = Instant::ZERO;
        let mut round = |guest: &mut crate::guest::Guest| {
            now += smoltcp::time::Duration::from_millis(1);
            let vif = guest.vif(0);
            while vif.ingress(now, &mut interface, &mut sockets, 32) > 0 {
                let socket = sockets.get_mut::<udp::Socket<'_>>(echo);
                while let Ok((data, from)) = socket.recv() {
                    let (data, from) = (data.to_vec(), from.endpoint);
                    socket.send_slice(&data, from).unwrap();
                }
                interface.poll_egress(now, vif, &mut sockets);
                while socket_has_more(&sockets, echo) {
                    interface.poll_egress(now, vif, &mut sockets);
                }
                vif.flush();
            }
        };
        let plain = |packets: &[Vec<u8>], checksum| -> Vec<(Vec<u8>, Meta)> {
            packets.iter().map(|p| (p.clone(), Meta { checksum, gso: None })).collect()
        };
        if containers {
            peer.give(&pack(&plain(&[arp_request()], Checksum::Unverified), 0), 0);
        } else {
            peer.give(&arp_request(), 0);
        }
        round(&mut guest);
        assert_eq!(peer.take_sent(status::OKAY).len(), 1, "the answer to who we are");

        let mut blank = datagram(b"with a blank checksum");
        drayage_wire::checksum::blank(&mut blank).unwrap();
        let asked: Vec<Vec<u8>> = (0..40u8).map(|n| datagram(&[n; 100])).collect();
        if containers {
            let mut packets = plain(&asked, Checksum::Unverified);
            packets.extend(plain(&[blank], Checksum::Blank));
            peer.give(&pack(&packets, 1), 0);
        } else {
            for packet in &asked {
                peer.give_chain(packet, 0);
            }
            peer.give(&blank, rx_flags::CSUM_BLANK | rx_flags::DATA_VALIDATED);
        }
        round(&mut guest);
        let sent = peer.take_sent(status::OKAY);
        let answers: Vec<Vec<u8>> = if containers {
            sent.iter().flat_map(|s| unpack(&s.bytes)).map(|(p, _)| p).collect()
        } else {
            sent.into_iter().map(|s| s.bytes).collect()
        };
        assert_eq!(answers.len(), 41);
        for (n, answer) in answers[..40].iter().enumerate() {
            assert_eq!(answer[42..], [n as u8; 100]);
        }
        assert_eq!(answers[40][42..], *b"with a blank checksum");
        let counters = guest.counters(0);
        assert_eq!((counters.rx.udp_packets, counters.rx.dropped.total()), (41, 0));
        assert_eq!(counters.tx.blank_checksums, 41);
        guest.hv.assert_clean();
    }
}

fn socket_has_more(sockets: &SocketSet<'_>, handle: smoltcp::iface::SocketHandle) -> bool {
    sockets.get::<udp::Socket<'_>>(handle).send_queue() > 0
}
