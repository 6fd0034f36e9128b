//! The largest super-frame that Linux is to hand to a device: `ip link set DEVICE gso_max_size BYTES`, by one message
//! of rtnetlink. It knows that message (`linux/rtnetlink.h`, `linux/if_link.h`) and nothing of who wants it sent.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// The message's bytes: `struct nlmsghdr`, `struct ifinfomsg`, and one attribute of a number.
const MESSAGE_BYTES: usize = 16 + 16 + 8;
const RTM_SETLINK: u16 = 19;
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_AND_ACK: u16 = 1 | 4;
const IFLA_GSO_MAX_SIZE: u16 = 41;

/// Returns the constants by their names in the headers, so that a test outside can compare them.
#[doc(hidden)]
pub fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("RTM_SETLINK", RTM_SETLINK.into()),
        ("NLMSG_ERROR", NLMSG_ERROR.into()),
        ("NLM_F_REQUEST|NLM_F_ACK", REQUEST_AND_ACK.into()),
        ("IFLA_GSO_MAX_SIZE", IFLA_GSO_MAX_SIZE.into()),
        ("sizeof(struct nlmsghdr)", 16),
        ("sizeof(struct ifinfomsg)", 16),
    ]
}

/// Sets the limit of the device with this index.
///
/// # Errors
/// What the system says.
pub(super) fn set_max_bytes(device_index: u32, bytes: u32) -> io::Result<()> {
    let socket = netlink()?;
    send(&socket, &message(device_index, bytes), SendFlags::empty())?;
    let mut reply = [0; 256];
    let got = recv(&socket, &mut reply[..], RecvFlags::empty())?.0;
    judge(&reply[..got])
}

fn netlink() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

fn message(device_index: u32, bytes: u32) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[0..4].copy_from_slice(&(MESSAGE_BYTES as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_SETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    message[20..24].copy_from_slice(&device_index.to_ne_bytes());
    message[32..34].copy_from_slice(&8u16.to_ne_bytes());
    message[34..36].copy_from_slice(&IFLA_GSO_MAX_SIZE.to_ne_bytes());
    message[36..40].copy_from_slice(&bytes.to_ne_bytes());
    message
}

/// Reads the acknowledgement: an error message whose number is 0 or that of an error, negated.
fn judge(reply: &[u8]) -> io::Result<()> {
    let kind = reply.get(4..6).and_then(<[u8]>::first_chunk).map(|kind| u16::from_ne_bytes(*kind));
    let number = reply.get(16..20).and_then(<[u8]>::first_chunk).map(|number| i32::from_ne_bytes(*number));
    match (kind, number) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(number)) => Err(io::Error::from_raw_os_error(-number)),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_of_the_systems() {
        // No right is needed to be told so.
        let error = set_max_bytes(i32::MAX as u32, 65_510).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
    }

    #[test]
    fn the_message_is_that_of_the_headers() {
        let message = message(7, 0x1_0203);
        let words: Vec<u32> =
            message.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        assert_eq!(words, [40, 19 | 5 << 16, 0, 0, 0, 7, 0, 0, 8 | 41 << 16, 0x1_0203]);
        assert!(judge(&message).is_err() && judge(&message[..17]).is_err());
    }
}
