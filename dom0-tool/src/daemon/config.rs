//! The configuration file: TOML, with one `[[guest]]` table for each interface, whose keys are those of `attach`.
//!
//! It knows texts and what they mean, and nothing of what is running.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::{Map, Value};

use super::{Metrics, Workers, attach_request};
use crate::class::Classes;
use crate::control::configured::{Wanted, Who};
use crate::control::details::Staged;
use crate::control::error::{Failure, FailureKind};
use crate::ipc::Request;
use crate::policy::Policy;

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the daemon listens.
    pub socket: Option<PathBuf>,
    /// Where attachments are remembered.
    pub memory: Option<PathBuf>,
    /// How many workers there are, where they run, and how they trade delay for wake-ups.
    pub worker: Workers,
    /// Whether the data path runs under `SCHED_FIFO`.
    pub realtime: bool,
    /// What holds for an attachment that does not say otherwise.
    pub attach: Defaults,
    /// Where counters are served.
    pub metrics: Metrics,
    /// Whether the daemon keeps all rights that it was started with.
    pub no_sandbox: bool,
    /// Interfaces of guests that are attached when they appear, as they were written.
    guest: Vec<Map<String, Value>>,
    /// Where this was read.
    #[serde(skip)]
    pub path: Option<PathBuf>,
}

/// What holds for an attachment that does not say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// When containers go out.
    #[serde(deserialize_with = "read_text")]
    pub policy: Policy,
    /// Packets that do not wait.
    #[serde(deserialize_with = "read_text")]
    pub urgent: Classes,
    /// Whether guests may have their pages mapped.
    pub staged: Staged,
}

fn read_text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

impl Config {
    /// Reads a file, and judges it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let bad = |error: String| {
            Failure::new(FailureKind::BadValue, format!("configuration {}: {error}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        config.path = Some(path.into());
        config.guests().map_err(|failure| bad(failure.message))?;
        Ok(config)
    }

    /// Returns what is wanted of guests.
    ///
    /// # Errors
    /// [`Failure`] of the kind [`FailureKind::BadValue`].
    pub fn guests(&self) -> Result<Vec<Wanted>, Failure> {
        let mut all: Vec<Wanted> = Vec::new();
        for (at, table) in self.guest.iter().enumerate() {
            let bad = |why: String| {
                Failure::new(FailureKind::BadValue, format!("[[guest]] number {}: {why}", at + 1))
            };
            let wanted = read_guest(table, self.attach).map_err(bad)?;
            if all.iter().any(|other| (&other.guest, other.vif) == (&wanted.guest, wanted.vif)) {
                return Err(bad(format!("guest {} has an interface {} already", wanted.guest, wanted.vif)));
            }
            all.push(wanted);
        }
        Ok(all)
    }
}

/// Reads a table: who it is, and for the rest what an `attach` request may say.
fn read_guest(table: &Map<String, Value>, defaults: Defaults) -> Result<Wanted, String> {
    let mut keys = table.clone();
    let text = |value: Value, key: &str| match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(format!("bad {key} {other}: it is a text")),
    };
    let guest = match (keys.remove("name"), keys.remove("uuid")) {
        (Some(name), None) => Who::Name(text(name, "name")?),
        (None, Some(uuid)) => Who::Uuid(text(uuid, "uuid")?),
        _ => return Err("either name or uuid says which guest is meant".into()),
    };
    // The command line's name for it.
    if let Some(size) = keys.remove("size") {
        keys.insert("size_bytes".into(), size);
    }
    let written: Vec<String> = keys.keys().cloned().collect();
    keys.insert("op".into(), "attach".into());
    keys.insert("domain".into(), guest.to_string().into());
    keys.entry("containers").or_insert_with(|| "on".into());
    let request: Request = serde_json::from_value(Value::Object(keys)).map_err(|error| error.to_string())?;
    let understood = serde_json::to_value(&request).map_err(|error| error.to_string())?;
    if let Some(unknown) = written.iter().find(|key| understood.get(key.as_str()).is_none()) {
        return Err(format!(
            "unknown key {unknown:?}; there are name or uuid, and what `drayage attach --help` lists"
        ));
    }
    let mut request = attach_request(request, defaults).map_err(|failure| failure.message)?;
    request.judge().map_err(|failure| failure.message)?;
    let vif = request.vif.unwrap_or(0);
    request.vif = Some(vif);
    Ok(Wanted { guest, vif, request })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::details::{Asked, Trusted};
    use crate::switch::Mac;

