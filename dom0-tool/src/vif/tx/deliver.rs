//! What a guest sent, once it is in private memory: judged again, handed on, and answered.
//!
//! It knows chains that were copied, and neither how they were taken nor where they go.

use drayage_wire::container::{Checksum, Header, Manifest, Meta, Packet};
use drayage_wire::netif::{TxResponse, status};

use super::{Answer, Fate, Format, Tx};
use crate::segment;
use crate::vif::across::{Mapped, Whole};
use crate::vif::counters::{Counters, hypercalls};
use crate::vif::multicast::Subscriptions;
use crate::vif::scratch::Parcel;
use crate::vif::staging::Table;
use crate::xen::{CopyOp, GNTST_OKAY, PageAccess};

/// What a guest sent, copied and judged.
#[derive(Debug)]
pub enum Delivery<'a, 'p, P> {
    /// A container, and the packets that were found in it. Nobody has looked at what its writer says of them.
    Container(&'a mut Whole<'p, P>),
    /// A packet of a container that was not taken, and of which no more was read than headers, by which it was judged.
    Packet(&'a mut Whole<'p, P>, Packet),
    /// A frame.
    Frame(Parcel<'a>),
}

/// Whether somebody took a delivery. Nobody asks that of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was dealt with.
    Yes,
    /// It was not.
    No,
}

impl<P: PageAccess> Tx<P> {
    /// Hands over what the batch that was just copied brought, in order. A container that is not taken as one comes
    /// again frame by frame.
    pub fn deliver(
        &mut self,
        scratch: &mut [u8],
        ops: &[CopyOp],
        manifest: &mut Manifest,
        (subscriptions, staged): (&mut Subscriptions<P>, Option<&Table<P>>),
        counters: &mut Counters,
        mut each: impl FnMut(Delivery<'_, '_, P>, &mut Counters) -> Taken,
    ) {
        let mut answers = self.answers.iter();
        let mut granted = 0;
        for chain in &self.chains {
            let first_op = chain.first_op as usize;
            let done = &ops[first_op..first_op + usize::from(chain.ops)];
            let bytes = &mut scratch[chain.start as usize..(chain.start + chain.len) as usize];
            let mut answer = status::OKAY;
            // They were mapped when the chain was taken, in this pass.
            let page = |grant| staged?.find(grant);
            let grants = done.iter().map(|op| op.grant);
            let unread = if chain.unread { Mapped::find(0, grants, page) } else { None };
            let failed = done.iter().any(|op| op.status != GNTST_OKAY) || chain.unread != unread.is_some();
            match chain.fate {
                Fate::Copied if failed => {
                    counters.drops.unreadable += 1;
                    counters.guest_errors += 1;
                    answer = status::ERROR;
                }
                Fate::Copied => {
                    if let Some(pages) = &unread {
                        counters.tx.mapped_ops += done.len() as u64;
                        counters.tx.mapped_bytes += pages.read_table(bytes) as u64;
                    } else {
                        granted += counters.tx.count_copies(done);
                    }
                    if self.format == Format::Plain {
                        counters.tx.packets += 1;
                        counters.tx.bytes += bytes.len() as u64;
                        if let Some(meta) = judge(bytes, chain.meta, counters) {
                            each(Delivery::Frame(Parcel { bytes, meta, at: Some(chain.start) }), counters);
                        }
                    } else if manifest.read(bytes).is_ok() {
                        let packets = manifest.packets();
                        counters.tx.containers += 1;
                        counters.tx.packets += packets.len() as u64;
                        counters.tx.bytes += packets.iter().map(|packet| u64::from(packet.len)).sum::<u64>();
                        let mut whole = Whole::new(bytes, packets, chain.start, unread);
                        let taken = each(Delivery::Container(&mut whole), counters);
                        if taken == Taken::No && whole.is_unread() {
                            deliver_unread(&mut whole, counters, &mut each);
                        } else if taken == Taken::No {
                            let bytes = &*whole.bytes;
                            for packet in packets {
                                let frame = &bytes[packet.range()];
                                if let Some(meta) = judge(frame, packet.meta, counters) {
                                    let at = Some(chain.start + u32::from(packet.offset));
                                    each(Delivery::Frame(Parcel { bytes: frame, meta, at }), counters);
                                }
                            }
                        }
                        counters.tx.mapped_bytes += whole.read_bytes() as u64;
                    } else {
                        counters.drops.malformed += 1;
                        counters.guest_errors += 1;
                        answer = status::ERROR;
                    }
                }
                Fate::Malformed => {
                    counters.drops.malformed += 1;
                    counters.guest_errors += 1;
                    answer = status::ERROR;
                }
                Fate::Control(change) => {
                    if subscriptions.change(change).is_err() {
                        counters.guest_errors += 1;
                        answer = status::ERROR;
                    }
                }
            }
            counters.tx.slots += u64::from(chain.slots);
            for noted in answers.by_ref().take(usize::from(chain.slots)) {
                let response = match *noted {
                    Answer::Request(id) => TxResponse { id, status: answer },
                    Answer::Extra => TxResponse { id: 0, status: status::NULL },
                };
                // As many answers were noted as requests were taken.
                let _ = self.ring.respond(response);
            }
        }
        counters.hypercalls += hypercalls(&(self.first_granted..self.first_granted + granted));
        self.chains.clear();
        self.answers.clear();
    }

