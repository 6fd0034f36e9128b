//! What the in-memory hypervisor promises the tests that stand on it.

use std::ptr::NonNull;
use std::time::Duration;

use drayage_netfront::platform::{Access, DomainId, GrantRef, Refused, StillInUse, StoreError};
use memxen::grants::{Copy, Foreign, POISON, status};
use memxen::store::{Permission, WatchEvent};
use memxen::{Faults, Hypervisor};

const HOST: DomainId = DomainId(0);
const GUEST: DomainId = DomainId(1);

fn two_domains() -> Hypervisor {
    let hv = Hypervisor::new();
    hv.create_domain(GUEST);
    hv
}

fn page(base: NonNull<u8>, n: usize) -> NonNull<u8> {
    NonNull::new(base.as_ptr().wrapping_add(n * 4096)).unwrap()
}

fn byte(base: NonNull<u8>, at: usize) -> u8 {
    // SAFETY: the tests pass places inside a pool that is allocated, and no one writes it meanwhile.
    unsafe { base.as_ptr().wrapping_add(at).read_volatile() }
}

fn to(hv: &Hypervisor, grant: GrantRef, offset: u16, data: &[u8]) -> i16 {
    let mut status = [99];
    hv.grant_copy(HOST, &mut [Copy::To(Foreign { domain: GUEST, grant, offset }, data)], &mut status);
    status[0]
}

#[test]
fn copies_need_a_grant_in_force_and_stay_in_their_page() {
    let hv = two_domains();
    let pool = hv.alloc_pool(GUEST, 4, 2).unwrap();
    let grant = hv.grant(GUEST, HOST, page(pool.base, 1), Access::ReadWrite).unwrap();
    assert_eq!(to(&hv, grant, 4, b"hello"), status::OKAY);
    assert_eq!(byte(pool.base, 4096 + 4), b'h');
    assert_eq!(byte(pool.base, 5 * 4096 + 4), b'h', "page 1 is mapped again as page 5");
    assert_eq!(to(&hv, grant, 4092, b"hello"), status::BAD_COPY_ARG);
    assert_eq!(to(&hv, GrantRef(99), 0, b"x"), status::BAD_GRANT_REF);
    hv.revoke(GUEST, grant).unwrap();
    assert_eq!(to(&hv, grant, 0, b"x"), status::GENERAL_ERROR);
    hv.regrant(GUEST, grant, Access::ReadWrite);
    assert_eq!(byte(pool.base, 4096 + 4), POISON, "what was in the page is not the peer's business");
    assert_eq!(to(&hv, grant, 0, b"x"), status::OKAY);
    let other = hv.grant(GUEST, DomainId(7), page(pool.base, 2), Access::ReadWrite).unwrap();
    assert_eq!(to(&hv, other, 0, b"x"), status::GENERAL_ERROR, "granted to somebody else");
    let read_only = hv.grant(GUEST, HOST, page(pool.base, 3), Access::ReadOnly).unwrap();
    assert_eq!(to(&hv, read_only, 0, b"x"), status::GENERAL_ERROR);
    let (mut back, mut status) = ([1; 2], [99]);
    let place = Foreign { domain: GUEST, grant: read_only, offset: 0 };
    hv.grant_copy(HOST, &mut [Copy::From(place, &mut back)], &mut status);
    assert_eq!((back, status), ([0; 2], [status::OKAY]));
    assert_eq!(hv.operations(HOST).copies_refused, 5);
    hv.assert_clean();
}

#[test]
fn a_mapped_page_cannot_be_revoked_and_mistakes_are_written_down() {
    let hv = two_domains();
    let pool = hv.alloc_pool(GUEST, 2, 0).unwrap();
    let a = hv.grant(GUEST, HOST, page(pool.base, 0), Access::ReadWrite).unwrap();
    let b = hv.grant(GUEST, HOST, page(pool.base, 1), Access::ReadWrite).unwrap();
    let mapping = hv.map(HOST, &[(GUEST, b), (GUEST, a)], Access::ReadWrite).unwrap();
    // SAFETY: the mapping is in force and nobody else touches the page.
    unsafe { mapping.base.as_ptr().wrapping_add(4096).write_volatile(7) };
    assert_eq!(byte(pool.base, 0), 7, "the second page of the mapping is page 0");
    assert_eq!(hv.revoke(GUEST, a), Err(StillInUse));
    hv.unmap(HOST, mapping.handle);
    assert_eq!(hv.release(GUEST, a), Ok(()));
    hv.assert_clean();
    hv.free_pool(GUEST, pool);
    assert_eq!(hv.violations().len(), 1, "page 1 is still granted");
    let _ = hv.revoke(GUEST, a);
    hv.unmap(HOST, mapping.handle);
    hv.regrant(GUEST, b, Access::ReadWrite);
    hv.close(HOST, memxen::Port(5));
    hv.notify(HOST, memxen::Port(5));
    assert_eq!(hv.violations().len(), 5, "{:#?}", hv.violations());
    assert_eq!(hv.release(GUEST, b), Ok(()));
    assert_eq!(hv.live_pools(GUEST), 1);
    hv.free_pool(GUEST, pool);
    assert_eq!(hv.live_pools(GUEST), 0);
}

