//! A bound on delay, made into a container size, a deadline and a queue limit that follow what is observed.
//!
//! Three things are learned, each with hysteresis, so that noise moves nothing:
//! * from the *arrival rate*, how many packets a container can expect within the bound, in powers of two. A container
//!   goes out when it has them; where a second packet is not to be expected in time, the first goes at once;
//! * from how late deadlines were met, how much of the bound is kept free as a *guard*;
//! * from how fast a busy guest takes containers, how many bytes may be *queued* for it: what is beyond them would be
//!   handed over too late, and is refused (a source that can wait does).
//!
//! The bound is on the time between a packet's acceptance and the end of the copy into the guest's page. The idea of
//! tuning size against delay is the papers' (IM 2013, TPDS 2014); the rules are our own. It knows numbers only.

use crate::aggregate::REGION_BYTES;

/// The most packets that a container waits for, as a power of two.
const MAX_LEVEL: u32 = 10;
/// The least that may be queued for a guest: what any guest takes in little time.
const LEAST_QUEUE_BYTES: usize = 8192;
/// What a guest is taken to take until it has shown what it does, in bytes a microsecond: a quarter of a million
/// small packets a second.
const FIRST_BYTES_PER_US: u64 = 16;
/// The least guard: a deadline is no more exact than this.
const LEAST_GUARD_NS: u64 = 2000;

/// What is learned about one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slo {
    bound_ns: u64,
    guard_ns: u64,
    /// A container goes out when it has two to the power of this many packets.
    level: u32,
    /// How many packets are expected within the budget, in sixteenths.
    expected: u64,
    /// How long a container may be open.
    hold_ns: u64,
    /// The running sample of arrivals.
    since_ns: u64,
    arrived: u64,
    queue_bytes: usize,
}

/// A container that was handed over, as far as it teaches something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Time from its first packet until it was closed.
    pub open_ns: u64,
    /// Time from then until its copy was done.
    pub wait_ns: u64,
    /// Bytes that were to be copied when it was closed, its own included.
    pub queued_bytes: usize,
    /// Its own.
    pub bytes: usize,
    /// Why it was closed.
    pub cause: Cause,
    /// When it was handed over.
    pub turn: Turn,
}

/// Whether a container had to wait for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It went out in the pass that closed it.
    Same,
    /// The guest had no buffers for it then.
    Later,
}

/// Why a container was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its time had come.
    Deadline,
    /// Anything else.
    Other,
}

impl Slo {
    /// Makes one that knows nothing yet: packets go out at once, and the queue is short.
    pub fn new(bound_ns: u64) -> Self {
        let mut this = Self {
            bound_ns,
            guard_ns: 0,
            level: 0,
            expected: 0,
            hold_ns: 0,
            since_ns: 0,
            arrived: 0,
            queue_bytes: (bound_ns / 2000 * FIRST_BYTES_PER_US) as usize,
        };
        this.queue_bytes = this.queue_bytes.clamp(LEAST_QUEUE_BYTES, REGION_BYTES);
        this.set_guard(bound_ns / 8);
        this
    }

    /// Returns how many packets a container waits for.
    pub fn target(&self) -> usize {
        1 << self.level
    }

    /// Returns for how long a container may be open; less than the bound.
    pub fn hold_ns(&self) -> u64 {
        self.hold_ns
    }

    /// Returns how many bytes may be queued.
    pub fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// Counts a packet that arrived.
    #[inline]
    pub fn arrive(&mut self) {
        self.arrived += 1;
    }

