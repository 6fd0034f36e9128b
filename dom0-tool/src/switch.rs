//! Where a frame goes: addresses learned from what was received, within segments that do not meet.
//!
//! It knows port numbers and Ethernet addresses, and nothing of what is behind a port. The table has a fixed
//! size and allocates nothing after it was made; a sender with many addresses only displaces what shares a
//! bucket with them, and cannot displace addresses that were pinned.

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Returns whether the address names a group (broadcast included).
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A port of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// A set of ports that hear each other, and nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment(pub u16);

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To one port.
    To(PortId),
    /// To every port of the segment but the one it came from.
    Flood,
    /// Nowhere: its destination is behind the port it came from.
    Nowhere,
}

const BUCKETS: usize = 1024;
const WAYS: usize = 4;
/// How long an address is remembered after it was last seen.
const AGE_NS: u64 = 300_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The address, the segment above it; 0 for none.
    key: u64,
    port: PortId,
    /// When it was last seen; the largest for one that was pinned.
    seen_ns: u64,
}

const NONE: Entry = Entry { key: 0, port: PortId(0), seen_ns: 0 };
const PINNED: u64 = u64::MAX;

/// What was decided last, and of what.
#[derive(Clone, Copy, Debug)]
struct Last {
    addresses: [u8; 12],
    from: PortId,
    segment: Segment,
    now_ns: u64,
    decision: Decision,
}

/// The table of a learning switch.
#[derive(Debug)]
pub struct Switch {
    buckets: Box<[[Entry; WAYS]]>,
    /// Frames mostly come many at a time from one sender to one receiver: what holds for one holds for the next, as long as
    /// neither the table nor the time has changed.
    last: Option<Last>,
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

fn key(segment: Segment, mac: Mac) -> u64 {
    mac.bits() | u64::from(segment.0) << 48
}

fn bucket(key: u64) -> usize {
    // Fibonacci hashing: the upper bits of the product depend on all of the key's.
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize % BUCKETS
}

impl Switch {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self { buckets: vec![[NONE; WAYS]; BUCKETS].into_boxed_slice(), last: None }
    }

    /// Decides where a frame goes, and remembers where its sender is. `None` for a frame without addresses.
    #[inline]
    pub fn decide(&mut self, from: PortId, segment: Segment, now_ns: u64, frame: &[u8]) -> Option<Decision> {
        let addresses = *frame.first_chunk::<12>()?;
        if let Some(last) = &self.last
            && last.addresses == addresses
            && (last.from, last.segment, last.now_ns) == (from, segment, now_ns)
        {
            return Some(last.decision);
        }
        let decision = self.look_up(from, segment, now_ns, addresses);
        self.last = Some(Last { addresses, from, segment, now_ns, decision });
        Some(decision)
    }

    fn look_up(&mut self, from: PortId, segment: Segment, now_ns: u64, addresses: [u8; 12]) -> Decision {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = addresses;
        let (to, source) = (Mac([a, b, c, d, e, f]), Mac([g, h, i, j, k, l]));
        if !source.is_group() {
            self.learn(from, key(segment, source), now_ns);
        }
        if to.is_group() {
            return Decision::Flood;
        }
        let wanted = key(segment, to);
        let found = self.buckets[bucket(wanted)].iter().find(|e| e.key == wanted && fresh(e, now_ns));
        match found {
            Some(entry) if entry.port == from => Decision::Nowhere,
            Some(entry) => Decision::To(entry.port),
            None => Decision::Flood,
        }
    }

    fn learn(&mut self, from: PortId, key: u64, now_ns: u64) {
        let entries = &mut self.buckets[bucket(key)];
        if let Some(entry) = entries.iter_mut().find(|e| e.key == key) {
            if entry.seen_ns != PINNED {
                entry.seen_ns = now_ns;
                entry.port = from;
            }
            return;
        }
        if let Some(oldest) = entries.iter_mut().min_by_key(|e| e.seen_ns)
            && oldest.seen_ns != PINNED
        {
            *oldest = Entry { key, port: from, seen_ns: now_ns };
        }
    }

    /// Says where an address is, for as long as the port exists, whoever else claims it.
    pub fn pin(&mut self, port: PortId, segment: Segment, mac: Mac) {
        self.last = None;
        let key = key(segment, mac);
        let entries = &mut self.buckets[bucket(key)];
        let slot = match entries.iter().position(|e| e.key == key) {
            Some(at) => Some(&mut entries[at]),
            None => entries.iter_mut().min_by_key(|e| e.seen_ns),
        };
        if let Some(slot) = slot
            && (slot.seen_ns != PINNED || slot.key == key)
        {
            *slot = Entry { key, port, seen_ns: PINNED };
        }
    }

