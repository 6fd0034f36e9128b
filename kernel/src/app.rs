//! What runs on top of the network. An app is a value with one function that must be there, [`App::poll`], and
//! a line in [`KINDS`]; it knows sockets, a clock and a console, and no machine.

mod check;
mod echo;
mod forward;
mod line;
mod sink;
mod source;

use alloc::boxed::Box;

use crate::net::Net;
use crate::settings::{Key, SettingError, Words};

/// The apps of this image, by the name that `app=` has; the first is the default.
pub static KINDS: &[AppKind] = &[
    AppKind {
        name: "echo",
        keys: &[echo::PORT],
        spread: Spread::EveryInterface,
        role: Role::Host,
        configure: echo::configure,
    },
    AppKind {
        name: "sink",
        keys: &[sink::PORT, sink::VERIFY],
        spread: Spread::EveryInterface,
        role: Role::Host,
        configure: sink::configure,
    },
    AppKind {
        name: "source",
        keys: &[source::TO, source::SIZE, source::RATE, source::COUNT, source::CONTROL],
        spread: Spread::FirstInterface,
        role: Role::Host,
        configure: source::configure,
    },
    AppKind {
        name: "forward",
        keys: &[forward::PORT],
        spread: Spread::EveryInterface,
        role: Role::Router,
        configure: forward::configure,
    },
    AppKind {
        name: "check",
        keys: &[check::TO, check::BYTES],
        spread: Spread::FirstInterface,
        role: Role::Host,
        configure: check::configure,
    },
];

/// A program on one network interface. ICMP echo is answered without it.
pub trait App {
    /// Does what there is to do: called after every batch of packets that came in, after packets went out, and
    /// when the time has come that the last call asked for. It neither waits nor allocates.
    fn poll(&mut self, net: &mut Net<'_>) -> Next;

    /// Prints what is left to say: the guest ends, or the interface is gone.
    fn finish(&mut self, _net: &mut Net<'_>) {}
}

/// When an app wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// When packets came in or went out.
    OnTraffic,
    /// Then, and at this time at the latest, in nanoseconds as [`Net::now_ns`] counts them.
    At(u64),
    /// Never: the guest may end.
    Done,
}

/// Opens an app's sockets on an interface and returns it.
pub type Starter = Box<dyn Fn(&mut Net<'_>) -> Box<dyn App>>;

/// A kind of app.
pub struct AppKind {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its own settings.
    pub keys: &'static [Key],
    /// Where it runs.
    pub spread: Spread,
    /// What the guest does with packets that are not for itself.
    pub role: Role,
    /// Reads its settings.
    pub configure: fn(&Words<'_>) -> Result<Starter, SettingError>,
}

/// The interfaces that an app runs on. Each has an app of its own, with sockets of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Every one, those that are plugged in later too.
    EveryInterface,
    /// The one with number 0.
    FirstInterface,
}

/// What a guest does with packets that are not for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes no notice of them.
    Host,
    /// It passes them on between the interfaces 0 and 1.
    Router,
}
