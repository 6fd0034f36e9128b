//! Finds the highest rate at which hardly a packet is lost. Knows nothing of how packets are sent.

use anyhow::Result;

/// Loss that still counts as none: one packet in a hundred.
const TOLERATED: f64 = 0.01;

/// Steps of the bisection: the result is then within a tenth of the best rate, mostly much closer.
const STEPS: u32 = 4;

/// What one stream of packets came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measurement {
    /// Packets that left the source.
    pub sent: u64,
    /// Packets that the application read.
    pub received: u64,
    /// From the first packet sent to the last received.
    pub elapsed_ns: u64,
    /// Packets lost at places that count what they lose, by place.
    pub lost: Vec<(String, u64)>,
    /// Packets per container; 1 without containers, where each travels alone.
    pub packets_per_container: f64,
}

impl Measurement {
    /// Returns packets per second of the machine's time.
    pub fn pps(&self) -> f64 {
        self.received as f64 * 1e9 / self.elapsed_ns.max(1) as f64
    }

    /// Returns packets per second that were offered.
    fn offered(&self) -> f64 {
        self.sent as f64 * 1e9 / self.elapsed_ns.max(1) as f64
    }

    /// Returns the part of the packets that did not arrive.
    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }

    /// Returns how many packets neither arrived nor were counted as lost.
    pub fn unaccounted(&self) -> i64 {
        let lost: u64 = self.lost.iter().map(|(_, count)| count).sum();
        self.sent as i64 - self.received as i64 - lost as i64
    }
}

/// A measurement with the rate at which packets were offered.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// What came of it.
    pub measurement: Measurement,
    /// Packets a second; none when the source was slowed down by the receiver alone.
    pub rate: Option<u64>,
}

/// Measures at the highest rate with less than one percent of loss: unlimited where the receiver
/// slows the source down, else found by bisection. Every measurement is handed to `inspect`.
pub fn highest_rate(
    mut measure: impl FnMut(Option<u64>) -> Result<Measurement>,
    mut inspect: impl FnMut(&Measurement),
) -> Result<Found> {
    search(&mut |rate| {
        let measurement = measure(rate)?;
        inspect(&measurement);
        anyhow::Ok(Found { measurement, rate })
    })
}

/// As [`highest_rate`], beginning at a rate that was the highest in a similar case: where it is not far off, fewer
/// measurements do.
pub fn highest_rate_near(
    near: u64,
    mut measure: impl FnMut(Option<u64>) -> Result<Measurement>,
    mut inspect: impl FnMut(&Measurement),
) -> Result<Found> {
    let mut attempt = |rate| {
        let measurement = measure(rate)?;
        inspect(&measurement);
        anyhow::Ok(Found { measurement, rate })
    };
    let first = attempt(Some(near.max(1)))?;
    let mut rates = Bracket { low: near as f64 / 2.5, high: near as f64 };
    let mut best = None;
    let mut steps = 3;
    if first.measurement.loss() <= TOLERATED {
        rates = Bracket { low: near as f64, high: near as f64 * 1.3 };
        if first.measurement.pps() < 0.9 * rates.low {
            return Ok(first);
        }
        best = Some(first);
        steps = 2;
    }
    let top = rates.high;
    let found = rates.narrow(steps, best, &mut attempt)?;
    // Everything was lost, or nothing even at the top: the other case is not like this one.
    match found {
        Some(found) if rates.high < top || found.measurement.pps() < 0.9 * rates.low => Ok(found),
        _ => search(&mut attempt),
    }
}

/// Between what rates the highest lies.
#[derive(Debug, Clone, Copy)]
struct Bracket {
    low: f64,
    high: f64,
}

impl Bracket {
    /// Halves the bracket some times, and returns the best that lost hardly anything.
    fn narrow(
        &mut self,
        steps: u32,
        mut best: Option<Found>,
        attempt: &mut impl FnMut(Option<u64>) -> Result<Found>,
    ) -> Result<Option<Found>> {
        for _ in 0..steps {
            let rate = (self.low * self.high).sqrt();
            let found = attempt(Some((rate as u64).max(1)))?;
            if found.measurement.loss() > TOLERATED {
                self.high = rate;
                continue;
            }
            // What is offered beyond what the machine can send does not count as more.
            let saturated = found.measurement.pps() < 0.9 * rate;
            self.low = rate;
            if best.as_ref().is_none_or(|best| best.measurement.pps() < found.measurement.pps()) {
                best = Some(found);
            }
            if saturated {
                break;
            }
        }
        Ok(best)
    }
}

