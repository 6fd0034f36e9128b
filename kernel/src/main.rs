//! The unikernel: brings the machine up, then runs what the command line asks for.
#![no_std]
#![no_main]

extern crate alloc;

mod console;
mod events;
mod exit;
mod fault;
mod grants;
mod guest;
mod hypercall;
mod idle;
mod machine;
mod memory;
mod pc;
mod platform;
mod serial;
mod shared_info;
mod time;
mod toolstack;
mod virtio;
mod xenstore;

use drayage_entry::{BootInfo, Platform};
use drayage_kernel::control::Request;
use drayage_kernel::net::{self, Ended};
use drayage_kernel::seed::{Chance, Seed};
use drayage_kernel::settings::Settings;
use x86_64::instructions::random::RdRand;

use console::{Console, println};
use exit::{Exit, exit};

/// Where the entry code hands over.
#[unsafe(no_mangle)]
extern "Rust" fn drayage_main(boot: BootInfo) -> ! {
    machine::start(boot);
    let settings = read_settings();
    let seed = gather_seed();
    let ended = match machine::platform() {
        Platform::NoXen => match pc::Pc::find() {
            Ok(mut pc) => net::run(&mut pc, &mut Console, &settings, seed),
            Err(error) => exit(Exit::Failed(format_args!("{error}"))),
        },
        Platform::XenPv | Platform::XenPvh => match guest::Guest::new(&settings) {
            Ok(mut guest) => {
                let ended = net::run(&mut guest, &mut Console, &settings, seed);
                guest.close();
                ended
            }
            Err(error) => exit(Exit::Failed(format_args!("vifs cannot be found: {error}"))),
        },
    };
    match ended {
        Ended::Asked(Request::Reboot) => exit(Exit::Reboot),
        Ended::Asked(_) | Ended::Finished => exit(Exit::PowerOff),
    }
}

/// Reads the command line; one that is not understood ends the guest, because a guess could do harm.
fn read_settings() -> Settings {
    let line = machine::command_line();
    println!("command line: {line}");
    if machine::boot_info().command_line.is_truncated() {
        exit(Exit::Failed(format_args!("command line: it is longer than this guest keeps, or not UTF-8")));
    }
    match Settings::parse(line) {
        Ok(settings) => settings,
        Err(error) => exit(Exit::Failed(format_args!("command line: {error}"))),
    }
}

fn gather_seed() -> Seed {
    let mut generator = RdRand::new().map(|rdrand| move || rdrand.get_u64());
    let seed = Seed::gather(Chance {
        hardware: generator.as_mut().map(|generator| generator as &mut dyn FnMut() -> Option<u64>),
        counter: &mut time::tsc,
        clock_ns: time::wall_clock_ns().unwrap_or_else(time::now_ns),
        domain: machine::domain_id().unwrap_or_default().into(),
    });
    // Enough of it to see that two boots differ, and not the seed itself.
    println!("seed: from {}, fingerprint {:08x}", seed.source, seed.fork(u64::MAX) as u32);
    seed
}
