//! What the driver asks of whatever carries it: memory that can be granted, event channels, xenstore, a
//! clock. The kernel implements it over the real Xen, memxen (tests) in memory.
//!
//! It knows no ring, no frame and no network stack. Every method takes `&self`: a platform is a handle
//! (a reference, an `Rc`, an `Arc`, an empty struct), and each vif holds a clone of it.

use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;

/// A domain's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u16);

/// An entry of this domain's grant table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantRef(pub u32);

/// An event channel of this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

/// What the other domain may do with a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read it (`GTF_readonly`).
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// A grant could not be revoked: the other domain still maps the page, or a copy is under way (XSA-396).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillInUse;

/// Why the platform could not do what was asked, on a control path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No memory is left.
    NoMemory,
    /// No grant reference is left.
    NoGrants,
    /// No event channel is left.
    NoPorts,
    /// The hypervisor answered with this error number.
    Hypervisor(i32),
}

impl core::fmt::Display for Refused {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoMemory => write!(f, "no memory left for shared pages"),
            Self::NoGrants => write!(f, "no grant reference left"),
            Self::NoPorts => write!(f, "no event channel left"),
            Self::Hypervisor(errno) => write!(f, "the hypervisor answered with error {errno}"),
        }
    }
}

impl core::error::Error for Refused {}

/// Pages for sharing: contiguous in this program's address space, page-aligned, zeroed, and in nobody else's
/// use.
///
/// It is a plain description; [`Platform::alloc_pool`] says what it promises.
#[derive(Clone, Copy, Debug)]
pub struct RawPool {
    /// The first byte of page 0.
    pub base: NonNull<u8>,
    /// How many pages there are.
    pub pages: usize,
    /// How many of them, from page 0 on, are mapped a second time right behind the last page: the addresses
    /// from `base + pages * 4096` on reach the same memory as those from `base` on. 0 when this platform
    /// cannot do that.
    pub mirrored: usize,
}

/// Memory, grants, event channels and a clock.
///
/// # Implementation safety
/// The driver borrows a page of a pool as `&[u8]` or `&mut [u8]` on the strength of these promises:
/// * A [`RawPool`] that `alloc_pool` returned is valid for reads and writes over `pages + mirrored` pages
///   until `free_pool` takes it back, and nothing else in the program touches it.
/// * Once `revoke` or `release` has returned `Ok`, no other domain can read or write the page through that
///   grant, until the next `grant` or `regrant`; whatever it wrote before is visible.
/// * A page granted [`Access::ReadOnly`] is never written by another domain.
pub unsafe trait Platform {
    /// Allocates `pages` contiguous pages, zeroed, the first `mirror` of them mapped again behind the last.
    /// A platform that cannot mirror returns a pool with `mirrored` 0, which is no error.
    ///
    /// # Errors
    /// [`Refused::NoMemory`].
    fn alloc_pool(&self, pages: usize, mirror: usize) -> Result<RawPool, Refused>;

    /// Takes a pool back.
    ///
    /// # Safety
    /// The pool came from `alloc_pool` of this platform, is freed once, no reference into it is alive, and no
    /// page of it is granted.
    unsafe fn free_pool(&self, pool: RawPool);

    /// Claims a grant reference and grants the page at `page` to `peer`. Control path only.
    ///
    /// # Errors
    /// [`Refused`]; nothing is then granted.
    ///
    /// # Safety
    /// `page` is the address of a page of a pool of this platform. Until the grant is revoked, no reference
    /// into the page is alive, except that a page granted read-only may be borrowed, also mutably.
    unsafe fn grant(&self, peer: DomainId, page: NonNull<u8>, access: Access) -> Result<GrantRef, Refused>;

    /// Grants the page of a revoked reference again, to the same domain. Data path: neither allocates nor
    /// calls the hypervisor.
    ///
    /// # Safety
    /// As for [`grant`](Self::grant); `grant` came from this platform, is not released and is revoked.
    unsafe fn regrant(&self, grant: GrantRef, access: Access);

    /// Takes the page back from the other domain; the reference stays claimed. Data path: neither allocates
    /// nor calls the hypervisor.
    ///
    /// # Errors
    /// [`StillInUse`]: the page stays granted.
    fn revoke(&self, grant: GrantRef) -> Result<(), StillInUse>;

    /// Revokes the grant if it is not revoked, and gives the reference back. Control path.
    ///
    /// # Errors
    /// [`StillInUse`]: the page stays granted and the reference claimed; ask again later.
    fn release(&self, grant: GrantRef) -> Result<(), StillInUse>;

    /// Allocates an event channel that `peer` can bind to.
    ///
    /// # Errors
    /// [`Refused`].
    fn alloc_unbound(&self, peer: DomainId) -> Result<Port, Refused>;

