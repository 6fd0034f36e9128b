//! The data path allocates nothing.

use drayage_wire::container::Meta;
use drayage_wire::netif::{RxResponse, TxRequest, TxResponse, rx_flags};
use smoltcp::phy::{Device, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::peer::{CONTAINERS, STOCK, frame, pack};
use crate::states::connected;

#[test]
fn receiving_and_replying_allocate_nothing() {
    for features in [STOCK, CONTAINERS] {
        let (mut guest, mut peer) = connected(features);
        let bytes = if features == CONTAINERS {
            pack(&(0..64).map(|n| (frame(60, n), Meta::default())).collect::<Vec<_>>(), 0)
        } else {
            frame(5000, 1)
        };
        let vif = guest.vif(0);
        let (mut during, mut frames) = (0, 0u64);
        for round in 0..2000u32 {
            for (n, piece) in bytes.chunks(4096).enumerate() {
                let buffer = peer.take_buffer();
                peer.fill(buffer, 0, piece);
                let flags = if n == 0 { rx_flags::MORE_DATA } else { 0 };
                peer.respond(RxResponse { id: buffer.id, offset: 0, flags, status: piece.len() as i16 });
            }
            peer.publish();
            let before = crate::allocations();
            while let Some((rx, tx)) = vif.receive(Instant::ZERO) {
                rx.consume(|bytes| tx.consume(bytes.len().min(1514), |reply| reply.fill(round as u8)));
                frames += 1;
            }
            if let Some(token) = vif.transmit(Instant::ZERO) {
                token.consume(60, |frame| frame.fill(1));
            }
            vif.flush();
            if round % 3 == 0 {
                vif.rearm();
            }
            during += crate::allocations() - before;
            let tx = &mut peer.rings().tx;
            while tx.available() != Ok(0) {
                let request: TxRequest = tx.peek(0);
                tx.advance(1);
                tx.respond(TxResponse { id: request.id, status: 0 }).unwrap();
            }
            let _ = tx.publish();
        }
        assert_eq!(during, 0, "allocations on the data path");
        assert_eq!(frames, if features == CONTAINERS { 2000 * 64 } else { 2000 });
        assert_eq!(vif.counters().tx.dropped_full, 0);
        assert!(crate::allocations() > 0, "the counter counts");
    }
}
