//! What `list` and `stats` show, as they travel and as scripts read them.

use serde::{Deserialize, Serialize};

use super::Manager;
use super::details::{Containers, Mapping};
use super::device::Stage;
use super::error::{Failure, FailureKind};
use super::plane::DataPlane;
use crate::UplinkCounters;
use crate::port::By;
use crate::rules::Rules;
use crate::store::Store;
use crate::switch::PortId;
use crate::vif::Counters;
use crate::vif::holds::HoldTimes;

/// An interface in `list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The guest's number; absent while it is waited for.
    pub domain: Option<u16>,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The interface's number.
    pub vif: u32,
    /// Its address.
    pub mac: String,
    /// The uplink of its segment.
    pub port: Option<String>,
    /// By what that one's frames go.
    #[serde(default)]
    pub port_by: Option<By>,
    /// `waiting`, `connected`, `closing`, `refused` or `gone`.
    pub state: String,
    /// Whether containers are offered.
    pub containers: Containers,
    /// Whether RX chains carry containers; absent while it is not connected.
    pub rx_containers: Option<bool>,
    /// Whether TX chains do.
    pub tx_containers: Option<bool>,
    /// When containers go out.
    pub policy: String,
    /// Classes of packets that do not wait.
    #[serde(default)]
    pub urgent: String,
    /// The largest container.
    pub size_bytes: u32,
    /// What the guest is held to.
    #[serde(flatten)]
    pub rules: Rules,
    /// Whether the guest may have its pages mapped, and whether it is told to trust this backend.
    pub mapping: Mapping,
    /// Pages of the guest's that are mapped; absent while it is not connected.
    pub staged_pages: Option<u64>,
}

/// An interface in `stats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceStats {
    /// The guest's number.
    pub domain: u16,
    /// Its name.
    pub name: String,
    /// The interface's number.
    pub vif: u32,
    /// `waiting`, `connected`, `closing` or `refused`.
    pub state: String,
    /// RX packets in each RX container; absent without containers.
    pub rx_packets_per_container: Option<f64>,
    /// TX packets in each TX container.
    pub tx_packets_per_container: Option<f64>,
    /// How long RX packets were held; absent while it is not connected.
    #[serde(default)]
    pub hold: Option<HoldTimes>,
    /// What it did.
    #[serde(flatten)]
    pub counters: Counters,
}

/// An uplink in `stats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkStats {
    /// Its name.
    pub port: String,
    /// What it did.
    #[serde(flatten)]
    pub counters: UplinkCounters,
}

fn state(stage: Stage) -> &'static str {
    match stage {
        Stage::Waiting => "waiting",
        Stage::Connected { .. } => "connected",
        Stage::Refused => "refused",
        Stage::Closing { .. } => "closing",
    }
}

fn ratio(packets: u64, containers: u64) -> Option<f64> {
    (containers > 0).then(|| packets as f64 / containers as f64)
}

impl<S: Store, D: DataPlane> Manager<S, D> {
    /// Returns all interfaces, those included whose guests are waited for.
    pub fn list(&mut self) -> Vec<Interface> {
        let view = |domain,
                    attachment: &super::Attachment,
                    state: &str,
                    agreed: Option<(bool, bool, u64)>,
                    port_by: Option<By>| Interface {
            domain,
            name: attachment.name.clone(),
            uuid: attachment.uuid.clone(),
            vif: attachment.vif,
            mac: attachment.mac.to_string(),
            port: attachment.port.as_ref().map(ToString::to_string),
            port_by,
            state: state.into(),
            containers: attachment.containers,
            rx_containers: agreed.map(|(rx, ..)| rx),
            tx_containers: agreed.map(|(_, tx, _)| tx),
            policy: attachment.policy.to_string(),
            urgent: attachment.urgent.to_string(),
            size_bytes: attachment.size_bytes,
            rules: attachment.rules,
            mapping: attachment.mapping,
            staged_pages: agreed.map(|(_, _, pages)| pages),
        };
        let (data, uplinks) = (&mut self.data, &self.uplinks);
        let devices = self.devices.values().map(|device| {
            let agreed = match device.stage {
                Stage::Connected { port, rx_containers, tx_containers } => {
                    let pages = data.counters(port).map_or(0, |counters| counters.staging.pages);
                    Some((rx_containers, tx_containers, pages))
                }
                _ => None,
            };
            let uplink = device.attachment.port.as_ref().and_then(|spec| uplinks.get(spec));
            let by = uplink.and_then(|open| data.uplink_counters(open.port)).map(|counters| counters.by);
            view(Some(device.domain.id.0), &device.attachment, state(device.stage), agreed, by)
        });
        let gone = self.remembered.iter().filter(|r| r.gone_since_ns.is_some());
        devices.chain(gone.map(|r| view(None, &r.attachment, "gone", None, None))).collect()
    }

