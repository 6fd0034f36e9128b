//! Faults on purpose, and checks of the machine from within, chosen by `selftest=NAME` on the command line. Only
//! in images built with the feature of that name. The verdict is the console's last line, as always.

use alloc::boxed::Box;
use alloc::vec::Vec;

use drayage_entry::PAGE_BYTES;
use drayage_netfront::platform::{Access, DomainId, Platform};

use crate::console::println;
use crate::exit::{Exit, exit};
use crate::memory::{heap, pages};
use crate::platform::Xen;
use crate::{events, grants, hypercall, time, xenstore};

/// Runs what the command line asks for; returns when it asks for nothing.
pub(crate) fn run(command_line: &str) {
    let Some(name) = command_line.split_whitespace().find_map(|word| word.strip_prefix("selftest=")) else {
        return;
    };
    println!("selftest: {name}");
    let result = match name {
        "null" => write_to(8),
        "text" => write_to(run as fn(&str) as usize),
        "rodata" => write_to(b"constant".as_ptr().addr()),
        "execute" => execute_data(),
        "stack" => Err(if overflow(0) == 0 { "the stack has no end" } else { "the stack held" }),
        "panic" => panic!("asked for"),
        "opcode" => invalid_opcode(),
        "allocation" => out_of_memory(),
        "memory" => fill_memory(),
        "heap" => churn_heap(),
        "pool" => mirrored_pool(),
        "grants" => many_grants(),
        "sleep" => sleep(),
        "console" => many_lines(),
        "store" => store(),
        "fail" => Err("asked for"),
        _ => Err("no such selftest"),
    };
    match result {
        Ok(()) => exit(Exit::PowerOff),
        Err(why) => exit(Exit::Failed(format_args!("selftest {name}: {why}"))),
    }
}

type Outcome = Result<(), &'static str>;

fn write_to(address: usize) -> Outcome {
    let target = core::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: none: the write must fault, which is what is being tested.
    unsafe { target.write_volatile(0xcc) };
    Err("the write went through")
}

fn execute_data() -> Outcome {
    let code: Box<[u8; 16]> = Box::new([0xc3; 16]); // ret
    // SAFETY: none: the call must fault, which is what is being tested.
    let function = unsafe { core::mem::transmute::<*const [u8; 16], extern "C" fn()>(&raw const *code) };
    function();
    Err("data was executed")
}

#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 64]);
    if depth == u64::MAX {
        frame[0]
    } else {
        overflow(depth + 1).wrapping_add(core::hint::black_box(frame)[1])
    }
}

fn invalid_opcode() -> Outcome {
    // SAFETY: none: the instruction must fault, which is what is being tested.
    unsafe { core::arch::asm!("ud2") };
    Err("an invalid opcode was executed")
}

fn out_of_memory() -> Outcome {
    let all: Vec<u8> = Vec::with_capacity(1 << 40);
    core::hint::black_box(&all);
    Err("a tebibyte was allocated")
}

/// Allocates all there is, writes a different word to each page, and reads them back.
fn fill_memory() -> Outcome {
    let before = heap::total_bytes() - heap::used_bytes() + pages::free_bytes();
    let mut blocks: Vec<Box<[u64]>> = Vec::with_capacity(4096);
    let mut bytes = 2 << 20;
    while bytes >= 4096 && blocks.len() < blocks.capacity() {
        let mut block: Vec<u64> = Vec::new();
        if block.try_reserve_exact(bytes / 8).is_err() {
            bytes /= 2;
            continue;
        }
        block.resize(bytes / 8, 0);
        blocks.push(block.into_boxed_slice());
    }
    let mut sum = 0;
    for block in &mut blocks {
        let address = block.as_ptr().addr() as u64;
        sum += block.len() as u64 * 8;
        block.iter_mut().enumerate().for_each(|(i, word)| *word = (address + i as u64 * 8) ^ 0x5555);
    }
    for block in &blocks {
        let address = block.as_ptr().addr() as u64;
        if block.iter().enumerate().any(|(i, word)| *word != (address + i as u64 * 8) ^ 0x5555) {
            return Err("a word was not what was written to it");
        }
    }
    println!("selftest: {} of {} KiB allocated, written and read", sum / 1024, before / 1024);
    if sum * 100 < before * 95 { Err("much of the heap could not be allocated") } else { Ok(()) }
}

/// Allocates and frees in disorder, and checks that blocks keep their contents.
fn churn_heap() -> Outcome {
    let used = heap::used_bytes();
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20_000_u64 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        if blocks.len() < 200 || seed & 1 == 0 && blocks.len() < 400 {
            let len = (seed >> 8) % if seed & 0xf0 == 0 { 20_000 } else { 300 } + 1;
            blocks.push(alloc::vec![round as u8; len as usize]);
        } else {
            let block = blocks.swap_remove((seed >> 8) as usize % blocks.len());
            if block.iter().any(|byte| *byte != block[0]) {
                return Err("a block was overwritten");
            }
        }
    }
    drop(blocks);
    if heap::used_bytes() == used { Ok(()) } else { Err("memory leaked") }
}

