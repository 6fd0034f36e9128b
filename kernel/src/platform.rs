//! What connects the driver (drayage-netfront) to the machine: its `Platform` and `Store` over Xen's grants,
//! event channels and xenstore. It knows no ring and no frame.

use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;

use drayage_netfront::platform::{
    Access, DomainId, End, GrantRef, Platform, Port, RawPool, Refused, StillInUse, Store, StoreError,
    Transaction,
};
use spin::Mutex;

use crate::grants::{self, GrantAccess, GrantError};
use crate::hypercall::XenError;
use crate::memory::{MapError, Pool, paging};
use crate::{events, time, xenstore};

/// The machine under the driver. It holds nothing: there is one Xen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Xen;

/// The pools that the driver holds, by their first address.
static POOLS: Mutex<Vec<Pool>> = Mutex::new(Vec::new());

// SAFETY: a pool's pages are mapped in a window of their own, writable, until it is dropped by `free_pool`, and
// nothing but the driver knows its address. Xen respects the grant table: once an entry's flags are 0 and were
// not in use, nobody maps or copies the frame, and a copy that had begun is finished (public/grant_table.h,
// "Invalidating an unused ro GTF_permit_access entry"). An entry with GTF_readonly admits no writes.
unsafe impl Platform for Xen {
    fn alloc_pool(&self, pages: usize, mirror: usize) -> Result<RawPool, Refused> {
        let pool = Pool::allocate(pages, mirror).map_err(|error| match error {
            MapError::Refused(error) => refused(error),
            _ => Refused::NoMemory,
        })?;
        let raw = RawPool { base: pool.start(), pages, mirrored: mirror };
        POOLS.lock().push(pool);
        Ok(raw)
    }

    unsafe fn free_pool(&self, pool: RawPool) {
        POOLS.lock().retain(|known| known.start() != pool.base);
    }

    unsafe fn grant(&self, peer: DomainId, page: NonNull<u8>, access: Access) -> Result<GrantRef, Refused> {
        let address = page.as_ptr().expose_provenance() as u64;
        let frame = paging::frame_of(address).ok_or(Refused::NoMemory)?;
        // SAFETY: our caller vouches that it is a page of a pool, which exists to be shared.
        let reference = unsafe { grants::grant(peer.0, frame, grant_access(access)) };
        reference.map(GrantRef).map_err(|error| match error {
            GrantError::Refused(error) => refused(error),
            GrantError::Map(_) => Refused::NoMemory,
            _ => Refused::NoGrants,
        })
    }

    unsafe fn regrant(&self, grant: GrantRef, access: Access) {
        // SAFETY: our caller vouches that the reference is claimed and revoked.
        unsafe { grants::regrant(grant.0, grant_access(access)) };
    }

    fn revoke(&self, grant: GrantRef) -> Result<(), StillInUse> {
        grants::revoke(grant.0).map_err(|grants::StillInUse| StillInUse)
    }

    fn release(&self, grant: GrantRef) -> Result<(), StillInUse> {
        grants::release(grant.0).map_err(|grants::StillInUse| StillInUse)
    }

    fn alloc_unbound(&self, peer: DomainId) -> Result<Port, Refused> {
        const ENOSPC: i64 = -28;
        events::allocate(peer.0).map(|port| Port(port.0)).map_err(|error| match error {
            XenError(ENOSPC) => Refused::NoPorts,
            error => refused(error),
        })
    }

    fn close(&self, port: Port) {
        events::close(events::Port(port.0));
    }

    fn notify(&self, port: Port) {
        events::notify(events::Port(port.0));
    }

    fn take_pending(&self, port: Port) -> bool {
        events::take_pending(events::Port(port.0))
    }

    fn now_ns(&self) -> u64 {
        // For how long containers are held is told by the round, and two looks for every one of them are saved.
        time::recent_ns()
    }
}

impl Store for Xen {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        xenstore::read_bytes(transaction(within), path).map_err(store_error)
    }

    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError> {
        xenstore::write(transaction(within), path, value).map_err(store_error)
    }

    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        xenstore::remove(transaction(within), path).map_err(store_error)
    }

    fn directory(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        xenstore::directory(transaction(within), path).map_err(store_error)
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        xenstore::watch(path, token).map_err(store_error)
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        xenstore::unwatch(path, token).map_err(store_error)
    }

    fn begin(&self) -> Result<Transaction, StoreError> {
        xenstore::begin().map(|open| Transaction(open.0)).map_err(store_error)
    }

    fn end(&self, transaction: Transaction, end: End) -> Result<(), StoreError> {
        let end = match end {
            End::Commit => xenstore::End::Commit,
            End::Abort => xenstore::End::Abort,
        };
        xenstore::end(xenstore::Transaction(transaction.0), end).map_err(store_error)
    }
}

fn grant_access(access: Access) -> GrantAccess {
    match access {
        Access::ReadOnly => GrantAccess::ReadOnly,
        Access::ReadWrite => GrantAccess::ReadWrite,
    }
}

fn refused(error: XenError) -> Refused {
    Refused::Hypervisor(i32::try_from(error.0).unwrap_or(i32::MIN))
}

fn transaction(within: Transaction) -> xenstore::Transaction {
    xenstore::Transaction(within.0)
}

fn store_error(error: xenstore::StoreError) -> StoreError {
    let xenstore::StoreError::Refused(errno) = error else { return StoreError::Failed };
    match errno.as_str() {
        "ENOENT" => StoreError::Missing,
        "EAGAIN" => StoreError::Again,
        "EACCES" | "EPERM" => StoreError::Denied,
        "EQUOTA" | "ENOSPC" | "E2BIG" => StoreError::Quota,
        _ => StoreError::Failed,
    }
}