    fn read(text: &str) -> Result<Vec<Wanted>, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.guests().map_err(|failure| failure.message)
    }

    #[test]
    fn a_configuration_is_read_and_its_mistakes_are_named() {
        let config: Config = toml::from_str("socket = \"/tmp/d\"\n[worker]\nholdoff_us = 50").unwrap();
        assert_eq!((config.worker.settings.holdoff_us, config.worker.threads), (50, 1));
        let config: Config = toml::from_str(
            "realtime = true\n[attach]\npolicy = \"slo:delay=500\"\nurgent = \"none\"\nstaged = \"off\"",
        )
        .unwrap();
        let attach =
            Defaults { policy: Policy::Slo { delay_us: 500 }, urgent: Classes::NONE, staged: Staged::Off };
        assert_eq!(config.attach, attach);
        assert!(config.realtime);
        let error = toml::from_str::<Config>("[attach]\npolicy = \"soon\"").unwrap_err().to_string();
        assert!(error.contains("bad policy \"soon\""), "{error}");
        assert!(toml::from_str::<Config>("sockets = 1").unwrap_err().to_string().contains("sockets"));
        let failure = Config::read(Path::new("/nowhere/drayage.toml")).unwrap_err();
        assert!(failure.message.contains("/nowhere/drayage.toml"));
    }

    #[test]
    fn the_configuration_that_is_shipped_is_read_and_so_is_every_example_in_it() {
        let text = include_str!("../../packaging/drayage.toml");
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config::default());
        let lines = text.lines().map(|line| match line.strip_prefix('#') {
            Some(example) if !example.starts_with(' ') => example,
            _ => line,
        });
        let examples: Config = toml::from_str(&lines.collect::<Vec<_>>().join("\n")).unwrap();
        let shown = Config {
            socket: Some(crate::ipc::DEFAULT_SOCKET.into()),
            memory: Some(super::super::DEFAULT_MEMORY.into()),
            worker: Workers { pin: vec![0], ..Workers::default() },
            metrics: Metrics { listen: Some("127.0.0.1:9481".parse().unwrap()), public: false },
            guest: examples.guest.clone(),
            ..Config::default()
        };
        assert_eq!(examples, shown, "what is no example is the default");
        let guests = examples.guests().unwrap();
        assert_eq!((guests.len(), &guests[0].guest), (1, &Who::Name("web".into())));
    }

    #[test]
    fn guests_have_the_keys_of_attach() {
        let text = "[[guest]]\nname = \"web\"\nmac = \"00:16:3e:01:02:03\"\nport = \"tap:dry0\"\nsize = 8192\n\
                    [[guest]]\nuuid = \"12345678-1234-1234-1234-123456789abc\"\nvif = 2\ncontainers = \"off\"\n\
                    policy = \"fixed:size=8192,timeout=100\"\nstaged = \"on\"\ntrusted = \"off\"";
        let all = read(text).unwrap();
        assert_eq!(all[0].guest, Who::Name("web".into()));
        assert_eq!((all[0].vif, all[0].request.size_bytes), (0, 8192));
        assert_eq!(all[0].request.mac, Some(Mac([0, 0x16, 0x3e, 1, 2, 3])));
        assert_eq!((all[1].vif, all[1].request.port.is_none()), (2, true));
        assert_eq!(all[1].request.policy.to_string(), "fixed:size=8192,timeout=100");
        assert_eq!(all[0].request.mapping, Asked::default());
        assert_eq!(all[1].request.mapping, Asked { staged: Staged::On, trusted: Trusted::Off });
    }

    #[test]
    fn what_is_wrong_with_a_guest_is_named() {
        for (text, named) in [
            ("[[guest]]\nvif = 1", "either name or uuid"),
            ("[[guest]]\nname = \"a\"\nuuid = \"b\"", "either name or uuid"),
            ("[[guest]]\nname = 7", "bad name 7"),
            ("[[guest]]\nname = \"a\"\nmacs = \"x\"", "unknown key \"macs\""),
            ("[[guest]]\nname = \"a\"\nmac = \"x\"", "bad mac \"x\""),
            ("[[guest]]\nname = \"a\"\nsize = 1", "bad container size 1"),
            ("[[guest]]\nname = \"a\"\nvif = \"x\"", "u32"),
            (
                "[[guest]]\nname = \"a\"\nstaged = \"x\"",
                "unknown variant `x`, expected one of `auto`, `on`, `off`",
            ),
            ("[[guest]]\nname = \"a\"\n[[guest]]\nname = \"a\"\nmac = \"02:00:00:00:00:01\"", "number 2"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