    /// Shows how each frame travelled that [`deliver`](Self::deliver) is about to hand over, in the same order: its
    /// container's header and its position in it, or `None` if it came alone.
    pub fn show_gathered(
        &self,
        scratch: &[u8],
        ops: &[CopyOp],
        manifest: &mut Manifest,
        mut each: impl FnMut(Option<(Header, u32)>),
    ) {
        for chain in self.chains.iter().filter(|chain| chain.fate == Fate::Copied) {
            let first_op = chain.first_op as usize;
            let done = &ops[first_op..first_op + usize::from(chain.ops)];
            if done.iter().any(|op| op.status != GNTST_OKAY) {
                continue;
            }
            if self.format == Format::Plain {
                each(None);
                continue;
            }
            let bytes = &scratch[chain.start as usize..(chain.start + chain.len) as usize];
            if let Ok(header) = manifest.read(bytes) {
                for position in 0..manifest.packets().len() as u32 {
                    each(Some((header, position)));
                }
            }
        }
    }
}

/// Hands over the packets of a container of which not all was read: each from where it is, if somebody takes it from there.
fn deliver_unread<P: PageAccess>(
    whole: &mut Whole<'_, P>,
    counters: &mut Counters,
    each: &mut impl FnMut(Delivery<'_, '_, P>, &mut Counters) -> Taken,
) {
    for packet in whole.packets {
        let head = whole.read_head(packet);
        // Nothing is looked at but its headers, and those are not read again.
        let Some(meta) = judge(head, packet.meta, counters) else { continue };
        let packet = Packet { meta, ..*packet };
        if whole.is_worth_placing(&packet) && each(Delivery::Packet(whole, packet), counters) == Taken::Yes {
            continue;
        }
        let at = Some(whole.at + u32::from(packet.offset));
        let bytes = whole.fill_packet(&packet);
        each(Delivery::Frame(Parcel { bytes, meta, at }), counters);
    }
}

/// Judges by its headers what a guest says of a frame, before somebody else believes it: a super-frame must be one, and its
/// checksum is blank whatever the flags. Returns what travels beside the frame, or `None` for one to be dropped.
pub fn judge(frame: &[u8], meta: Meta, counters: &mut Counters) -> Option<Meta> {
    let Some(gso) = meta.gso else { return Some(meta) };
    if !segment::is_sound(frame, gso) {
        counters.drops.malformed += 1;
        return None;
    }
    counters.tx.super_frames += 1;
    Some(Meta { checksum: Checksum::Blank, gso: Some(gso) })
}