#[test]
fn events_are_edges_and_survive_a_late_binding() {
    let hv = two_domains();
    let front = hv.alloc_unbound(GUEST, HOST).unwrap();
    hv.notify(GUEST, front);
    assert!(hv.bind_interdomain(DomainId(0), GUEST, memxen::Port(9)).is_err());
    let back = hv.bind_interdomain(HOST, GUEST, front).unwrap();
    assert!(hv.take_pending(HOST, back), "pending at once, for the event that was lost");
    assert!(hv.bind_interdomain(HOST, GUEST, front).is_err(), "bound already");
    hv.notify(HOST, back);
    hv.notify(HOST, back);
    assert_eq!(hv.operations(GUEST).events, 1, "one edge");
    assert!(hv.poll(GUEST, &[front], Duration::ZERO));
    assert!(hv.take_pending(GUEST, front));
    assert!(!hv.poll(GUEST, &[front], Duration::from_millis(1)));
    hv.close(HOST, back);
    let again = hv.bind_interdomain(HOST, GUEST, front).unwrap();
    let waker = hv.clone();
    let thread = std::thread::spawn(move || waker.notify(HOST, again));
    assert!(hv.poll(GUEST, &[front], Duration::from_secs(10)));
    thread.join().unwrap();
    hv.assert_clean();
}

#[test]
fn xenstore_has_owners_watches_and_transactions() {
    let hv = two_domains();
    let (host, guest) = (hv.connect_store(HOST), hv.connect_store(GUEST));
    assert_eq!(guest.write(0, "device/vif/0/state", b"1"), Err(StoreError::Denied), "the toolstack's");
    host.write(0, "/local/domain/1/device/vif/0/state", b"1").unwrap();
    let dir = "/local/domain/1/device/vif/0";
    host.set_permissions(0, dir, &[(GUEST, Permission::None), (HOST, Permission::Read)]).unwrap();
    let state = format!("{dir}/state");
    host.set_permissions(0, &state, &[(GUEST, Permission::None), (HOST, Permission::Read)]).unwrap();
    guest.watch("device/vif", "w").unwrap();
    host.watch(&state, "state").unwrap();
    let event = |path: &str, token: &str| Some(WatchEvent { path: path.into(), token: token.into() });
    assert_eq!(guest.next_event(), event("device/vif", "w"), "fires once at once");
    assert_eq!(host.next_event(), event(&state, "state"));
    guest.write(0, "device/vif/0/state", b"4").unwrap();
    guest.write(0, "device/vif/0/mtu", b"1500").unwrap();
    assert_eq!(host.next_event(), event(&state, "state"));
    assert_eq!(host.next_event(), None);
    assert_eq!(guest.next_event(), event("device/vif/0/state", "w"));
    assert_eq!(guest.directory(0, "device/vif/0").unwrap(), ["mtu", "state"]);

    let transaction = host.begin().unwrap();
    assert_eq!(host.read(transaction, &state).unwrap(), b"4");
    host.write(transaction, &state, b"5").unwrap();
    assert_eq!(guest.read(0, "device/vif/0/state").unwrap(), b"4", "not visible yet");
    guest.write(0, "device/vif/0/state", b"6").unwrap();
    assert_eq!(host.commit(transaction), Err(StoreError::Again));
    let transaction = host.begin().unwrap();
    host.write(transaction, &state, b"5").unwrap();
    host.commit(transaction).unwrap();
    assert_eq!(guest.read(0, "device/vif/0/state").unwrap(), b"5");
    hv.set_faults(HOST, Faults { fail_commits: 1, ..Faults::default() });
    let transaction = host.begin().unwrap();
    assert_eq!(host.commit(transaction), Err(StoreError::Again));

    while host.next_event().is_some() {}
    host.remove(0, "/local/domain/1/device/vif").unwrap();
    assert_eq!(host.next_event(), event(&state, "state"), "a removed parent fires the child's watch");
    assert_eq!(guest.read(0, "device/vif/0/state"), Err(StoreError::Missing));
    host.watch("@releaseDomain", "gone").unwrap();
    assert_eq!(host.next_event(), event("@releaseDomain", "gone"));
    hv.destroy_domain(GUEST);
    assert_eq!(host.next_event(), event("@releaseDomain", "gone"));
    assert_eq!(host.read(0, "/local/domain/1"), Err(StoreError::Missing));
}

#[test]
fn faults_happen_as_often_as_asked() {
    let hv = two_domains();
    hv.set_faults(
        GUEST,
        Faults { refuse_allocations: 1, refuse_grants: 1, fail_revokes: 1, ..Faults::default() },
    );
    assert!(matches!(hv.alloc_pool(GUEST, 1, 0), Err(Refused::NoMemory)));
    hv.forbid_mirroring(GUEST);
    let pool = hv.alloc_pool(GUEST, 2, 2).unwrap();
    assert_eq!(pool.mirrored, 0);
    assert_eq!(hv.grant(GUEST, HOST, pool.base, Access::ReadWrite), Err(Refused::NoGrants));
    let grant = hv.grant(GUEST, HOST, pool.base, Access::ReadWrite).unwrap();
    assert_eq!(hv.revoke(GUEST, grant), Err(StillInUse));
    assert_eq!(hv.revoke(GUEST, grant), Ok(()));
    hv.assert_clean();
}