    /// Forgets where an address is, if it is behind this port.
    pub fn unpin(&mut self, port: PortId, segment: Segment, mac: Mac) {
        self.last = None;
        let key = key(segment, mac);
        for entry in &mut self.buckets[bucket(key)] {
            if entry.key == key && entry.port == port {
                *entry = NONE;
            }
        }
    }

    /// Forgets all addresses behind a port.
    pub fn forget(&mut self, port: PortId) {
        self.last = None;
        for entry in self.buckets.iter_mut().flatten() {
            if entry.key != 0 && entry.port == port {
                *entry = NONE;
            }
        }
    }
}

fn fresh(entry: &Entry, now_ns: u64) -> bool {
    entry.seen_ns == PINNED || now_ns.saturating_sub(entry.seen_ns) < AGE_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAN: Segment = Segment(1);

    fn frame(to: u8, from: u8) -> [u8; 14] {
        [2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0]
    }

    #[test]
    fn it_learns_and_forgets() {
        let mut switch = Switch::new();
        let (a, b) = (PortId(1), PortId(2));
        assert_eq!(switch.decide(a, LAN, 0, &frame(2, 1)), Some(Decision::Flood));
        assert_eq!(switch.decide(b, LAN, 0, &frame(1, 2)), Some(Decision::To(a)));
        assert_eq!(switch.decide(a, LAN, 0, &frame(2, 1)), Some(Decision::To(b)));
        assert_eq!(switch.decide(b, LAN, 0, &frame(2, 3)), Some(Decision::Nowhere));
        assert_eq!(switch.decide(a, Segment(2), 0, &frame(2, 1)), Some(Decision::Flood), "another segment");
        assert_eq!(switch.decide(a, LAN, AGE_NS, &frame(2, 1)), Some(Decision::Flood), "it aged");
        switch.forget(a);
        assert_eq!(switch.decide(b, LAN, 1, &frame(1, 2)), Some(Decision::Flood));
        assert_eq!(switch.decide(a, LAN, 1, &[0xff; 14]), Some(Decision::Flood), "broadcast");
        assert_eq!(switch.decide(a, LAN, 1, &[2; 11]), None, "no frame");
    }

    #[test]
    fn pinned_addresses_stay_where_they_are() {
        let mut switch = Switch::new();
        let (guest, thief, other) = (PortId(1), PortId(2), PortId(3));
        switch.pin(guest, LAN, Mac([2, 0, 0, 0, 0, 1]));
        for n in 0..100_000u32 {
            let [a, b, c, d] = n.to_be_bytes();
            let flood = [2, 0, 0, 0, 0, 9, 2, 9, a, b, c, d, 8, 0];
            switch.decide(thief, LAN, u64::from(n), &flood);
        }
        switch.decide(thief, LAN, 7, &frame(9, 1));
        assert_eq!(switch.decide(other, LAN, 8, &frame(1, 3)), Some(Decision::To(guest)));
    }

    #[test]
    fn what_is_repeated_is_what_would_be_decided_anew() {
        let (mut switch, mut anew) = (Switch::new(), Switch::new());
        let mut seed = 1u32;
        let mut pick = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        let (mut now_ns, mut repeated) = (0, 0);
        let mut asked = (PortId(0), Segment(0), frame(0, 1));
        for _ in 0..50_000 {
            let (port, segment) = (PortId(pick(3) as u16), Segment(pick(2) as u16));
            let mac = Mac([2, 0, 0, 0, 0, pick(3) as u8]);
            match pick(40) {
                0 => [&mut switch, &mut anew].map(|switch| switch.pin(port, segment, mac)),
                1 => [&mut switch, &mut anew].map(|switch| switch.unpin(port, segment, mac)),
                2 => [&mut switch, &mut anew].map(|switch| switch.forget(port)),
                3 => {
                    now_ns += u64::from(pick(3)) * (AGE_NS / 2);
                    continue;
                }
                _ => {
                    // Often the same once more: whatever else has happened, it counts.
                    if pick(2) == 0 {
                        asked = (port, segment, frame(pick(3) as u8, mac.0[5]));
                    }
                    let (port, segment, frame) = &asked;
                    let (port, segment) = (*port, *segment);
                    for _ in 0..=pick(3) {
                        anew.last = None;
                        let decided = switch.decide(port, segment, now_ns, frame);
                        assert_eq!(decided, anew.decide(port, segment, now_ns, frame));
                        repeated += 1;
                    }
                    continue;
                }
            };
        }
        assert!(repeated > 50_000);
    }
}
