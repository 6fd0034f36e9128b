//! What an operator asked for, and the file in which it is remembered, so that a guest that is rebooted (and
//! has another domain id then) is attached again.
//!
//! It knows files, and neither xenstore nor the data path.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::details::{Containers, Mapping};
use crate::class::Classes;
use crate::policy::Policy;
use crate::port::spec::PortSpec;
use crate::rules::Rules;
use crate::switch::Mac;

/// An interface that an operator asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The guest's UUID, which outlives its domain id.
    pub uuid: String,
    /// Its name when it was attached.
    pub name: String,
    /// The interface's number.
    pub vif: u32,
    /// Its address.
    #[serde(serialize_with = "write_text", deserialize_with = "read_mac")]
    pub mac: Mac,
    /// The uplink of its segment.
    #[serde(serialize_with = "write_option", deserialize_with = "read_port")]
    pub port: Option<PortSpec>,
    /// When containers go out.
    #[serde(serialize_with = "write_text", deserialize_with = "read_policy")]
    pub policy: Policy,
    /// Packets that do not wait.
    #[serde(default, serialize_with = "write_text", deserialize_with = "read_classes")]
    pub urgent: Classes,
    /// The largest container.
    pub size_bytes: u32,
    /// Whether containers are offered.
    pub containers: Containers,
    /// What the guest is held to.
    #[serde(flatten)]
    pub rules: Rules,
    /// Whether it is the configuration that wants it, and no operator.
    #[serde(default)]
    pub configured: bool,
    /// Whether it may have its pages mapped.
    #[serde(default)]
    pub mapping: Mapping,
}

fn write_text<S: Serializer>(value: &impl ToString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

fn write_option<S: Serializer>(value: &Option<PortSpec>, to: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(to)
}

fn read_mac<'de, D: Deserializer<'de>>(from: D) -> Result<Mac, D::Error> {
    let text = String::deserialize(from)?;
    drayage_wire::keys::parse_mac(text.as_bytes()).map(Mac).ok_or_else(|| D::Error::custom("bad mac"))
}

fn read_port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PortSpec>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

fn read_policy<'de, D: Deserializer<'de>>(from: D) -> Result<Policy, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

fn read_classes<'de, D: Deserializer<'de>>(from: D) -> Result<Classes, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembrance {
    /// What operators asked for.
    pub attachments: Vec<Attachment>,
    /// The names of network devices that we made, and are to remove.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// The file in which it is.
#[derive(Clone, Debug)]
pub struct Memory {
    path: Option<PathBuf>,
}

impl Memory {
    /// Remembers in a file.
    pub fn in_file(path: PathBuf) -> Self {
        Self { path: Some(path) }
    }

    /// Remembers nothing beyond this process.
    pub fn none() -> Self {
        Self { path: None }
    }

    /// Returns what is remembered; nothing if there is no file.
    ///
    /// # Errors
    /// When the file is there and cannot be read or makes no sense.
    pub fn load(&self) -> io::Result<Remembrance> {
        let Some(path) = &self.path else { return Ok(Remembrance::default()) };
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| named(path, io::Error::other(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Remembrance::default()),
            Err(error) => Err(named(path, error)),
        }
    }

    /// Replaces what is remembered, in one step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, all: &Remembrance) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let text = serde_json::to_string_pretty(all).map_err(io::Error::other)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| named(folder, error))?;
        }
        let partial = path.with_extension("new");
        std::fs::write(&partial, text).map_err(|error| named(&partial, error))?;
        std::fs::rename(&partial, path).map_err(|error| named(path, error))
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_again() {
        let folder = std::env::temp_dir().join(format!("drayage-memory-{}", std::process::id()));
        let memory = Memory::in_file(folder.join("attachments.json"));
        assert_eq!(memory.load().unwrap(), Remembrance::default());
        let one = Attachment {
            uuid: "11111111-2222-3333-4444-555555555555".into(),
            name: "one".into(),
            vif: 0,
            mac: Mac([0, 0x16, 0x3e, 1, 2, 3]),
            port: Some("tap:dry0,bridge=br0".parse().unwrap()),
            policy: "fixed:size=8192,timeout=50".parse().unwrap(),
            urgent: "arp,ef".parse().unwrap(),
            size_bytes: 65_536,
            containers: Containers::On,
            rules: Rules { locked_mac: true, isolated: false },
            configured: false,
            mapping: Mapping { staged: true, trusted: false },
        };
        let two = Attachment { vif: 1, port: None, containers: Containers::Off, ..one.clone() };
        let all = Remembrance { attachments: vec![one, two], devices: vec!["dry0".into()] };
        memory.save(&all).unwrap();
        assert_eq!(memory.load().unwrap(), all);
        std::fs::write(folder.join("attachments.json"), "rubbish").unwrap();
        assert!(memory.load().unwrap_err().to_string().contains("attachments.json"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