    /// Returns the counters of all interfaces.
    pub fn stats(&mut self) -> Vec<InterfaceStats> {
        let mut all = Vec::new();
        for ((domain, vif), device) in &self.devices {
            let live = device.stage.port().and_then(|port| self.data.counters(port));
            let counters = live.unwrap_or(device.last_counters);
            let (rx, tx) = (counters.rx, counters.tx);
            all.push(InterfaceStats {
                domain: domain.0,
                name: device.domain.name.clone(),
                vif: *vif,
                state: state(device.stage).into(),
                rx_packets_per_container: ratio(rx.packets, rx.containers),
                tx_packets_per_container: ratio(tx.packets, tx.containers),
                hold: device.stage.port().and_then(|port| self.data.holds(port)),
                counters,
            });
        }
        all
    }

    /// Returns the counters of all uplinks.
    pub fn uplinks(&mut self) -> Vec<UplinkStats> {
        let mut all = Vec::new();
        for open in self.uplinks.all() {
            let counters = self.data.uplink_counters(open.port).unwrap_or_default();
            all.push(UplinkStats { port: open.spec.to_string(), counters });
        }
        all
    }

    /// Returns the data path's port of an uplink, named as it was opened or by its device, or of a guest's interface
    /// (`DOMAIN`, or `DOMAIN/VIF` where there are several), with the name that people know.
    ///
    /// # Errors
    /// [`Failure`], which says what there is.
    pub fn port_named(&self, name: &str) -> Result<(PortId, String), Failure> {
        let is_it =
            |open: &&super::uplinks::Open| open.spec.to_string() == name || open.spec.device() == name;
        if let Some(open) = self.uplinks.all().find(is_it) {
            return Ok((open.port, open.spec.to_string()));
        }
        let (domain, vif) = match name.rsplit_once('/') {
            Some((domain, vif)) => (domain, vif.parse::<u32>().ok()),
            None => (name, None),
        };
        let all = self.connected_names();
        let mut found = self.devices.iter().filter(|((id, n), device)| {
            (device.domain.name == domain || id.to_string() == domain) && vif.is_none_or(|vif| vif == *n)
        });
        if let (Some((_, device)), None) = (found.next(), found.next())
            && let Some(port) = device.stage.port()
            && let Some((_, name)) = all.iter().find(|(known, _)| *known == port)
        {
            return Ok((port, name.clone()));
        }
        let uplinks = self.uplinks.all().map(|open| open.spec.to_string());
        let there_are: Vec<String> = uplinks.chain(all.into_iter().map(|(_, name)| name)).collect();
        let there_are = if there_are.is_empty() { "none".into() } else { there_are.join(", ") };
        let message =
            format!("no port {name:?}: name an uplink, DOMAIN or DOMAIN/VIF; there are: {there_are}");
        Err(Failure::new(FailureKind::NotFound, message))
    }

    /// Returns the ports of all connected interfaces, with their names.
    pub fn connected_names(&self) -> Vec<(PortId, String)> {
        let named = self.devices.iter().filter_map(|((id, vif), device)| {
            Some((device.stage.port()?, format!("{} ({id}) vif {vif}", device.domain.name)))
        });
        named.collect()
    }

    /// Returns the data path's port of an interface that is connected, with its address and name.
    pub fn connected(&self, name: &str, vif: Option<u32>) -> Option<(PortId, crate::switch::Mac)> {
        self.devices
            .iter()
            .filter(|((id, n), d)| {
                (d.domain.name == name || id.to_string() == name) && vif.is_none_or(|vif| vif == *n)
            })
            .find_map(|(_, d)| match d.stage {
                Stage::Connected { port, .. } => Some((port, d.attachment.mac)),
                _ => None,
            })
    }
}
