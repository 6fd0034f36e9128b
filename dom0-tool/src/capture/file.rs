//! A capture as pcapng, which Wireshark opens: a comment on each packet names its container.
//!
//! It knows records and a writer, and runs on a thread of its own.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};

use super::{Item, Record, Source, Travel, Way};
use crate::switch::PortId;

/// Frames that wait for their container to be closed, at most.
const WAITING: usize = 2048;

/// What to write, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The port's name, which the file has for its interface.
    pub port: String,
    /// The names of the guests' interfaces.
    pub vifs: Vec<(PortId, String)>,
    /// The most bytes of a frame that are kept.
    pub snap: usize,
    /// Frames.
    pub count: Option<u64>,
    /// Time.
    pub duration: Option<Duration>,
    /// What the worker's clock is behind the time since 1970, in nanoseconds.
    pub epoch_ns: u64,
}

/// Writes a file until the plan says that it is enough, the data path goes away, or the file takes no more.
/// Returns how many frames were written.
///
/// # Errors
/// When the file cannot be written.
pub fn write(to: impl Write, plan: &Plan, source: &Source) -> std::io::Result<u64> {
    let mut file = File::begin(to, plan)?;
    let until = plan.duration.map(|duration| Instant::now() + duration);
    let mut waiting: VecDeque<Box<Record>> = VecDeque::with_capacity(WAITING);
    let mut closed: HashMap<(PortId, u32), u32> = HashMap::new();
    while plan.count.is_none_or(|count| file.written + (waiting.len() as u64) < count) {
        let item = match until {
            None => source.full.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => source.full.recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        match item {
            Ok(Item::Frame(record)) => waiting.push_back(record),
            Ok(Item::Closed { vif, sequence, hold_ns }) => {
                if closed.len() >= WAITING {
                    closed.clear();
                }
                closed.insert((vif, sequence), hold_ns);
            }
            Err(_) => break,
        }
        // In the order in which they passed: what waits for its container keeps those behind it waiting.
        while let Some(first) = waiting.front_mut() {
            if let Travel::Container { vif, sequence, hold_ns: hold @ None, .. } = &mut first.travel {
                *hold = closed.get(&(*vif, *sequence)).copied();
                if hold.is_none() && waiting.len() < WAITING {
                    break;
                }
            }
            if let Some(record) = waiting.pop_front() {
                file.frame(&record)?;
                // The data path may have gone away.
                let _ = source.free.try_send(record);
            }
        }
        if waiting.is_empty() {
            file.flush()?;
        }
    }
    // Containers that are closed by now; of the others the file says that they are open.
    while let Ok(item) = source.full.try_recv() {
        if let Item::Closed { vif, sequence, hold_ns } = item {
            closed.insert((vif, sequence), hold_ns);
        }
    }
    for mut record in waiting {
        if let Travel::Container { vif, sequence, hold_ns: hold @ None, .. } = &mut record.travel {
            *hold = closed.get(&(*vif, *sequence)).copied();
        }
        file.frame(&record)?;
    }
    file.end(source.lost.load(Ordering::Relaxed))
}

/// Returns how many packets a file has, and how many were lost to the capture.
///
/// # Errors
/// When it cannot be read.
pub fn count(from: impl std::io::Read) -> std::io::Result<(u64, u64)> {
    let mut reader = PcapNgReader::new(from).map_err(failed)?;
    let (mut packets, mut lost) = (0, 0);
    while let Some(block) = reader.next_block() {
        match block.map_err(failed)? {
            Block::EnhancedPacket(_) => packets += 1,
            Block::InterfaceStatistics(block) => {
                for option in block.options {
                    if let InterfaceStatisticsOption::IsbOsDrop(count) = option {
                        lost = count;
                    }
                }
            }
            _ => {}
        }
    }
    Ok((packets, lost))
}

struct File<'a, W: Write> {
    writer: PcapNgWriter<W>,
    plan: &'a Plan,
    written: u64,
}

fn failed(error: pcap_file::PcapError) -> std::io::Error {
    match error {
        pcap_file::PcapError::IoError(error) => error,
        other => std::io::Error::other(other),
    }
}

