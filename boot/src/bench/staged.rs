//! Suite `staged`: what it gains that the backend keeps a guest's pages mapped, in both directions, against grant
//! copies and revokes. Our guest with containers, the same but for that. Knows how guests are asked, not how they
//! are measured.

use std::time::Duration;

use anyhow::Result;

use crate::bench::flow::Transmitter;
use crate::bench::lab::{Lab, Source as Known};
use crate::bench::row::{Label, Peer};
use crate::bench::rx::{Receiver, generators};
use crate::bench::tcp::{self, Way};
use crate::demo::guests::Site;
use crate::demo::report::Source;
use crate::demo::sender::Stream;
use crate::dom0::{Dom0, Mode};

/// How pages get to the other end: its name, and what `drayage attach` is told.
const WAYS: [(&str, &str); 3] = [
    ("copy", "--staged off"),
    ("staged", "--staged on"),
    ("staged, backend not trusted", "--staged on --trusted off"),
];

/// Makes our guest ask for it, whatever the backend is.
const ASK: &str = " staged=on";

/// Runs the suite.
pub fn staged(lab: &mut Lab<'_>) -> Result<()> {
    generators(lab, lab.frames("staged"))?;
    let (mode, site) = (Mode::Pvh, Site::FIRST);
    for (way, options) in WAYS {
        let label = |direction: &str, frame_bytes: usize| Label {
            suite: "staged",
            peer: Peer::D,
            mode,
            case: format!("{direction}, {way}"),
            frame_bytes: Some(frame_bytes),
            varied: None,
        };
        let mut receiver = Receiver::new(Peer::D, mode, site, options).with_settings(ASK);
        receiver.create(lab)?;
        receiver.prepare(lab, Source::Direct)?;
        await_staged(lab.dom0, receiver.name(), way)?;
        for &frame_bytes in lab.frames("staged") {
            receiver.measure(lab, Source::Direct, &label("rx direct", frame_bytes))?;
        }
        receiver.path.end(lab.dom0)?;
        let transmitter = Transmitter::create_with(lab.dom0, Peer::D, mode, site, "port", options, ASK)?;
        await_staged(lab.dom0, transmitter.name(), way)?;
        for &frame_bytes in lab.frames("staged") {
            lab.saturate(&label("tx port", frame_bytes), Known::Guest, |dom0, count, rate| {
                transmitter.measure(dom0, site, Stream { frame_bytes, count, rate })
            })?;
        }
        transmitter.fabric.end(lab.dom0)?;
        for stream in [Way::In, Way::Out] {
            let case = format!("tcp {}, {way}", stream.name());
            let label = Label { suite: "staged", peer: Peer::D, mode, case, frame_bytes: None, varied: None };
            tcp::stream(lab, &label, (stream, Source::Linux), options, ASK)?;
        }
    }
    Ok(())
}

/// Waits until all pages are mapped that are to be.
fn await_staged(dom0: &mut Dom0, name: &str, way: &str) -> Result<()> {
    if way == "copy" {
        return Ok(());
    }
    let lines = ["staged rx=in-place tx=on", "staged rx=copied tx=on"];
    dom0.await_console(name, 0, &lines, Duration::from_secs(60)).map(drop)
}
