//! When what a guest sent has been taken, seen from both sides: the guest learns of it by an event, and an uplink says
//! when its last frame had gone out.

use std::cell::Cell;
use std::rc::Rc;

use drayage::clock::Clock;
use drayage::policy::Policy;
use drayage::switch::Mac;
use drayage::worker::{Settings, Worker};
use drayage_netfront::platform::DomainId;
use drayage_netfront::{Netfront, Options, Readiness};
use drayage_tests::back::Back;
use drayage_tests::cable::cable;
use drayage_tests::connector::{Connector, Offers};
use drayage_tests::inhabitants::HANDLE;
use drayage_tests::uplink::{Arriving, CableUplink};
use drayage_tests::world::LAN;
use memxen::Hypervisor;
use memxen::front::Front;

const GUEST: DomainId = DomainId(5);
const MAC: [u8; 6] = [2, 0, 0, 0, 1, 5];

/// A clock that goes on with every look.
#[derive(Clone, Default)]
struct Ticks(Rc<Cell<u64>>);

impl Clock for Ticks {
    fn now_ns(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

fn pump(driver: &mut Netfront<Front>, platform: &Front) {
    while let Some(event) = platform.next_event() {
        driver.watch_fired(&event.path, &event.token);
    }
    driver.service();
    while driver.next_change().is_some() {}
}

#[test]
fn a_guest_that_waits_until_all_is_taken_sleeps_and_is_woken_once() {
    for (tx_containers, split) in [(true, true), (false, true), (true, false), (false, false)] {
        let (hv, ticks) = (Hypervisor::new(), Ticks::default());
        let mut worker = Worker::new(Back::new(&hv), ticks.clone(), Settings::default());
        let (near, far) = cable();
        let near = CableUplink { end: near, arriving: Arriving::Filled, super_frames: false };
        let uplink = worker.add_uplink(LAN, Box::new(near)).expect("a new worker has room");
        hv.create_domain(GUEST);
        let platform = Front::new(&hv, GUEST);
        let mut driver = Netfront::new(platform.clone(), Options::default()).expect("xenstore works");
        let offers = Offers { tx_containers, split, ..Offers::default() };
        let mut connector = Connector::new(&hv, offers, Policy::default());
        connector.plug(GUEST, MAC);
        pump(&mut driver, &platform);
        connector.connect(&mut worker, GUEST, Mac(MAC)).expect("it connects");
        pump(&mut driver, &platform);
        let vif = driver.vif_mut(HANDLE).expect("the guest has a vif");
        worker.pass();
        assert!(vif.drain(), "nothing was sent");
        let sent_at =
            |worker: &Worker<Back, Ticks>| worker.uplink_counters(uplink).expect("it is there").sent_last_ns;
        assert_eq!(sent_at(&worker), 0);
        let mut last_ns = 0;
        for round in 0..3 {
            for _ in 0..100 {
                assert!(vif.has_room(60));
                vif.send_frame(60, |frame| {
                    frame.fill(round);
                    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
                    frame[6..12].copy_from_slice(&MAC);
                });
            }
            assert!(!vif.drain(), "nobody has taken it");
            assert_eq!(vif.rearm(), Readiness::Idle);
            let awaited = |vif: &drayage_netfront::Vif<Front>| {
                vif.ports().filter(|port| hv.is_pending(GUEST, *port)).count()
            };
            assert_eq!(awaited(vif), 0, "it sleeps");
            while far.waiting() < 100 * (usize::from(round) + 1) {
                worker.pass();
            }
            assert_eq!(awaited(vif), 1, "it is woken");
            assert_eq!(vif.rearm(), Readiness::Busy, "there is a reason to look");
            assert!(vif.drain());
            assert_eq!(vif.rearm(), Readiness::Idle);
            let now_ns = sent_at(&worker);
            assert!(last_ns < now_ns && now_ns <= ticks.0.get(), "{now_ns} after {last_ns}");
            worker.pass();
            assert_eq!(sent_at(&worker), now_ns, "nothing has gone out since");
            last_ns = now_ns;
        }
        hv.assert_clean();
    }
}
