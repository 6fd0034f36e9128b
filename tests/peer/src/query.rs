//! Asks a service for a line of text over UDP. Knows nothing of what the line says.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::sys;

/// Attempts before a service counts as gone, and questions before a word counts as restless.
const ATTEMPTS: usize = 100;

/// What to ask whom.
#[derive(Debug, Clone)]
pub struct Question {
    /// Address.
    pub to: Ipv4Addr,
    /// UDP port.
    pub port: u16,
    /// The question.
    pub text: String,
    /// Word whose value must be the same in two answers.
    pub still: Option<String>,
    /// Time between two questions.
    pub interval_ms: u64,
}

/// Asks, and returns the last answer.
pub fn ask(question: &Question) -> Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("opening a UDP socket")?;
    socket.connect((question.to, question.port)).context("connecting a UDP socket")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut last = exchange(&socket, question)?;
    let Some(key) = &question.still else { return Ok(last) };
    for _ in 0..ATTEMPTS {
        sys::sleep_until(sys::monotonic_ns() + question.interval_ms * 1_000_000);
        let answer = exchange(&socket, question)?;
        let value = word(&answer, key);
        if value.is_none() {
            bail!("no word {key}= in the answer {answer:?}");
        }
        if value == word(&last, key) {
            return Ok(answer);
        }
        last = answer;
    }
    bail!("{key} does not stand still: {last:?}")
}

fn exchange(socket: &UdpSocket, question: &Question) -> Result<String> {
    let mut answer = [0; 2048];
    for _ in 0..ATTEMPTS {
        match socket.send(question.text.as_bytes()).and_then(|_| socket.recv(&mut answer)) {
            Ok(len) => return Ok(String::from_utf8_lossy(&answer[..len]).trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                sys::sleep_until(sys::monotonic_ns() + question.interval_ms * 1_000_000);
            }
            Err(error) => return Err(error).context("asking"),
        }
    }
    bail!("{} does not answer on UDP port {}", question.to, question.port)
}

/// Returns the value of `key=value` in a line of words.
pub fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_by_their_whole_key() {
        let line = "packets_per=3 packets=12 bytes=4";
        assert_eq!(word(line, "packets"), Some("12"));
        assert_eq!(word(line, "byte"), None);
    }

    #[test]
    fn it_asks_until_the_word_stands_still() {
        let service = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = service.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            for packets in [1, 5, 9, 9, 9] {
                let (_, from) = service.recv_from(&mut buffer).unwrap();
                service.send_to(format!("packets={packets}").as_bytes(), from).unwrap();
            }
        });
        let question = Question {
            to: Ipv4Addr::LOCALHOST,
            port,
            text: "stats".into(),
            still: Some("packets".into()),
            interval_ms: 1,
        };
        assert_eq!(ask(&question).unwrap(), "packets=9");
    }
}
