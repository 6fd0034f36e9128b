//! A short way for datagrams. What the stack wrote in front of one datagram of a flow stands in front of the next ones
//! too, but for lengths and sums: the stack decides once, and what it decided is repeated for a while.
//!
//! It knows Ethernet, IPv4 and UDP headers, and whom flows lead to. It knows neither stack nor ring, and decides
//! nothing: a frame that it does not understand makes no template.

use drayage_wire::checksum::{self, add};

/// One copy of what is meant to be inlined: it is called once a flow, or for a whole payload.
#[inline(never)]
fn sum(bytes: &[u8]) -> u16 {
    checksum::sum(bytes)
}

/// Bytes in front of a datagram's payload: Ethernet's, IPv4's and UDP's headers.
pub const HEAD_BYTES: usize = 42;
/// Flows that are remembered at most; the one that was used least recently goes.
pub const FLOWS: usize = 8;
/// How long a template is used before the stack is asked again. Its own neighbours live for 60 s.
pub const VALID_NS: u64 = 1_000_000_000;

const IP: usize = 14;
const IP_LEN: usize = 16;
const IP_SUM: usize = 24;
const UDP: usize = 34;
const UDP_LEN: usize = 38;
const UDP_SUM: usize = 40;
const UDP_BYTES: usize = 8;

/// What becomes of a datagram's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// It is written.
    Full,
    /// The field has the sum of the pseudo-header, as netif's `csum_blank` wants it.
    Blank,
    /// The field is zero: whoever sends the frame sees to it.
    Zero,
}

/// The headers of a flow's datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    head: [u8; HEAD_BYTES],
    /// The sum of the IPv4 header without its length.
    header: u16,
    /// The sum of the pseudo-header without the datagram's length.
    pseudo: u16,
    /// Which payload `head` speaks of now.
    bytes: usize,
    sum: Sum,
}

impl Template {
    const NONE: Self = Self { head: [0; HEAD_BYTES], header: 0, pseudo: 0, bytes: 0, sum: Sum::Zero };

    /// Makes a template of a frame that the stack sends; `None` if it is no whole datagram over plain IPv4, or another
    /// one may not have the same header: it has an identification, or its header no sum.
    fn of(frame: &[u8]) -> Option<Self> {
        let head = *frame.first_chunk::<HEAD_BYTES>()?;
        let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let bytes = frame.len() - HEAD_BYTES;
        // IPv4 without options, not to be fragmented, no identification, UDP.
        let is_plain = head[12..15] == [8, 0, 0x45] && head[18..22] == [0, 0, 0x40, 0] && head[23] == 17;
        let is_whole =
            usize::from(half(IP_LEN)) == frame.len() - IP && usize::from(half(UDP_LEN)) == bytes + UDP_BYTES;
        if !is_plain || !is_whole || sum(&head[IP..UDP]) != 0xffff {
            return None;
        }
        let mut bare = head;
        for field in [IP_LEN, IP_SUM] {
            bare[field..field + 2].fill(0);
        }
        let (header, pseudo) = (sum(&bare[IP..UDP]), add(sum(&head[26..UDP]), u16::from(head[23])));
        let mut template = Self { head, header, pseudo, bytes, sum: Sum::Zero };
        template.speak_of(bytes, Sum::Zero);
        Some(template)
    }

    /// Writes a frame: the headers, and behind them what `fill` writes. The frame is as long as a header at least.
    #[inline]
    pub fn write(&mut self, frame: &mut [u8], sum: Sum, fill: impl FnOnce(&mut [u8])) {
        let Some((head, payload)) = frame.split_first_chunk_mut::<HEAD_BYTES>() else { return };
        if (self.bytes, self.sum) != (payload.len(), sum) {
            self.speak_of(payload.len(), sum);
        }
        *head = self.head;
        fill(payload);
        if sum == Sum::Full {
            self.sum_up(frame);
        }
    }