    /// Looks at the rate; to be called before a decision about an open container.
    pub fn look(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.since_ns);
        if elapsed_ns < self.bound_ns {
            return;
        }
        let budget_ns = self.bound_ns - self.guard_ns;
        let sample = (u128::from(self.arrived) * u128::from(budget_ns) * 16 / u128::from(elapsed_ns)) as u64;
        // After a silence, what was before it says nothing.
        let silence = elapsed_ns > 8 * self.bound_ns;
        self.expected = if silence { sample } else { (3 * self.expected + sample) / 4 };
        (self.since_ns, self.arrived) = (now_ns, 0);
        let whole = |sixteenths: u64| (sixteenths / 16).max(1).ilog2().min(MAX_LEVEL);
        // A step is taken when the rate is an eighth beyond it: of 8 packets to 16, that is at 18, and back at 14.
        let (up, down) = (whole(self.expected * 8 / 9), whole(self.expected * 8 / 7));
        self.level = self.level.clamp(up, down.max(up));
        self.set_hold();
    }

    /// Returns the longest that a container may be open: twice what its packets should take to come, so that the
    /// last ones of a burst do not wait for the whole bound.
    fn set_hold(&mut self) {
        let budget_ns = self.bound_ns - self.guard_ns;
        let filling_ns = (u128::from(budget_ns) << self.level << 4) / u128::from(self.expected.max(1));
        self.hold_ns = budget_ns.min((2 * filling_ns).try_into().unwrap_or(u64::MAX));
    }

    fn set_guard(&mut self, guard_ns: u64) {
        let least = (self.bound_ns / 16).max(LEAST_GUARD_NS);
        let most = self.bound_ns / 2;
        self.guard_ns = guard_ns.max(least).min(most);
        self.set_hold();
    }

    /// Learns from a container that was handed over.
    pub fn learn(&mut self, handed: &Handed) {
        if handed.cause == Cause::Deadline && handed.queued_bytes == handed.bytes {
            // Nothing was before it: what came after its deadline is our own slowness.
            let slip_ns = handed.open_ns.saturating_sub(self.hold_ns) + handed.wait_ns;
            // Up at once, and a quarter further; down slowly.
            let guard_ns = if slip_ns > self.guard_ns {
                slip_ns + slip_ns / 4
            } else {
                self.guard_ns - (self.guard_ns - slip_ns) / 64
            };
            self.set_guard(guard_ns);
        }
        let total_ns = handed.open_ns + handed.wait_ns;
        if total_ns > self.bound_ns / 4 * 3 && handed.wait_ns > handed.open_ns {
            // It waited for what was queued before it. As much as would be handed over in half of the bound.
            let fair =
                handed.queued_bytes as u128 * u128::from(self.bound_ns / 2) / u128::from(handed.wait_ns);
            let fair = usize::try_from(fair).unwrap_or(usize::MAX);
            self.queue_bytes = self.queue_bytes.min(fair).max(LEAST_QUEUE_BYTES);
        } else if handed.turn == Turn::Later
            && total_ns < self.bound_ns / 2
            && handed.queued_bytes > self.queue_bytes / 4 * 3
        {
            // The limit was met, the guest was waited for, and there was time left. What went straight into its ring
            // says nothing of how fast it takes things out.
            self.queue_bytes = (self.queue_bytes + self.queue_bytes / 8).min(REGION_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND_NS: u64 = 1_000_000;

    /// Lets packets arrive at a rate for some time, and returns the targets that were passed through.
    fn at_rate(slo: &mut Slo, from_ns: u64, gap_ns: u64, for_ns: u64) -> Vec<usize> {
        let mut targets = vec![slo.target()];
        for n in 0..for_ns / gap_ns {
            slo.arrive();
            slo.look(from_ns + n * gap_ns);
            if targets.last() != Some(&slo.target()) {
                targets.push(slo.target());
            }
        }
        targets
    }

    #[test]
    fn the_size_follows_the_rate_and_a_lone_packet_waits_for_nobody() {
        let mut slo = Slo::new(BOUND_NS);
        assert_eq!(slo.target(), 1);
        let mut now_ns = 5_000_000;
        for (rate, least, most) in [
            (100, 1, 1),
            (1000, 1, 1),
            (10_000, 4, 8),
            (100_000, 64, 64),
            (1_000_000, 512, 512),
            (1000, 1, 1),
        ] {
            at_rate(&mut slo, now_ns, 1_000_000_000 / rate, 100_000_000);
            now_ns += 100_000_000;
            assert!((least..=most).contains(&slo.target()), "{} at {rate} a second", slo.target());
            assert!(slo.hold_ns() < BOUND_NS);
            let filling_ns = slo.target() as u64 * 1_000_000_000 / rate;
            assert!(slo.target() == 1 || filling_ns < slo.hold_ns(), "there is time for as many: {slo:?}");
        }
    }

    #[test]
    fn noise_around_a_step_moves_nothing() {
        let mut slo = Slo::new(BOUND_NS);
        // 16 packets within the budget: just at a step.
        at_rate(&mut slo, 0, 54_700, 50_000_000);
        let settled = slo.target();
        // A tenth up and down: no step either way.
        for round in 1..100 {
            let gap_ns = if round % 2 == 0 { 50_000 } else { 60_000 };
            assert_eq!(at_rate(&mut slo, round * 50_000_000, gap_ns, 50_000_000), [settled]);
        }
    }

    #[test]
    fn a_rate_at_a_step_makes_one_step_at_most() {
        for gap_ns in (20_000..80_000).step_by(500) {
            let mut slo = Slo::new(BOUND_NS);
            at_rate(&mut slo, 0, gap_ns, 50_000_000);
            let later = at_rate(&mut slo, 50_000_000, gap_ns, 1_000_000_000);
            assert_eq!(later.len(), 1, "at one packet in {gap_ns} ns: {later:?}");
        }
    }

    #[test]
    fn the_first_packets_after_a_silence_go_at_once() {
        let mut slo = Slo::new(BOUND_NS);
        at_rate(&mut slo, 0, 10_000, 50_000_000);
        assert_eq!(slo.target(), 64);
        slo.arrive();
        slo.look(1_000_000_000);
        assert_eq!(slo.target(), 1);
    }

    #[test]
    fn deadlines_that_are_met_late_come_earlier_and_recover() {
        let mut slo = Slo::new(BOUND_NS);
        at_rate(&mut slo, 0, 100_000, 50_000_000);
        let before = slo.hold_ns();
        let met = |slo: &Slo, slip_ns| Handed {
            open_ns: slo.hold_ns() + slip_ns,
            wait_ns: 0,
            queued_bytes: 500,
            bytes: 500,
            cause: Cause::Deadline,
            turn: Turn::Same,
        };
        slo.learn(&met(&slo, 200_000));
        assert!(slo.hold_ns() + 200_000 < BOUND_NS && slo.hold_ns() < before, "{slo:?}");
        for _ in 0..1000 {
            slo.learn(&met(&slo, 1000));
        }
        assert!(slo.hold_ns() > before, "{slo:?}");
        slo.learn(&met(&slo, 10 * BOUND_NS));
        assert!(slo.hold_ns() >= BOUND_NS / 4, "half of the bound is for filling, whatever happens: {slo:?}");
        assert_eq!(slo.queue_bytes(), Slo::new(BOUND_NS).queue_bytes(), "and no packet is refused for it");
    }

    /// A source that never stops and a guest that takes so many bytes a second: containers of 16 KiB are closed as
    /// soon as there is room.
    fn saturate(slo: &mut Slo, bytes_per_ms: u64, containers: usize) -> Vec<u64> {
        const OWN: usize = 16_384;
        let (mut now_ns, mut waits) = (0, Vec::new());
        let mut queue = std::collections::VecDeque::new();
        let mut queued = 0;
        for _ in 0..containers {
            while queued < slo.queue_bytes() {
                queued += OWN;
                queue.push_back((now_ns, queued));
            }
            let (closed_ns, queued_bytes) = queue.pop_front().unwrap();
            now_ns += OWN as u64 * 1_000_000 / bytes_per_ms;
            queued -= OWN;
            let wait_ns = now_ns - closed_ns;
            waits.push(wait_ns);
            let (cause, turn) = (Cause::Other, Turn::Later);
            slo.learn(&Handed { open_ns: 0, wait_ns, queued_bytes, bytes: OWN, cause, turn });
        }
        waits
    }

    #[test]
    fn the_queue_shrinks_to_what_a_slow_guest_takes_in_time() {
        for bytes_per_ms in [40_000, 80_000, 200_000] {
            let mut slo = Slo::new(BOUND_NS);
            let waits = saturate(&mut slo, bytes_per_ms, 2000);
            let late = waits.iter().filter(|wait| **wait > BOUND_NS).count();
            assert_eq!(late, 0, "at {bytes_per_ms} bytes a ms: {:?}", &waits[..64]);
        }
        // It grows when the guest is quick, and shrinks when it no longer is.
        let mut slo = Slo::new(BOUND_NS);
        saturate(&mut slo, 4_000_000, 500);
        assert_eq!(slo.queue_bytes(), REGION_BYTES);
        let waits = saturate(&mut slo, 40_000, 200);
        assert!(waits[..16].iter().any(|wait| *wait > BOUND_NS), "it had to learn: {:?}", &waits[..16]);
        assert!(
            waits[REGION_BYTES / 16_384 + 4..].iter().all(|wait| *wait <= BOUND_NS),
            "and did: {waits:?}"
        );
        let small = slo.queue_bytes();
        saturate(&mut slo, 4_000_000, 500);
        assert!(slo.queue_bytes() > 4 * small, "{small} to {}", slo.queue_bytes());
    }
}
