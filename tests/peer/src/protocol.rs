//! What the launcher on the host and the agent in dom0 say to each other: one JSON document a line,
//! requests one way, replies and one greeting the other. Knows nothing of how the lines travel.

use serde::{Deserialize, Serialize};

/// A request with the number that its reply will carry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Number chosen by the launcher, repeated in the reply.
    pub id: u64,
    /// What is asked for.
    #[serde(flatten)]
    pub op: Op,
}

/// The operations that an agent performs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Starts a shell command; its output goes to a file that `Wait` reads.
    Spawn {
        /// Text for `sh -c`.
        command: String,
    },
    /// Waits until a process ends or the timeout passes; a process that ended is then forgotten.
    Wait {
        /// Number that `Spawn` returned.
        process: u64,
        /// Patience in the agent's own clock.
        timeout_ms: u64,
    },
    /// Sends a signal to a process and to all that it started.
    Kill {
        /// Number that `Spawn` returned.
        process: u64,
        /// Signal number.
        signal: i32,
    },
    /// Reads a part of a file.
    Read {
        /// The file.
        path: String,
        /// First byte wanted.
        offset: u64,
        /// Most bytes to return.
        limit: u64,
    },
    /// Writes a whole file.
    Write {
        /// The file.
        path: String,
        /// Its new contents.
        contents: String,
    },
    /// Waits until a complete line of a growing file contains one of the texts.
    AwaitLine {
        /// The file; it need not exist yet.
        path: String,
        /// Byte from which lines count.
        offset: u64,
        /// Texts of which one must occur.
        any_of: Vec<String>,
        /// Patience in the agent's own clock.
        timeout_ms: u64,
    },
    /// Reads CLOCK_MONOTONIC.
    Clock,
}

/// What an agent sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Message {
    /// The first line after the agent started.
    Ready {
        /// Protocol version.
        version: u32,
    },
    /// The reply to a request.
    Reply {
        /// Number of the request.
        id: u64,
        /// What came of it.
        result: Outcome,
    },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A process was started under this number.
    Spawned(u64),
    /// A process ended.
    Exited {
        /// Exit code, or 128 plus the signal that ended it.
        code: i32,
        /// Standard output and error, the last part of it if it was long.
        output: String,
    },
    /// The timeout passed first; the output so far.
    StillRunning {
        /// Standard output and error so far, the last part of it if it was long.
        output: String,
    },
    /// Part of a file.
    Data {
        /// The bytes, invalid UTF-8 replaced.
        text: String,
        /// Offset behind the last byte read.
        next: u64,
    },
    /// A line was found.
    Line {
        /// The line, without its end.
        line: String,
        /// Offset behind the line.
        next: u64,
    },
    /// The timeout passed and no line was found.
    NoLine,
    /// CLOCK_MONOTONIC.
    Time {
        /// Nanoseconds since the agent's machine booted.
        monotonic_ns: u64,
    },
    /// Done, with nothing to tell.
    Done,
    /// It failed.
    Failed(String),
}

/// Version of these messages, sent in [`Message::Ready`].
pub const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_its_line() {
        let request = Request { id: 7, op: Op::Spawn { command: "echo \"a\nb\"".into() } };
        let line = serde_json::to_string(&request).unwrap();
        assert!(!line.contains('\n'), "one request, one line: {line}");
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    }

    #[test]
    fn a_reply_survives_its_line() {
        let message = Message::Reply { id: 9, result: Outcome::Exited { code: 1, output: "x\r\ny".into() } };
        let line = serde_json::to_string(&message).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Message>(&line).unwrap(), message);
    }
}
