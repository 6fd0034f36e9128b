//! Captures: the frames that pass a port go down the connection of whoever asked, on a thread of their own.
//!
//! It knows connections, and not how a file looks.

use std::io::{BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Daemon;
use crate::capture::file::{self, Plan};
use crate::capture::{SNAP_BYTES, Source};
use crate::clock::Clock;
use crate::control::error::{Failure, FailureKind};
use crate::ipc::{Reply, Request};

impl Daemon {
    /// Starts a capture, or says why not.
    pub(super) fn capture(&mut self, request: Request, mut stream: UnixStream) {
        let (plan, source) = match self.prepare(request) {
            Ok(prepared) => prepared,
            Err(failure) => {
                // The asker may have gone away.
                let _ = reply(&mut stream, &Reply::Error(failure));
                return;
            }
        };
        std::thread::spawn(move || {
            let done = reply(&mut stream, &Reply::Ok(serde_json::Value::Null))
                .and_then(|()| file::write(BufWriter::new(&stream), &plan, &source));
            if let Err(error) = done {
                tracing::info!("the capture of {} ended: {error}", plan.port);
            }
        });
    }

    fn prepare(&mut self, request: Request) -> Result<(Plan, Source), Failure> {
        let Request::Capture { port, snap_bytes, count, seconds } = request else {
            return Err(Failure::new(FailureKind::Other, "not a capture"));
        };
        let bad = |message: String| Err(Failure::new(FailureKind::BadValue, message));
        if !SNAP_BYTES.contains(&snap_bytes) {
            let (least, most) = (SNAP_BYTES.start(), SNAP_BYTES.end());
            return bad(format!("bad snap length {snap_bytes}: it can be {least} to {most} bytes"));
        }
        let duration = match seconds.map(Duration::try_from_secs_f64) {
            Some(Err(error)) => {
                return bad(format!("bad number of seconds {}: {error}", seconds.unwrap_or(0.0)));
            }
            Some(Ok(duration)) => Some(duration),
            None => None,
        };
        if count == Some(0) || duration.is_some_and(|duration| duration.is_zero()) {
            return bad("a count or time of 0 captures nothing".into());
        }
        let (id, name) = self.manager.port_named(&port)?;
        let names = self.manager.connected_names();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let plan = Plan {
            port: name,
            vifs: self.manager.data().numbered_with(id, names),
            snap: snap_bytes,
            count,
            duration,
            epoch_ns: since_1970.saturating_sub(self.clock.now_ns()),
        };
        let source = self.manager.data().start_capture(id, snap_bytes).ok_or_else(|| {
            Failure::new(FailureKind::Taken, "a capture is under way already; end it first")
        })?;
        Ok((plan, source))
    }
}

fn reply(stream: &mut UnixStream, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_string(reply).map_err(std::io::Error::other)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}
