//! What the channel costs in one process: `cargo bench -p drayage-tests`. The last line says what it adds to the
//! stack's own cost, measured in turn.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use drayage_tests::channel::{Setup, Way};
use rustix::time::{ClockId, clock_gettime};

/// Frames of one iteration: several containers of the smallest.
const FRAMES: u64 = 4096;

/// What the channel may add to a frame of 60 bytes, in nanoseconds.
const BOUND_NS: f64 = 25.0;

fn main() {
    // The harness passes this when the benchmarks are only to be tried.
    let trying = std::env::args().any(|word| word == "--test");
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500))
        .configure_from_args();
    let mut group = criterion.benchmark_group("channel");
    group.throughput(Throughput::Elements(FRAMES));
    for frame_bytes in [60, 252, 1514] {
        for (way, name) in Way::ALL {
            let mut setup = Setup::new(way, frame_bytes);
            group.bench_function(BenchmarkId::new(name, frame_bytes), |bencher| {
                bencher.iter(|| setup.run(black_box(FRAMES)));
            });
        }
    }
    group.finish();
    criterion.final_summary();
    if !trying {
        added();
    }
}

/// Returns the CPU time that this process has had, which others on the same machine do not lengthen as they do the time
/// of day.
fn cpu_ns() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Measures the ways in turn, so that what disturbs one disturbs all, and says what the channel adds.
fn added() {
    const ROUNDS: usize = 21;
    let mut setups = [Way::Alone, Way::Channel, Way::Switched].map(|way| Setup::new(way, 60));
    let mut samples = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (setup, samples) in setups.iter_mut().zip(&mut samples) {
            let started = cpu_ns();
            setup.run(16 * FRAMES);
            samples.push((cpu_ns() - started) / (16 * FRAMES) as f64);
        }
    }
    let [alone, channel, switched] = samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples[ROUNDS / 2]
    });
    println!(
        "60-byte packets, CPU time, medians of {ROUNDS} in turn: smoltcp alone {alone:.1} ns; the channel adds {:.1} ns \
         (bound {BOUND_NS} ns), and an uplink with the switch before it {:.1} ns more",
        channel - alone,
        switched - channel
    );
}
