//! A sender that takes orders by datagrams, as `app=source` of our guest does: `send to=ADDRESS:PORT size= count= rate=`
//! (and `mac=`) begins a stream, anything else asks how far it is. Knows nothing of how frames are sent.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use crate::frame::parse_mac;
use crate::send::{SendOptions, send};

/// How far the last stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    Idle { sent: u64, elapsed_ns: u64 },
    Sending,
    Failed(String),
}

/// Takes orders for ever; what an order does not say is as in `template`.
pub fn serve(port: u16, template: &SendOptions) -> Result<()> {
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("binding UDP port {port}"))?;
    let progress = Arc::new(Mutex::new(Progress::Idle { sent: 0, elapsed_ns: 0 }));
    let mut buffer = [0; 512];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).context("reading an order")?;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        let answer = match text.trim().strip_prefix("send ").map(|words| ordered(words, template)) {
            None => describe(&lock(&progress)),
            Some(None) => "not understood".to_owned(),
            Some(Some(_)) if *lock(&progress) == Progress::Sending => "busy".to_owned(),
            Some(Some(options)) => {
                *lock(&progress) = Progress::Sending;
                let progress = Arc::clone(&progress);
                thread::spawn(move || {
                    let result = send(&options);
                    *lock(&progress) = match result {
                        Ok(report) => Progress::Idle { sent: report.sent, elapsed_ns: report.elapsed_ns },
                        Err(error) => Progress::Failed(format!("{error:#}")),
                    };
                });
                "started".to_owned()
            }
        };
        // Who asked may be gone.
        socket.send_to(answer.as_bytes(), from).ok();
    }
}

fn lock(progress: &Mutex<Progress>) -> std::sync::MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Idle { sent, elapsed_ns } => format!("sent={sent} done=1 elapsed_ns={elapsed_ns}"),
        Progress::Sending => "sent=0 done=0 elapsed_ns=0".to_owned(),
        Progress::Failed(why) => format!("failed: {why}"),
    }
}

fn ordered(words: &str, template: &SendOptions) -> Option<SendOptions> {
    let mut options = template.clone();
    options.rate = None;
    for word in words.split_ascii_whitespace() {
        let (key, value) = word.split_once('=')?;
        match key {
            "to" => {
                let to: SocketAddrV4 = value.parse().ok()?;
                (options.flow.dst_ip, options.flow.dst_port) = (*to.ip(), to.port());
            }
            "size" => options.frame_bytes = value.parse().ok()?,
            "mac" => options.flow.dst_mac = parse_mac(value).ok()?,
            "count" => options.count = value.parse().ok()?,
            "rate" => options.rate = value.parse().ok().filter(|rate| *rate > 0),
            _ => return None,
        }
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::UdpFlow;

    fn template() -> SendOptions {
        let flow = UdpFlow {
            dst_mac: [2; 6],
            src_mac: [4; 6],
            dst_ip: Ipv4Addr::new(10, 0, 0, 1),
            src_ip: Ipv4Addr::new(10, 0, 0, 2),
            dst_port: 9,
            src_port: 4000,
        };
        SendOptions {
            device: "eth0".into(),
            flow,
            frame_bytes: 60,
            count: 1,
            rate: None,
            batch: 64,
            buffer_bytes: None,
            at_ns: None,
        }
    }

    #[test]
    fn an_order_changes_what_it_names() {
        let options = ordered("to=10.0.1.7:10 size=1514 count=5 rate=0", &template()).unwrap();
        assert_eq!((options.flow.dst_ip, options.flow.dst_port), (Ipv4Addr::new(10, 0, 1, 7), 10));
        assert_eq!((options.frame_bytes, options.count, options.rate), (1514, 5, None));
        assert_eq!(ordered("rate=30", &template()).unwrap().rate, Some(30));
        assert!(ordered("speed=3", &template()).is_none());
    }
}
