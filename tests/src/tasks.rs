//! What a host does: transfers of any kind, all at once. It knows sockets by way of [`host`](crate::host) alone.

use crate::host::{Stack, TcpSink, TcpSource, UdpSink, UdpSource};

/// Datagrams that a source sends, and a sink takes, in one step.
const BURST: u32 = 16;

/// Transfers.
#[derive(Debug, Default)]
pub struct Tasks {
    /// Datagrams to send.
    pub udp_sources: Vec<UdpSource>,
    /// Datagrams to take.
    pub udp_sinks: Vec<UdpSink>,
    /// Streams to send.
    pub tcp_sources: Vec<TcpSource>,
    /// Streams to take, each with the most bytes to take in one step.
    pub tcp_sinks: Vec<(TcpSink, usize)>,
}

impl Tasks {
    /// Goes on with all of them. Returns whether any moved.
    pub fn step(&mut self, stack: &mut Stack) -> bool {
        let before = self.progress();
        for source in &mut self.udp_sources {
            source.step(stack, BURST);
        }
        for sink in &mut self.udp_sinks {
            sink.step(stack, u32::MAX);
        }
        for source in &mut self.tcp_sources {
            source.step(stack);
        }
        for (sink, most) in &mut self.tcp_sinks {
            sink.step(stack, *most);
        }
        self.progress() != before
    }

    fn progress(&self) -> u64 {
        let sent: u64 = self.udp_sources.iter().map(|source| u64::from(source.sent())).sum();
        let taken: u64 = self.udp_sinks.iter().map(|sink| u64::from(sink.got())).sum();
        let streams: u64 = self.tcp_sources.iter().map(TcpSource::sent).sum();
        let arrived: u64 = self.tcp_sinks.iter().map(|(sink, _)| sink.got()).sum();
        sent + taken + streams + arrived
    }
}
