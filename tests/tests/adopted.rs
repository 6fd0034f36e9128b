//! Interfaces whose nodes others make: xl, with our script in a `vif` line, and dom0, for a driver domain's backend.
//! The backend here serves both from domain 0, which makes no difference to it.

use drayage::class::Classes;
use drayage::control::attachment::Memory;
use drayage::control::details::{Containers, Staged};
use drayage::control::error::FailureKind;
use drayage::control::{AttachRequest, elsewhere};
use drayage::policy::Policy;
use drayage_tests::hand::DOM0;
use drayage_tests::inhabitants::HANDLE;
use drayage_tests::world::{ControlPath, Shape, World, name_of};
use drayage_wire::keys::State;
use memxen::DomainId;
use memxen::store::{NO_TRANSACTION, Permission};

const MAC: &str = "02:00:00:00:01:05";

/// A world whose control path has looked for what others made.
fn world() -> (World, usize) {
    let shape = Shape { control: ControlPath::Real(Containers::On), ..Shape::default() };
    let mut world = World::remembering(shape, Memory::none());
    let guest = world.add_domain(5);
    world.restart();
    world.negotiate();
    (world, guest)
}

fn write(world: &World, path: &str, value: &str) {
    world.hv.connect_store(DOM0).write(NO_TRANSACTION, path, value.as_bytes()).expect("domain 0 may");
}

fn read(world: &World, path: &str) -> Option<String> {
    let value = world.hv.connect_store(DOM0).read(NO_TRANSACTION, path).ok()?;
    String::from_utf8(value).ok()
}

/// Makes the nodes that libxl makes.
fn vif_line(world: &World, script: &str) {
    let (front, back) = ("/local/domain/5/device/vif/0", "/local/domain/0/backend/vif/5/0");
    let store = world.hv.connect_store(DOM0);
    for (dir, owner, reader) in [(front, DomainId(5), DOM0), (back, DOM0, DomainId(5))] {
        write(world, dir, "");
        let permissions = [(owner, Permission::None), (reader, Permission::Read)];
        store.set_permissions(NO_TRANSACTION, dir, &permissions).expect("domain 0 may");
    }
    for (key, value) in
        [("backend", back), ("backend-id", "0"), ("handle", "0"), ("mac", MAC), ("state", "1")]
    {
        write(world, &format!("{front}/{key}"), value);
    }
    let keys = [("frontend", front), ("frontend-id", "5"), ("online", "1"), ("handle", "0"), ("mac", MAC)];
    for (key, value) in keys.into_iter().chain([("script", script), ("state", "1")]) {
        write(world, &format!("{back}/{key}"), value);
    }
}

#[test]
fn what_xl_makes_with_our_script_is_served_and_let_go_of() {
    let (mut world, guest) = world();
    let back = "/local/domain/0/backend/vif/5/0";
    let slo = Policy::Slo { delay_us: 700 };
    world.control.as_mut().expect("one").manager.set_defaults(slo, Classes::NONE, Staged::Off);
    vif_line(&world, "/etc/xen/scripts/vif-drayage");
    world.negotiate();
    assert!(world.guests[guest].vif().is_up());
    let list = world.control.as_mut().expect("one").manager.list();
    assert_eq!(
        (list[0].policy.as_str(), list[0].urgent.as_str()),
        ("slo:delay=700", "none"),
        "the configured default"
    );
    assert!(read(&world, &format!("{back}/drayage")).is_some(), "the script sees that we serve it");
    let failure = world.control.as_mut().expect("one").manager.detach(&name_of(DomainId(5)), None, 0);
    assert!(failure.is_err_and(|f| f.kind == FailureKind::Taken && f.message.contains("xl network-detach")));
    // A new daemon finds it.
    world.restart();
    world.negotiate();
    assert_eq!(world.guests[guest].vif().counters().connects, 1);
    assert!(world.back_counters(DomainId(5)).is_some());
    // libxl's removal: it waits for our Closed, and takes the nodes away itself.
    write(&world, &format!("{back}/online"), "0");
    write(&world, &format!("{back}/state"), State::Closing.value());
    world.control.as_mut().expect("one").pump(0);
    assert_eq!(read(&world, &format!("{back}/state")).as_deref(), Some(State::Closed.value()));
    assert!(world.control.as_ref().expect("one").manager.is_empty());
    assert_eq!(world.hv.live_mappings(DOM0), 0);
    world.hv.assert_clean();
}

#[test]
fn what_xl_makes_with_another_script_is_not_ours() {
    let (mut world, _) = world();
    vif_line(&world, "/etc/xen/scripts/vif-bridge");
    world.negotiate();
    assert!(world.control.as_ref().expect("one").manager.is_empty());
    assert_eq!(read(&world, "/local/domain/0/backend/vif/5/0/state").as_deref(), Some("1"));
}

#[test]
fn what_dom0_makes_is_served_until_the_guest_is_gone() {
    let (mut world, guest) = world();
    let control = world.control.as_ref().expect("one");
    control.name(drayage::xen::DomainId(0), "driver", "uuid-0");
    let request = AttachRequest {
        domain: name_of(DomainId(5)),
        vif: None,
        mac: None,
        port: None,
        policy: "fixed:size=8192,timeout=100".parse().expect("a policy"),
        urgent: Default::default(),
        size_bytes: 16_384,
        containers: Containers::On,
        rules: Default::default(),
        mapping: Default::default(),
    };
    let (store, own) = (control.store.clone(), drayage::xen::DomainId(1));
    let made = elsewhere::attach(&store, own, &request, "driver").expect("it is attached");
    assert_eq!(made.vif, HANDLE);
    let twice = elsewhere::attach(&store, own, &request, "driver").expect_err("there is one");
    assert_eq!(twice.kind, FailureKind::Taken);
    let nobody = elsewhere::attach(&store, own, &request, "nobody").expect_err("there is none");
    assert_eq!(nobody.kind, FailureKind::NotFound);
    let itself = elsewhere::attach(&store, own, &request, "guest5").expect_err("that cannot be");
    assert_eq!(itself.kind, FailureKind::BadValue);
    world.negotiate();
    assert!(world.guests[guest].vif().is_up());
    let list = world.control.as_mut().expect("one").manager.list();
    assert_eq!((list[0].policy.as_str(), list[0].size_bytes), ("fixed:size=8192,timeout=100", 16_384));
    world.restart();
    world.negotiate();
    assert_eq!(world.guests[guest].vif().counters().connects, 1, "a new daemon goes on with it");
    world.destroy(guest);
    assert!(world.control.as_ref().expect("one").manager.is_empty());
    assert_eq!(read(&world, "/local/domain/0/backend/drayage/5/0/state"), None, "and nothing is left");
    assert_eq!(world.hv.live_mappings(DOM0), 0);
    world.hv.assert_clean();
}