    /// Closes an event channel. A port that is closed already stays so.
    fn close(&self, port: Port);

    /// Sends an event to the other end. One that is not bound loses it, which is no error.
    fn notify(&self, port: Port);

    /// Returns whether the channel is pending, and clears it.
    fn take_pending(&self, port: Port) -> bool;

    /// Returns a monotonic time, in nanoseconds, that moves on at least once in every round of the poll loop. Cheap: no
    /// hypercall.
    fn now_ns(&self) -> u64;
}

/// Why xenstore did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// There is no such node (`ENOENT`).
    Missing,
    /// The transaction met another: begin anew (`EAGAIN`).
    Again,
    /// This domain may not (`EACCES`, `EPERM`).
    Denied,
    /// A quota is used up (`EQUOTA`, `ENOSPC`, `E2BIG`).
    Quota,
    /// Anything else, a broken connection included.
    Failed,
}

impl core::fmt::Display for StoreError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Missing => "no such xenstore node",
            Self::Again => "the xenstore transaction met another",
            Self::Denied => "xenstore denies access",
            Self::Quota => "a xenstore quota is used up",
            Self::Failed => "xenstore failed",
        })
    }
}

impl core::error::Error for StoreError {}

/// An open xenstore transaction, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Transaction(pub u32);

impl Transaction {
    /// Outside of any transaction.
    pub const NONE: Self = Self(0);
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// What was written becomes visible, all of it or nothing.
    Commit,
    /// What was written is forgotten.
    Abort,
}

/// xenstore, as a guest sees it: blocking requests, on the control path only. Paths without a leading slash
/// are relative to the domain's home.
///
/// Watch events are not fetched through this trait, because a kernel has watches of its own: whoever receives
/// one hands it to the driver.
pub trait Store {
    /// Returns a node's value.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError>;

    /// Sets a node's value, making the node and its parents where they are missing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError>;

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// [`StoreError`].
    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError>;

    /// Returns the names of a node's children.
    ///
    /// # Errors
    /// [`StoreError`].
    fn directory(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError>;

    /// Watches a node and all below it. The watch fires once at once.
    ///
    /// # Errors
    /// [`StoreError`].
    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError>;

    /// Ends a watch.
    ///
    /// # Errors
    /// [`StoreError`].
    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError>;

    /// Opens a transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    fn begin(&self) -> Result<Transaction, StoreError>;

    /// Ends a transaction.
    ///
    /// # Errors
    /// [`StoreError::Again`] when a commit met another writer.
    fn end(&self, transaction: Transaction, end: End) -> Result<(), StoreError>;
}

// SAFETY: every method forwards to the same method of the referenced platform, so its promises hold.
unsafe impl<T: Platform + ?Sized> Platform for &T {
    fn alloc_pool(&self, pages: usize, mirror: usize) -> Result<RawPool, Refused> {
        (**self).alloc_pool(pages, mirror)
    }
    unsafe fn free_pool(&self, pool: RawPool) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).free_pool(pool) }
    }
    unsafe fn grant(&self, peer: DomainId, page: NonNull<u8>, access: Access) -> Result<GrantRef, Refused> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).grant(peer, page, access) }
    }
    unsafe fn regrant(&self, grant: GrantRef, access: Access) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).regrant(grant, access) }
    }
    fn revoke(&self, grant: GrantRef) -> Result<(), StillInUse> {
        (**self).revoke(grant)
    }
    fn release(&self, grant: GrantRef) -> Result<(), StillInUse> {
        (**self).release(grant)
    }
    fn alloc_unbound(&self, peer: DomainId) -> Result<Port, Refused> {
        (**self).alloc_unbound(peer)
    }
    fn close(&self, port: Port) {
        (**self).close(port);
    }
    fn notify(&self, port: Port) {
        (**self).notify(port);
    }
    fn take_pending(&self, port: Port) -> bool {
        (**self).take_pending(port)
    }
    fn now_ns(&self) -> u64 {
        (**self).now_ns()
    }
}

impl<T: Store + ?Sized> Store for &T {
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError> {
        (**self).read(within, path)
    }
    fn write(&self, within: Transaction, path: &str, value: &[u8]) -> Result<(), StoreError> {
        (**self).write(within, path, value)
    }
    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError> {
        (**self).remove(within, path)
    }
    fn directory(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        (**self).directory(within, path)
    }
    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        (**self).watch(path, token)
    }
    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        (**self).unwatch(path, token)
    }
    fn begin(&self) -> Result<Transaction, StoreError> {
        (**self).begin()
    }
    fn end(&self, transaction: Transaction, end: End) -> Result<(), StoreError> {
        (**self).end(transaction, end)
    }
}
