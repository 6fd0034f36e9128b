//! The backend's ioctl numbers, structures and constants against Linux's own headers, as a compiled C program prints
//! them.

use std::collections::BTreeMap;

use drayage::port::{gso, packet, tap, vhost, xdp};
use drayage::xen::{GNTST_GENERAL_ERROR, GNTST_OKAY, evtchn, gntdev};
use drayage_tests::probe::{LINUX, Probe, XEN};

#[test]
fn ioctls_structures_and_constants_are_those_of_linuxs_headers() {
    let Some(probe) = Probe::compile("linux_abi", &[LINUX, XEN]) else { return };
    let lines = probe.run(&[], String::new());
    let theirs: BTreeMap<&str, &str> =
        lines.iter().map(|line| line.rsplit_once(' ').expect("a name and a value")).collect();

    let mut ours: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in [
        ("IOCTL_GNTDEV_MAP_GRANT_REF", gntdev::MAP_GRANT_REF),
        ("IOCTL_GNTDEV_UNMAP_GRANT_REF", gntdev::UNMAP_GRANT_REF),
        ("IOCTL_GNTDEV_GRANT_COPY", gntdev::GRANT_COPY),
        ("GNTCOPY_source_gref", gntdev::SOURCE_GREF.into()),
        ("GNTCOPY_dest_gref", gntdev::DEST_GREF.into()),
        ("IOCTL_EVTCHN_BIND_INTERDOMAIN", evtchn::BIND_INTERDOMAIN),
        ("IOCTL_EVTCHN_UNBIND", evtchn::UNBIND),
        ("IOCTL_EVTCHN_NOTIFY", evtchn::NOTIFY),
    ] {
        ours.insert(name, value.to_string());
    }
    ours.insert("GNTST_okay", GNTST_OKAY.to_string());
    ours.insert("GNTST_general_error", GNTST_GENERAL_ERROR.to_string());
    ours.extend(gntdev::layout().into_iter().map(|(name, at, bytes)| (name, format!("{at}+{bytes}"))));
    for constants in
        [tap::constants(), vhost::constants(), gso::constants(), packet::constants(), xdp::constants()]
    {
        ours.extend(constants.into_iter().map(|(name, value)| (name, value.to_string())));
    }

    for (name, value) in &theirs {
        assert_eq!(ours.get(name).map(String::as_str), Some(*value), "{name} in Linux's headers, and here");
    }
    assert_eq!(ours.len(), theirs.len(), "everything is compared");
}
