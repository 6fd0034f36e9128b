//! Guests that a configuration names: attached when they come, by name or UUID; changed without their noticing where
//! that can be; detached when they are not named any more.

use drayage::control::AttachRequest;
use drayage::control::configured::{Wanted, Who};
use drayage::control::details::{Asked, Containers};
use drayage::control::error::FailureKind;
use drayage::policy::Policy;
use drayage::switch::Mac;
use drayage_tests::hand::DOM0;
use drayage_tests::inhabitants::HANDLE;
use drayage_tests::world::{ControlPath, Shape, World, name_of};
use memxen::DomainId;

const MAC: Mac = Mac([2, 0, 0, 0, 1, 5]);

fn wanted(guest: Who) -> Wanted {
    let request = AttachRequest {
        domain: guest.to_string(),
        vif: Some(HANDLE),
        mac: Some(MAC),
        port: None,
        policy: Policy::default(),
        urgent: Default::default(),
        size_bytes: 65_536,
        containers: Containers::On,
        rules: Default::default(),
        mapping: Default::default(),
    };
    Wanted { guest, vif: HANDLE, request }
}

fn world() -> World {
    // As it comes to where nothing is said of it.
    let mapping = Asked::default().resolve(drayage::xen::DomainId(DOM0.0), Containers::On);
    World::new(Shape { control: ControlPath::Real(Containers::On), mapping, ..Shape::default() })
}

fn configure(world: &mut World, all: Vec<Wanted>) {
    let now_ns = world.now_ns();
    world.control.as_mut().expect("one").manager.configure(all, now_ns).expect("xenstore works");
    world.negotiate();
    // Mapped pages are given back by way of the worker.
    world.idle_until(now_ns + 1_000_000);
    world.negotiate();
}

fn states(world: &mut World) -> Vec<(String, String)> {
    let list = world.control.as_mut().expect("one").manager.list();
    list.into_iter().map(|i| (i.name, i.state)).collect()
}

#[test]
fn a_guest_is_attached_when_it_appears_by_name_or_uuid() {
    for guest in [Who::Name(name_of(DomainId(5))), Who::Uuid("UUID-5".into())] {
        let mut world = world();
        configure(&mut world, vec![wanted(guest.clone())]);
        assert_eq!(states(&mut world), []);
        let (a, b) = (world.add_domain(5), world.add_domain(6));
        for id in [5, 6] {
            world.reintroduce(DomainId(id));
        }
        world.negotiate();
        assert!(world.guests[a].vif().is_up(), "{guest}");
        assert!(world.guests[b].driver.vif_mut(HANDLE).is_none(), "the other is not meant");
        let failure = world.control.as_mut().expect("one").manager.detach("guest5", None, 0).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Taken);
        assert!(failure.message.contains("configuration"), "{failure}");

        // The same once more changes nothing, and without it the guest is detached.
        configure(&mut world, vec![wanted(guest.clone())]);
        assert_eq!(world.guests[a].vif().counters().connects, 1);
        configure(&mut world, Vec::new());
        assert_eq!(states(&mut world), []);
        assert!(world.guests[a].driver.vif_mut(HANDLE).is_none());
        world.await_grants(a);
        world.end();
    }
}

#[test]
fn a_change_is_not_noticed_unless_it_was_agreed_upon() {
    let mut world = world();
    let a = world.add_domain(5);
    let mut one = wanted(Who::Name(name_of(DomainId(5))));
    configure(&mut world, vec![one.clone()]);
    assert!(world.guests[a].vif().is_up());
    one.request.policy = "fixed:size=8192,timeout=50".parse().expect("a policy");
    one.request.size_bytes = 8192;
    configure(&mut world, vec![one.clone()]);
    let list = world.control.as_mut().expect("one").manager.list();
    assert_eq!((list[0].policy.as_str(), list[0].size_bytes), ("fixed:size=8192,timeout=50", 8192));
    assert_eq!((list[0].state.as_str(), world.guests[a].vif().counters().connects), ("connected", 1));
    // Another address is another interface to the guest.
    one.request.mac = Some(Mac([2, 0, 0, 0, 1, 9]));
    configure(&mut world, vec![one.clone()]);
    assert_eq!(states(&mut world), [("guest5".to_owned(), "connected".to_owned())]);
    assert!(world.guests[a].vif().is_up());
    let list = world.control.as_mut().expect("one").manager.list();
    assert_eq!(list[0].mac, "02:00:00:00:01:09");
    configure(&mut world, Vec::new());
    world.await_grants(a);
    world.end();
}