impl<'a, W: Write> File<'a, W> {
    fn begin(to: W, plan: &'a Plan) -> std::io::Result<Self> {
        let mut writer = PcapNgWriter::new(to).map_err(failed)?;
        // Timestamps in nanoseconds: 10^-9.
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Borrowed(&plan.port)),
            InterfaceDescriptionOption::IfTsResol(9),
        ];
        let description =
            InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: plan.snap as u32, options };
        writer.write_pcapng_block(description).map_err(failed)?;
        let mut file = Self { writer, plan, written: 0 };
        file.flush()?;
        Ok(file)
    }

    fn frame(&mut self, record: &Record) -> std::io::Result<()> {
        // Bits 0 and 1 of the flags: inbound and outbound.
        let (flags, seen) = match record.way {
            Way::In => (1, "received"),
            Way::Out => (2, "sent"),
        };
        let comment = format!("{seen} {}", describe(record.travel, &self.plan.vifs));
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(self.plan.epoch_ns + record.at_ns),
            original_len: record.len as u32,
            data: Cow::Borrowed(&record.bytes),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Owned(comment)),
                EnhancedPacketOption::Flags(flags),
            ],
        };
        self.writer.write_pcapng_block(block).map_err(failed)?;
        self.written += 1;
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.get_mut().flush()
    }

    fn end(mut self, lost: u64) -> std::io::Result<u64> {
        let options = vec![
            InterfaceStatisticsOption::IsbIfRecv(self.written + lost),
            InterfaceStatisticsOption::IsbOsDrop(lost),
        ];
        let statistics = InterfaceStatisticsBlock { interface_id: 0, timestamp: 0, options };
        self.writer.write_pcapng_block(statistics).map_err(failed)?;
        self.flush()?;
        Ok(self.written)
    }
}

