//! The unikernel: brings the machine up, then runs what the command line asks for.
#![no_std]
#![no_main]

extern crate alloc;

mod console;
mod events;
mod exit;
mod fault;
mod grants;
mod hypercall;
mod idle;
mod machine;
mod memory;
mod serial;
mod shared_info;
mod time;
mod toolstack;
mod xenstore;

use drayage_entry::BootInfo;

use console::println;

/// Where the entry code hands over.
#[unsafe(no_mangle)]
extern "Rust" fn drayage_main(boot: BootInfo) -> ! {
    machine::start(boot);
    println!("command line: {}", machine::command_line());
    if let Ok(name) = xenstore::read("name") {
        println!("domain: {name}, number {}", machine::domain_id().unwrap_or_default());
    }
    println!("time: {} ns, {:?} ns since 1970", time::now_ns(), time::wall_clock_ns());
    loop {
        while let Some(event) = xenstore::take_event() {
            if event.token == toolstack::TOKEN {
                toolstack::look();
            }
        }
        time::sleep_until(None, &[]);
    }
}