    #[inline(never)]
    fn speak_of(&mut self, bytes: usize, sum: Sum) {
        (self.bytes, self.sum) = (bytes, sum);
        let datagram = (UDP_BYTES + bytes) as u16;
        let packet = (HEAD_BYTES - IP + bytes) as u16;
        let field = if sum == Sum::Blank { add(self.pseudo, datagram) } else { 0 };
        for (at, value) in
            [(IP_LEN, packet), (IP_SUM, !add(self.header, packet)), (UDP_LEN, datagram), (UDP_SUM, field)]
        {
            self.head[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
    }

    #[inline(never)]
    fn sum_up(&self, frame: &mut [u8]) {
        let datagram = (frame.len() - UDP) as u16;
        let value = !add(add(self.pseudo, datagram), sum(&frame[UDP..]));
        // A sum of zero is sent as all ones (RFC 768).
        let value = if value == 0 { 0xffff } else { value };
        frame[UDP_SUM..UDP_SUM + 2].copy_from_slice(&value.to_be_bytes());
    }
}

/// Whose datagrams, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The address that the sender asked for; 0.0.0.0 where the stack chooses.
    pub from: [u8; 4],
    /// Where they go.
    pub to: [u8; 4],
    /// The socket's port.
    pub from_port: u16,
    /// The port where they go.
    pub to_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// A datagram is on its way through the stack.
    Awaited,
    /// The template is good until then.
    Known {
        until_ns: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    flow: Flow,
    /// The address that the frame will come from.
    source: [u8; 4],
    state: State,
    used: u64,
    template: Template,
}

/// The flows of one interface.
#[derive(Clone, Debug)]
pub struct Flows {
    entries: [Entry; FLOWS],
    latest: usize,
    /// Counts changes from one flow to another.
    changes: u64,
    awaited: usize,
}

impl Default for Flows {
    fn default() -> Self {
        let flow = Flow { from: [0; 4], to: [0; 4], from_port: 0, to_port: 0 };
        let entry = Entry { flow, source: [0; 4], state: State::Free, used: 0, template: Template::NONE };
        Self { entries: [entry; FLOWS], latest: 0, changes: 0, awaited: 0 }
    }
}

impl Flows {
    /// Returns a flow's template, if it has one that is still good.
    #[inline]
    pub fn find(&mut self, flow: Flow, now_ns: u64) -> Option<&mut Template> {
        if self.entries[self.latest].flow != flow {
            self.latest = self.entries.iter().position(|entry| entry.flow == flow)?;
            self.touch();
        }
        let entry = &mut self.entries[self.latest];
        match entry.state {
            State::Known { until_ns } if now_ns < until_ns => Some(&mut entry.template),
            _ => None,
        }
    }

    /// Makes a template of the flow's next frame, which the stack will send from the address `source`.
    #[cold]
    pub fn await_frame(&mut self, flow: Flow, source: [u8; 4]) {
        let at = self.entries.iter().position(|entry| entry.flow == flow);
        // One that is free was never used, or has been forgotten.
        let oldest = || (0..FLOWS).min_by_key(|at| self.entries[*at].used).unwrap_or(0);
        self.latest = at.unwrap_or_else(oldest);
        self.touch();
        let entry = &mut self.entries[self.latest];
        (entry.flow, entry.source, entry.state) = (flow, source, State::Awaited);
        self.count_awaited();
    }

    /// Returns whether a frame is awaited: then those that the stack sends are to be shown.
    #[inline]
    pub fn awaits_any(&self) -> bool {
        self.awaited > 0
    }

    /// Looks at a frame that the stack sends, as it wrote it.
    #[cold]
    pub fn see(&mut self, frame: &[u8], now_ns: u64) {
        let Some(template) = Template::of(frame) else { return };
        let field = |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
        let (source, to) = (field(26), field(30));
        let [a, b, c, d] = field(UDP);
        let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        for entry in &mut self.entries {
            let flow = (entry.flow.to, (entry.flow.from_port, entry.flow.to_port));
            if entry.state == State::Awaited && entry.source == source && flow == (to, ports) {
                entry.state = State::Known { until_ns: now_ns.saturating_add(VALID_NS) };
                entry.template = template;
            }
        }
        self.count_awaited();
    }

    /// Forgets all flows: the stack might decide otherwise now.
    #[cold]
    pub fn forget(&mut self) {
        for entry in &mut self.entries {
            (entry.state, entry.used) = (State::Free, 0);
        }
        self.awaited = 0;
    }

    fn touch(&mut self) {
        self.changes += 1;
        self.entries[self.latest].used = self.changes;
    }

    fn count_awaited(&mut self) {
        self.awaited = self.entries.iter().filter(|entry| entry.state == State::Awaited).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    /// "hi!" from 10.0.0.1:1 to 10.0.0.2:7, as the stack sends it where the driver sees to sums.
    const FRAME: &[u8] = &[
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x26, 0xcc, 10, 0,
        0, 1, 10, 0, 0, 2, 0, 1, 0, 7, 0, 11, 0, 0, b'h', b'i', b'!',
    ];
    const FLOW: Flow = Flow { from: [0; 4], to: [10, 0, 0, 2], from_port: 1, to_port: 7 };
    const SOURCE: [u8; 4] = [10, 0, 0, 1];

    fn known(now_ns: u64) -> Flows {
        let mut flows = Flows::default();
        flows.await_frame(FLOW, SOURCE);
        flows.see(FRAME, now_ns);
        flows
    }

    fn written(template: &mut Template, payload: &[u8], sum: Sum) -> Vec<u8> {
        let mut frame = std::vec![0xee; HEAD_BYTES + payload.len()];
        template.write(&mut frame, sum, |bytes| bytes.copy_from_slice(payload));
        frame
    }

    #[test]
    fn the_next_frame_differs_in_lengths_and_sums() {
        let mut flows = known(0);
        let template = flows.find(FLOW, 5).unwrap();
        assert_eq!(written(template, b"hi!", Sum::Zero), FRAME);
        // By hand, as in the tests of the wire: the pseudo-header is 141f, the body 897c.
        let mut expected = FRAME.to_vec();
        expected[40..42].copy_from_slice(&[0x14, 0x1f]);
        assert_eq!(written(template, b"hi!", Sum::Blank), expected);
        expected[40..42].copy_from_slice(&(!(0x141f + 0x897c_u16)).to_be_bytes());
        assert_eq!(written(template, b"hi!", Sum::Full), expected);
        // Two bytes more: both lengths are two more, and the header's sum two less.
        expected.truncate(42);
        expected.extend([0, 0, 0, 0, 0]);
        (expected[17], expected[25], expected[39]) = (33, 0xca, 13);
        expected[40..42].copy_from_slice(&(!(0x1421_u16 + 0x0001 + 0x0007 + 0x000d)).to_be_bytes());
        assert_eq!(written(template, &[0; 5], Sum::Full), expected);
    }

    #[test]
    fn a_sum_of_zero_is_sent_as_all_ones() {
        let mut flows = known(0);
        let template = flows.find(FLOW, 0).unwrap();
        // Pseudo-header 141e, header 0012: these two bytes make all ones of it.
        let rest = !(0x141e_u16 + 0x0012);
        let frame = written(template, &rest.to_be_bytes(), Sum::Full);
        assert_eq!(frame[40..42], [0xff, 0xff]);
    }

    #[test]
    fn only_a_plain_whole_datagram_makes_a_template() {
        assert!(Template::of(FRAME).is_some());
        for len in 0..FRAME.len() {
            assert!(Template::of(&FRAME[..len]).is_none(), "{len} bytes");
        }
        // Every bit of type, version, lengths, identification, fragmentation, protocol and sum matters.
        for at in [12, 13, 14, 16, 17, 18, 19, 20, 21, 23, 24, 25, 38, 39] {
            for bit in 0..8 {
                let mut frame = FRAME.to_vec();
                frame[at] ^= 1 << bit;
                assert!(Template::of(&frame).is_none(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_template_is_of_the_awaited_flow_and_address() {
        let mut flows = Flows::default();
        flows.see(FRAME, 0);
        assert!(flows.find(FLOW, 0).is_none() && !flows.awaits_any());
        for (flow, source) in [
            (Flow { to_port: 8, ..FLOW }, SOURCE),
            (Flow { from_port: 2, ..FLOW }, SOURCE),
            (Flow { to: [10, 0, 0, 3], ..FLOW }, SOURCE),
            (FLOW, [10, 0, 0, 9]),
        ] {
            let mut flows = Flows::default();
            flows.await_frame(flow, source);
            flows.see(FRAME, 0);
            assert!(flows.find(flow, 0).is_none() && flows.awaits_any());
        }
        let asked = Flow { from: SOURCE, ..FLOW };
        flows.await_frame(asked, SOURCE);
        flows.see(FRAME, 0);
        assert!(flows.find(asked, 0).is_some() && flows.find(FLOW, 0).is_none() && !flows.awaits_any());
    }

    #[test]
    fn a_template_is_good_for_a_second_and_until_all_are_forgotten() {
        let mut flows = known(7);
        assert!(flows.find(FLOW, 7 + VALID_NS - 1).is_some());
        assert!(flows.find(FLOW, 7 + VALID_NS).is_none());
        flows.await_frame(FLOW, SOURCE);
        assert!(flows.find(FLOW, 8).is_none(), "what waits in the stack goes first");
        flows.see(FRAME, VALID_NS);
        assert!(flows.find(FLOW, 2 * VALID_NS - 1).is_some());
        flows.forget();
        assert!(flows.find(FLOW, VALID_NS).is_none());
        flows.see(FRAME, VALID_NS);
        assert!(flows.find(FLOW, VALID_NS).is_none(), "nobody waits for it");
    }

    #[test]
    fn the_least_recently_used_flow_makes_room() {
        let mut flows = known(0);
        let other = |n: u8| Flow { to: [10, 0, 0, n], ..FLOW };
        for n in 10..10 + FLOWS as u8 - 1 {
            flows.await_frame(other(n), SOURCE);
            assert!(flows.find(FLOW, 0).is_some());
        }
        flows.await_frame(other(99), SOURCE);
        assert!(flows.find(FLOW, 0).is_some());
        assert!(flows.entries.iter().all(|entry| entry.flow != other(10)), "the first of the others went");
        for n in 100..100 + FLOWS as u8 {
            flows.await_frame(other(n), SOURCE);
        }
        assert!(flows.find(FLOW, 0).is_none());
    }
}
