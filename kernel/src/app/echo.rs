//! `app=echo`: sends back every datagram and every byte of a stream (RFC 862).

use alloc::boxed::Box;
use alloc::vec;

use smoltcp::socket::tcp::State;
use smoltcp::time::Duration;

use super::{App, Next, Starter};
use crate::net::{Net, TCP_BYTES, TcpHandle, UdpHandle};
use crate::settings::{Key, SettingError, Words};

pub(super) const PORT: Key = Key { name: "port", form: "a UDP and TCP port, 1 to 65535" };

/// Connections at a time.
const CONNECTIONS: usize = 8;
/// What one turn copies at once; the largest datagram fits.
const SCRATCH_BYTES: usize = 64 << 10;
/// A peer that says nothing for so long is asked whether it is still there…
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// …and one that does not answer for so long loses its connection.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn configure(words: &Words<'_>) -> Result<Starter, SettingError> {
    let port = words.port(&PORT)?.unwrap_or(7);
    Ok(Box::new(move |net| {
        let name = net.name();
        net.print(format_args!("echo: {name}: udp and tcp port {port}"));
        Box::new(Echo {
            port,
            udp: net.open_udp(port),
            tcp: core::array::from_fn(|_| net.open_tcp(TCP_BYTES, TCP_BYTES)),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        })
    }))
}

struct Echo {
    port: u16,
    udp: UdpHandle,
    tcp: [TcpHandle; CONNECTIONS],
    scratch: Box<[u8]>,
}

impl App for Echo {
    fn poll(&mut self, net: &mut Net<'_>) -> Next {
        self.answer_datagrams(net);
        for connection in self.tcp {
            self.answer_stream(net, connection);
        }
        Next::OnTraffic
    }
}

impl Echo {
    fn answer_datagrams(&mut self, net: &mut Net<'_>) {
        let mut udp = net.udp(self.udp);
        // What finds no room to be sent back waits in the socket; when that is full too, it is dropped and
        // counted there.
        while udp.has_room(SCRATCH_BYTES) {
            let Some(datagram) = udp.receive() else { return };
            // Two echo services must not play ball for ever, and a broadcast is not multiplied.
            if datagram.from.port == self.port || datagram.to.is_none() {
                continue;
            }
            let (len, answer) = (datagram.bytes.len(), datagram.answer());
            let Some(copy) = self.scratch.get_mut(..len) else { continue };
            copy.copy_from_slice(datagram.bytes);
            // There is room, and a datagram from address 0 gets no answer.
            let _ = udp.send(copy, answer);
        }
    }

    fn answer_stream(&mut self, net: &mut Net<'_>, connection: TcpHandle) {
        let socket = net.tcp(connection);
        if !socket.is_open() {
            socket.set_keep_alive(Some(KEEP_ALIVE));
            socket.set_timeout(Some(TIMEOUT));
            // A small answer must not wait for the acknowledgement of the last one.
            socket.set_nagle_enabled(false);
            // A closed socket listens on any port but 0.
            let _ = socket.listen(self.port);
            return;
        }
        loop {
            let room = (socket.send_capacity() - socket.send_queue()).min(self.scratch.len());
            if room == 0 || !socket.can_recv() || !socket.may_send() {
                break;
            }
            let Ok(len) = socket.recv_slice(&mut self.scratch[..room]) else { break };
            // The room was measured, and the socket may send.
            let _ = socket.send_slice(&self.scratch[..len]);
        }
        if socket.state() == State::CloseWait && !socket.can_recv() {
            // The peer has said all; so have we, once what is queued has left.
            socket.close();
        }
    }
}
