//! What the control side asks of the data path.
//!
//! A [`Worker`] in the same thread answers at once (tests); the daemon's runs in a thread of its own and is
//! asked by message.

use crate::UplinkCounters;
use crate::clock::Clock;
use crate::port::Uplink;
use crate::switch::{PortId, Segment};
use crate::vif::holds::HoldTimes;
use crate::vif::{Connection, Counters, Fault};
use crate::worker::{ConnectError, Worker};
use crate::xen::Xen;

/// The data path, seen from outside.
pub trait DataPlane {
    /// See [`Worker::connect`].
    ///
    /// # Errors
    /// [`ConnectError`].
    fn connect(&mut self, segment: Segment, connection: Connection) -> Result<PortId, ConnectError>;
    /// See [`Worker::disconnect`].
    fn disconnect(&mut self, port: PortId) -> Option<Counters>;
    /// See [`Worker::counters`].
    fn counters(&mut self, port: PortId) -> Option<Counters>;
    /// See [`Worker::holds`].
    fn holds(&mut self, port: PortId) -> Option<HoldTimes>;
    /// See [`Worker::add_uplink`].
    fn add_uplink(&mut self, segment: Segment, link: Box<dyn Uplink>) -> Option<PortId>;
    /// See [`Worker::remove_uplink`].
    fn remove_uplink(&mut self, port: PortId);
    /// See [`Worker::uplink_counters`].
    fn uplink_counters(&mut self, port: PortId) -> Option<UplinkCounters>;
    /// See [`Worker::take_faults`].
    fn take_faults(&mut self) -> Vec<(PortId, Fault)>;
}

impl<X: Xen, C: Clock> DataPlane for Worker<X, C> {
    fn connect(&mut self, segment: Segment, connection: Connection) -> Result<PortId, ConnectError> {
        Worker::connect(self, segment, &connection)
    }
    fn disconnect(&mut self, port: PortId) -> Option<Counters> {
        Worker::disconnect(self, port)
    }
    fn counters(&mut self, port: PortId) -> Option<Counters> {
        Worker::counters(self, port)
    }
    fn holds(&mut self, port: PortId) -> Option<HoldTimes> {
        Worker::holds(self, port)
    }
    fn add_uplink(&mut self, segment: Segment, link: Box<dyn Uplink>) -> Option<PortId> {
        Worker::add_uplink(self, segment, link)
    }
    fn remove_uplink(&mut self, port: PortId) {
        Worker::remove_uplink(self, port);
    }
    fn uplink_counters(&mut self, port: PortId) -> Option<UplinkCounters> {
        Worker::uplink_counters(self, port)
    }
    fn take_faults(&mut self) -> Vec<(PortId, Fault)> {
        Worker::take_faults(self)
    }
}