fn mirrored_pool() -> Outcome {
    const PAGES: usize = 256;
    const MIRROR: usize = 16;
    let page = PAGE_BYTES as usize;
    let free = pages::free_bytes();
    for _ in 0..3 {
        let pool = Xen.alloc_pool(PAGES, MIRROR).map_err(|_| "no pool")?;
        let at = |offset: usize| {
            // SAFETY: callers stay inside the pool and its mirror.
            unsafe { pool.base.as_ptr().add(offset) }
        };
        for i in 0..PAGES {
            // SAFETY: inside the pool, which is ours.
            unsafe { at(i * page + i).cast::<u8>().write_volatile(i as u8) };
        }
        for i in 0..MIRROR {
            // SAFETY: inside the mirror.
            let seen = unsafe { at((PAGES + i) * page + i).read_volatile() };
            if seen != i as u8 {
                return Err("the mirror shows something else");
            }
            // SAFETY: inside the mirror.
            unsafe { at((PAGES + i) * page).write_volatile(0xa0 + i as u8) };
            // SAFETY: inside the pool.
            if unsafe { at(i * page).read_volatile() } != 0xa0 + i as u8 {
                return Err("a write to the mirror is not seen");
            }
        }
        // SAFETY: it came from alloc_pool, and nothing refers to it any more.
        unsafe { Xen.free_pool(pool) };
    }
    // Page tables and the list of pools may have grown in the first round, but no pool may be missing.
    if free - pages::free_bytes() < PAGE_BYTES * 256 { Ok(()) } else { Err("a pool was not given back") }
}

/// Grants more pages than one frame of the table has entries.
fn many_grants() -> Outcome {
    let pool = Xen.alloc_pool(4, 1).map_err(|_| "no pool")?;
    let before = grants::usage();
    let mut references = Vec::new();
    for i in 0..2000 {
        // SAFETY: the page is the pool's.
        let page = unsafe { pool.base.add(i % 4 * PAGE_BYTES as usize) };
        // SAFETY: the page is the pool's, and nobody borrows it.
        let reference = unsafe { Xen.grant(DomainId(0), page, Access::ReadWrite) };
        references.push(reference.map_err(|_| "a grant was refused")?);
    }
    println!("selftest: grant table {before:?} -> {:?}", grants::usage());
    for reference in references {
        Xen.revoke(reference).map_err(|_| "a grant that nobody uses is in use")?;
        // SAFETY: it was just revoked.
        unsafe { Xen.regrant(reference, Access::ReadOnly) };
        Xen.release(reference).map_err(|_| "a grant that nobody uses is in use")?;
    }
    match grants::usage() {
        Some((frames, _, free)) if frames >= 4 && free == frames as usize * 512 - 8 => Ok(()),
        _ => Err("references were lost"),
    }
}

/// Sleeps on the clock, and on an event that this domain sends itself.
fn sleep() -> Outcome {
    let port = events::allocate(hypercall::DOMID_SELF).map_err(|_| "no port")?;
    for ms in [1_u64, 20, 200] {
        let start_ns = time::now_ns();
        let end_ns = start_ns + ms * 1_000_000;
        while time::now_ns() < end_ns {
            events::take_pending(port);
            time::sleep_until(Some(end_ns), &[port]);
        }
        println!("selftest: {ms} ms took {} us", (time::now_ns() - start_ns) / 1000);
    }
    events::close(port);
    Ok(())
}

fn many_lines() -> Outcome {
    for i in 0..3000 {
        println!("selftest: line {i:06} {:=<60}", "");
    }
    Ok(())
}

fn store() -> Outcome {
    use xenstore::{End, NO_TRANSACTION};
    let domid = crate::machine::domain_id().ok_or("no domid")?;
    if xenstore::read("no/such/node").is_ok() {
        return Err("a node that does not exist was read");
    }
    // A guest may write below its own data directory.
    xenstore::watch("data", "selftest").map_err(|_| "no watch")?;
    expect_event("data")?;
    let open = xenstore::begin().map_err(|_| "no transaction")?;
    let long = [b'x'; 1900]; // longer than the ring, shorter than xenstored's quota
    xenstore::write(open, "data/long", &long).map_err(|_| "no write")?;
    xenstore::end(open, End::Commit).map_err(|_| "no commit")?;
    expect_event("data/long")?;
    let open = xenstore::begin().map_err(|_| "no transaction")?;
    xenstore::write(open, "data/gone", b"1").map_err(|_| "no write")?;
    xenstore::end(open, End::Abort).map_err(|_| "no abort")?;
    if xenstore::read_bytes(NO_TRANSACTION, "data/long").ok().as_deref() != Some(&long) {
        return Err("a long value came back changed");
    }
    if xenstore::read("data/gone").is_ok() {
        return Err("an aborted write is there");
    }
    if xenstore::directory(NO_TRANSACTION, "data").map_err(|_| "no directory")?.len() != 1 {
        return Err("the directory has other children");
    }
    // A transaction that read what another writer changed meanwhile must not commit.
    let open = xenstore::begin().map_err(|_| "no transaction")?;
    xenstore::read_bytes(open, "data/long").map_err(|_| "no read")?;
    xenstore::write(NO_TRANSACTION, "data/long", b"changed").map_err(|_| "no write")?;
    xenstore::write(open, "data/long", b"too late").map_err(|_| "no write")?;
    match xenstore::end(open, End::Commit) {
        Err(xenstore::StoreError::Refused(errno)) if errno == "EAGAIN" => {}
        _ => return Err("a transaction that met another one was committed"),
    }
    xenstore::unwatch("data", "selftest").map_err(|_| "no unwatch")?;
    xenstore::remove(NO_TRANSACTION, "data/long").map_err(|_| "no removal")?;
    println!("selftest: domain {domid}");
    Ok(())
}

/// Waits for a watch event whose path ends like this.
fn expect_event(path: &str) -> Outcome {
    let end_ns = time::now_ns() + 10_000_000_000;
    while time::now_ns() < end_ns {
        while let Some(event) = xenstore::take_event() {
            if event.token == "selftest" && event.path.ends_with(path) {
                return Ok(());
            }
        }
        time::sleep_until(Some(end_ns), &[]);
    }
    Err("a watch event is missing")
}
