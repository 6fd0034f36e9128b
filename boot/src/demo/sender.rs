//! The Linux sender in dom0: `peer send` out of a device. Knows nothing of who reads.

use std::time::Duration;

use anyhow::Result;
use drayage_peer::report::SendReport;

use crate::demo::guests::Site;
use crate::demo::report::Generator;
use crate::dom0::Dom0;

/// Patience with one stream, in the machine's time.
const STREAM: Duration = Duration::from_secs(60);

/// Name of this generator in the report.
pub const NAME: &str = "sendmmsg";

/// A stream to send.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    /// Size of one frame without its FCS.
    pub frame_bytes: usize,
    /// Packets.
    pub count: u64,
    /// Packets a second; as many as the device takes when absent.
    pub rate: Option<u64>,
}

/// Sends a stream to the guest out of a device.
pub fn send(dom0: &mut Dom0, device: &str, site: Site, stream: Stream) -> Result<SendReport> {
    dom0.json(&command(device, site, stream), STREAM)
}

/// Returns the command that sends a stream.
pub fn command(device: &str, site: Site, stream: Stream) -> String {
    let Stream { frame_bytes, count, rate } = stream;
    let rate = rate.map(|rate| format!(" --rate {rate}")).unwrap_or_default();
    let (mac, to, from) = (site.guest_mac(), site.guest_ip(), site.host_ip());
    format!(
        "peer send --dev {device} --dst-mac {mac} --dst-ip {to} --src-ip {from} --frame {frame_bytes} \
         --count {count}{rate}"
    )
}

/// Measures what the sender costs alone, into a device that throws everything away.
pub fn measure_alone(dom0: &mut Dom0, frame_bytes: usize, count: u64) -> Result<Generator> {
    const DEVICE: &str = "drayage-null";
    dom0.shell(&format!(
        "[ -e /sys/class/net/{DEVICE} ] || /usr/sbin/ip link add {DEVICE} type dummy; ip link set {DEVICE} up"
    ))?;
    let report = send(dom0, DEVICE, Site::FIRST, Stream { frame_bytes, count, rate: None })?;
    Ok(Generator {
        name: NAME.to_owned(),
        frame_bytes,
        instructions_per_packet: report.elapsed_ns as f64 / report.sent.max(1) as f64,
    })
}
