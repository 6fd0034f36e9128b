//! What the traffic commands print: one JSON document each. Knows nothing of sockets.

use serde::{Deserialize, Serialize};

/// Report of `peer send`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SendReport {
    /// Frames that the kernel accepted.
    pub sent: u64,
    /// From before the first call to after the last.
    pub elapsed_ns: u64,
    /// Times the device's queue was full and the sender stepped back.
    pub queue_full: u64,
    /// Size of one frame without its FCS.
    pub frame_bytes: usize,
}

/// Report of `peer recv`: one stream, ended by a count, an idle gap or a timeout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecvReport {
    /// Datagrams that the application read.
    pub packets: u64,
    /// Their payload.
    pub bytes: u64,
    /// From the first batch read to the last.
    pub span_ns: u64,
    /// Calls that returned at least one datagram.
    pub batches: u64,
    /// Datagrams whose sequence number was not above every earlier one.
    pub out_of_order: u64,
    /// Highest sequence number seen, plus one.
    pub highest: u64,
    /// Datagrams the kernel dropped for a full socket buffer meanwhile.
    pub socket_full: u64,
    /// Datagrams the kernel dropped for any other error (a bad checksum) meanwhile.
    pub socket_errors: u64,
}

/// Report of `peer ping`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u64,
    /// Distinct answers received.
    pub answered: u64,
    /// Answers whose payload differed.
    pub mismatched: u64,
    /// From the start to the first answer.
    pub first_answer_ns: Option<u64>,
    /// Shortest round trip.
    pub min_rtt_ns: Option<u64>,
    /// Longest round trip.
    pub max_rtt_ns: Option<u64>,
    /// The round trip that half of all are shorter than.
    pub median_rtt_ns: Option<u64>,
    /// The one that 99 of 100 are shorter than.
    pub p99_rtt_ns: Option<u64>,
    /// Mean difference of two round trips in a row (RFC 3550 calls its like jitter).
    pub jitter_ns: Option<u64>,
}

/// Report of the echo clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EchoReport {
    /// "udp" or "tcp".
    pub protocol: String,
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Payload bytes that came back.
    pub received_bytes: u64,
    /// Bytes (TCP) or datagrams (UDP) that differed from what was sent.
    pub mismatched: u64,
    /// Datagrams that needed a second attempt (UDP).
    pub retries: u64,
    /// From the first byte sent to the last received.
    pub elapsed_ns: u64,
}

/// Report of `peer registers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegistersReport {
    /// Times that all vector registers were looked at.
    pub looks: u64,
    /// Times that one of them did not hold what was put into it.
    pub lost: u64,
}

/// Report of a TCP stream in one direction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Payload that arrived.
    pub bytes: u64,
    /// From the connection's first segment until the last byte had arrived.
    pub elapsed_ns: u64,
}

/// Report of `peer spin`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpinReport {
    /// The longest pause in each of these.
    pub windows: u64,
    /// What 99 of 100 windows' longest pauses are shorter than.
    pub p99_ns: u64,
    /// The longest pause of all.
    pub max_ns: u64,
}
