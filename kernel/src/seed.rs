//! The seed of everything that must differ between two boots: TCP sequence numbers, ports, DHCP transactions.
//! It knows where chance may come from and how to stir it; not how a processor is asked.

/// Where a seed came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedSource {
    /// The processor's random number generator.
    Hardware,
    /// The clocks, the domain's number and the jitter of the time stamp counter.
    Jitter,
}

impl core::fmt::Display for SeedSource {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Hardware => "rdrand",
            Self::Jitter => "clock, domain id and tsc jitter",
        })
    }
}

/// What a machine has that differs from boot to boot.
pub struct Chance<'h, 'c> {
    /// The processor's generator, where there is one. It may fail a few times in a row.
    pub hardware: Option<&'h mut dyn FnMut() -> Option<u64>>,
    /// The time stamp counter.
    pub counter: &'c mut dyn FnMut() -> u64,
    /// Nanoseconds since 1970 or since boot, whichever is known.
    pub clock_ns: u64,
    /// The number of the domain, 0 where there is none.
    pub domain: u64,
}

/// How often the processor's generator is asked again; Intel's guide says 10.
const RETRIES: usize = 10;
/// How many readings of the counter are stirred in: each is worth a bit or so.
const READINGS: usize = 256;

/// A 64-bit seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The seed.
    pub value: u64,
    /// Where it came from.
    pub source: SeedSource,
}

impl Seed {
    /// Gathers a seed.
    pub fn gather(chance: Chance<'_, '_>) -> Self {
        let mut pool = Pool::default();
        pool.stir(chance.clock_ns);
        pool.stir(chance.domain);
        let hardware = chance.hardware.and_then(from_hardware);
        if let Some(words) = hardware {
            for word in words {
                pool.stir(word);
            }
            return Self { value: pool.draw(), source: SeedSource::Hardware };
        }
        let mut last = (chance.counter)();
        pool.stir(last);
        for _ in 0..READINGS {
            let now = (chance.counter)();
            pool.stir(now.wrapping_sub(last));
            last = now;
            // Work whose length depends on what was read, so that the next reading differs by more than a
            // constant.
            for _ in 0..(pool.state & 0x1f) {
                core::hint::spin_loop();
            }
        }
        Self { value: pool.draw(), source: SeedSource::Jitter }
    }

    /// Returns a seed of its own for the user with this number.
    pub fn fork(&self, user: u64) -> u64 {
        let mut pool = Pool { state: self.value };
        pool.stir(user);
        pool.draw()
    }
}

/// Returns four words, or nothing when the generator fails or is stuck: some processors return all ones for
/// ever after a suspend (Linux checks for it in arch/x86/kernel/cpu/rdrand.c).
fn from_hardware(generator: &mut dyn FnMut() -> Option<u64>) -> Option<[u64; 4]> {
    let mut words = [0; 4];
    for word in &mut words {
        *word = (0..RETRIES).find_map(|_| generator())?;
    }
    let stuck = words.iter().enumerate().any(|(at, word)| words[..at].contains(word));
    (!stuck).then_some(words)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) over
/// a running sum.
#[derive(Default)]
struct Pool {
    state: u64,
}

impl Pool {
    fn stir(&mut self, word: u64) {
        self.state = mix(self.state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(word));
    }

    fn draw(&mut self) -> u64 {
        self.stir(0);
        self.state
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> impl FnMut() -> u64 {
        let mut now = 1000;
        move || {
            now += 40;
            now
        }
    }

    fn gather(hardware: Option<&mut dyn FnMut() -> Option<u64>>, clock_ns: u64, domain: u64) -> Seed {
        Seed::gather(Chance { hardware, counter: &mut counter(), clock_ns, domain })
    }

    #[test]
    fn a_working_generator_is_used() {
        let mut calls = 0;
        let mut generator = || {
            calls += 1;
            (calls % 3 == 0).then_some(calls)
        };
        let seed = gather(Some(&mut generator), 1, 1);
        assert_eq!(seed.source, SeedSource::Hardware);
        let mut other = {
            let mut next = 100;
            move || {
                next += 1;
                Some(next)
            }
        };
        assert_ne!(seed.value, gather(Some(&mut other), 1, 1).value);
    }

    #[test]
    fn a_stuck_or_silent_generator_is_not_trusted() {
        let mut stuck = || Some(u64::MAX);
        assert_eq!(gather(Some(&mut stuck), 1, 1).source, SeedSource::Jitter);
        let mut silent = || None;
        assert_eq!(gather(Some(&mut silent), 1, 1).source, SeedSource::Jitter);
    }

    #[test]
    fn clock_and_domain_count_without_a_generator() {
        let seeds = [gather(None, 1, 1), gather(None, 2, 1), gather(None, 1, 2)];
        assert_eq!(seeds[0].source, SeedSource::Jitter);
        assert_ne!(seeds[0].value, seeds[1].value);
        assert_ne!(seeds[0].value, seeds[2].value);
        assert_eq!(seeds[0].value, gather(None, 1, 1).value, "the rest of this machine never changes");
    }

    #[test]
    fn users_get_seeds_of_their_own() {
        let seed = Seed { value: 7, source: SeedSource::Jitter };
        assert_ne!(seed.fork(0), seed.fork(1));
        assert_ne!(seed.fork(0), seed.value);
    }
}