fn search(attempt: &mut impl FnMut(Option<u64>) -> Result<Found>) -> Result<Found> {
    let unlimited = attempt(None)?;
    if unlimited.measurement.loss() <= TOLERATED {
        return Ok(unlimited);
    }
    // At overload part of the work is wasted on what is lost, so the best rate lies above this one. The source alone
    // bounds it, and so does the work that is not wasted.
    let low = unlimited.measurement.pps();
    let mut rates = Bracket { low, high: (low * 4.0).min(unlimited.measurement.offered()) };
    match rates.narrow(STEPS, None, attempt)? {
        Some(found) => Ok(found),
        // Bursts can cost packets even at the rate that overload left: slower until nothing is lost.
        None => slower(attempt, unlimited, low * 0.97),
    }
}

fn slower(
    attempt: &mut impl FnMut(Option<u64>) -> Result<Found>,
    unlimited: Found,
    mut rate: f64,
) -> Result<Found> {
    for _ in 0..STEPS {
        let found = attempt(Some((rate as u64).max(1)))?;
        if found.measurement.loss() <= TOLERATED {
            return Ok(found);
        }
        rate *= 0.8;
    }
    Ok(unlimited)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A receiver that takes a given rate and loses the rest.
    fn receiver(capacity: f64) -> impl FnMut(Option<u64>) -> Result<Measurement> {
        move |rate| {
            let offered = rate.map_or(300_000.0, |rate| (rate as f64).min(300_000.0));
            let sent = 20_000;
            let elapsed_ns = (sent as f64 * 1e9 / offered) as u64;
            let received = (sent as f64 * (capacity / offered).min(1.0)) as u64;
            let lost = vec![("here".to_owned(), sent - received)];
            Ok(Measurement { sent, received, elapsed_ns, lost, packets_per_container: 0.0 })
        }
    }

    #[test]
    fn a_source_that_is_slowed_down_is_measured_once() {
        let mut count = 0;
        let found = highest_rate(receiver(400_000.0), |_| count += 1).unwrap();
        assert_eq!((found.rate, count), (None, 1));
    }

    #[test]
    fn the_best_rate_is_found_within_a_tenth() {
        for capacity in [20_000.0, 55_000.0, 150_000.0, 280_000.0] {
            let found = highest_rate(receiver(capacity), |_| ()).unwrap();
            assert!(found.measurement.loss() <= TOLERATED);
            let rate = found.rate.unwrap() as f64;
            assert!((0.9 * capacity..=1.02 * capacity).contains(&rate), "{rate} of {capacity}");
        }
    }

    #[test]
    fn a_similar_case_saves_measurements() {
        for (capacity, near, most) in [
            (50_000.0, 50_000, 3),
            (50_000.0, 45_000, 3),
            (50_000.0, 60_000, 4),
            (50_000.0, 30_000, 9),
            (50_000.0, 200_000, 10),
        ] {
            let mut count = 0;
            let found = highest_rate_near(near, receiver(capacity), |_| count += 1).unwrap();
            assert!(found.measurement.loss() <= TOLERATED);
            let rate = found.rate.unwrap() as f64;
            assert!((0.85 * capacity..=1.02 * capacity).contains(&rate), "{rate} of {capacity} near {near}");
            assert!(count <= most, "{count} measurements near {near}");
        }
    }

    #[test]
    fn what_nobody_counted_is_seen() {
        let lost = vec![("queue".to_owned(), 3), ("socket".to_owned(), 2)];
        let mut measurement = Measurement { sent: 10, received: 5, lost, ..Measurement::default() };
        assert_eq!(measurement.unaccounted(), 0);
        measurement.received = 4;
        assert_eq!(measurement.unaccounted(), 1);
    }
}