/// Says how a frame travels.
fn describe(travel: Travel, vifs: &[(PortId, String)]) -> String {
    let name = |vif| {
        let found = vifs.iter().find(|(port, _)| *port == vif);
        found.map_or_else(|| "a new vif".to_owned(), |(_, name)| name.clone())
    };
    match travel {
        Travel::Nowhere => "in no container".into(),
        Travel::Alone { vif } => format!("alone, {}", name(vif)),
        Travel::Container { vif, sequence, position, hold_ns } => {
            let hold =
                hold_ns.map_or("still open".into(), |ns| format!("held {}.{:03} us", ns / 1000, ns % 1000));
            format!("in container {sequence}, position {position}, {}, {hold}", name(vif))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::capture;

    const VIF: PortId = PortId(4);

    fn plan() -> Plan {
        Plan {
            port: "packet:eth0".into(),
            vifs: vec![(VIF, "web (3) vif 0".into())],
            snap: 100,
            count: None,
            duration: None,
            epoch_ns: 1_700_000_000_000_000_000,
        }
    }

    /// A packet's time, length, bytes and comment.
    type Read = (u64, u32, Vec<u8>, String);

    /// Reads a file: of each packet its time, length, bytes and comment, and what was lost.
    fn read(file: &[u8]) -> (Vec<Read>, u64) {
        let mut reader = PcapNgReader::new(file).unwrap();
        let (mut packets, mut lost) = (Vec::new(), None);
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(block) => {
                    assert!(block.options.contains(&InterfaceDescriptionOption::IfTsResol(9)));
                    assert!(
                        block.options.contains(&InterfaceDescriptionOption::IfName("packet:eth0".into()))
                    );
                }
                Block::EnhancedPacket(block) => {
                    let comment = block.options.iter().find_map(|option| match option {
                        EnhancedPacketOption::Comment(text) => Some(text.to_string()),
                        _ => None,
                    });
                    let at = block.timestamp.as_nanos() as u64;
                    packets.push((at, block.original_len, block.data.to_vec(), comment.unwrap()));
                }
                Block::InterfaceStatistics(block) => {
                    lost = block.options.iter().find_map(|option| match option {
                        InterfaceStatisticsOption::IsbOsDrop(lost) => Some(*lost),
                        _ => None,
                    });
                }
                other => panic!("{other:?}"),
            }
        }
        (packets, lost.expect("it says what was lost"))
    }

    fn in_container(sequence: u32, position: u32, hold_ns: Option<u32>) -> Travel {
        Travel::Container { vif: VIF, sequence, position, hold_ns }
    }

    #[test]
    fn a_file_says_where_its_packets_were() {
        let (mut ours, source) = capture(PortId(1), 100);
        ours.take(5, Way::In, in_container(7, 0, None), &[1; 60]);
        ours.take(6, Way::In, in_container(7, 1, None), &[2; 1514]);
        ours.take(7, Way::Out, in_container(90, 3, Some(1_234)), &[3; 70]);
        ours.take(8, Way::In, Travel::Nowhere, &[4; 60]);
        ours.close(VIF, 7, 50_000);
        ours.take(9, Way::In, in_container(8, 0, None), &[5; 60]);
        drop(ours);
        let mut file = Vec::new();
        assert_eq!(write(&mut file, &plan(), &source).unwrap(), 5);
        let (packets, lost) = read(&file);
        assert_eq!(lost, 0);
        let comments: Vec<&str> = packets.iter().map(|p| p.3.as_str()).collect();
        assert_eq!(
            comments,
            [
                "received in container 7, position 0, web (3) vif 0, held 50.000 us",
                "received in container 7, position 1, web (3) vif 0, held 50.000 us",
                "sent in container 90, position 3, web (3) vif 0, held 1.234 us",
                "received in no container",
                "received in container 8, position 0, web (3) vif 0, still open",
            ]
        );
        assert_eq!((packets[0].0, packets[0].1, &packets[0].2), (plan().epoch_ns + 5, 60, &vec![1; 60]));
        assert_eq!((packets[1].1, &packets[1].2), (1514, &vec![2; 100]), "cut off, and its length is known");
    }

    /// Wireshark's own reader, where it is installed.
    #[test]
    fn wireshark_reads_what_is_written() {
        let (mut ours, source) = capture(PortId(1), 100);
        ours.take(5, Way::In, in_container(7, 1, None), &[2; 1514]);
        ours.close(VIF, 7, 50_000);
        drop(ours);
        let mut file = Vec::new();
        write(&mut file, &plan(), &source).unwrap();
        let path = std::env::temp_dir().join(format!("drayage-capture-{}.pcapng", std::process::id()));
        std::fs::write(&path, file).unwrap();
        let mut tshark = std::process::Command::new("tshark");
        tshark.arg("-r").arg(&path).args(["-T", "fields", "-E", "separator=|"]);
        for field in ["time_epoch", "len", "cap_len", "interface_name", "comment"] {
            tshark.arg("-e").arg(format!("frame.{field}"));
        }
        let output = tshark.output();
        std::fs::remove_file(path).unwrap();
        let Ok(output) = output else {
            eprintln!("tshark is not installed: not tried");
            return;
        };
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            printed.trim_end(),
            "1700000000.000000005|1514|100|packet:eth0|\
             received in container 7, position 1, web (3) vif 0, held 50.000 us",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    fn it_ends_with_the_count() {
        let (mut ours, source) = capture(PortId(1), 100);
        for n in 0..10 {
            ours.take(n, Way::In, Travel::Nowhere, &[0; 60]);
        }
        let mut file = Vec::new();
        let plan = Plan { count: Some(3), ..plan() };
        assert_eq!(write(&mut file, &plan, &source).unwrap(), 3);
        drop(source);
        assert!(!ours.has_ended());
        ours.take(11, Way::In, Travel::Nowhere, &[0; 60]);
        assert!(ours.has_ended());
    }

    #[test]
    fn what_finds_no_record_is_counted_and_nothing_waits() {
        let (mut ours, source) = capture(PortId(1), 64);
        for n in 0..5000 {
            ours.take(n, Way::Out, Travel::Alone { vif: VIF }, &[0; 60]);
        }
        drop(ours);
        let mut file = Vec::new();
        assert_eq!(write(&mut file, &plan(), &source).unwrap(), 4096);
        let (packets, lost) = read(&file);
        assert_eq!((packets.len(), lost), (4096, 5000 - 4096));
        assert_eq!(packets[0].3, "sent alone, web (3) vif 0");
    }

    #[test]
    fn it_ends_with_the_time() {
        let (_ours, source) = capture(PortId(1), 64);
        let plan = Plan { duration: Some(Duration::from_millis(10)), ..plan() };
        let mut file = Vec::new();
        assert_eq!(write(&mut file, &plan, &source).unwrap(), 0);
    }
}
