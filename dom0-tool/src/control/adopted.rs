//! Interfaces whose nodes others make and remove, and which we serve: those of a plain `vif = […]` line of xl's whose
//! `script` is ours (below `backend/vif`), and, in a driver domain, those that `drayage attach --backend` made in dom0.
//!
//! libxl waits for our `InitWait`, then runs the script, which looks whether we are the one that said so. To remove an
//! interface both write `online = 0` and wait for our `Closed`; whether the guest plays along does not matter then, for
//! it may be paused. This module knows keys, and nothing of rings.

use std::path::Path;

use drayage_wire::keys::{self, State};

use super::attachment::Attachment;
use super::details::{Asked, Containers};
use super::device::Device;
use super::error::{Failure, FailureKind};
use super::nodes::{self, Domain, Keeper, Nodes};
use super::plane::DataPlane;
use super::{AttachRequest, Manager};
use crate::port::spec::PortSpec;
use crate::store::{Store, StoreError, Transaction, children, read_text};
use crate::switch::Mac;
use crate::vif::Rings;
use crate::xen::DomainId;

/// The script's name, wherever it lies.
const SCRIPT: &str = "vif-drayage";
/// The watches' token.
pub(super) const TOKEN: &str = "adopt";
/// Names of network devices have no more characters.
const MOST_DEVICE_NAME: usize = 15;

/// Returns where such nodes are, and whose they are.
fn roots(own: DomainId) -> [(String, Keeper); 2] {
    let vifs = format!("{}/backend/{}", nodes::home(own), keys::FRONTEND_TYPE);
    [(vifs, Keeper::Toolstack), (nodes::backend_root(own), Keeper::Dom0)]
}

impl<S: Store, D: DataPlane> Manager<S, D> {
    /// Watches for what others make.
    pub(super) fn watch_for_adoption(&self) -> Result<(), StoreError> {
        roots(self.own).iter().try_for_each(|(root, _)| self.store.watch(root, TOKEN))
    }

    /// Looks at all that others have made.
    pub(super) fn adopt_all(&mut self, now_ns: u64) -> Result<(), StoreError> {
        for (root, keeper) in roots(self.own) {
            for domain in children(&self.store, &root)? {
                for vif in children(&self.store, &format!("{root}/{domain}"))? {
                    if let (Ok(domain), Ok(vif)) = (domain.parse(), vif.parse()) {
                        self.look_at((DomainId(domain), vif), keeper, now_ns)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Handles a change where others make nodes.
    pub(super) fn adoption_changed(&mut self, path: &str, now_ns: u64) -> Result<(), StoreError> {
        for (root, keeper) in roots(self.own) {
            let Some(rest) = path.strip_prefix(&root) else { continue };
            let mut parts = rest.split('/').skip(1);
            return match (parts.next().map(str::parse), parts.next().map(str::parse)) {
                (None, _) => self.adopt_all(now_ns),
                (Some(Ok(domain)), Some(Ok(vif))) => self.look_at((DomainId(domain), vif), keeper, now_ns),
                _ => Ok(()),
            };
        }
        Ok(())
    }

    fn look_at(&mut self, key: (DomainId, u32), keeper: Keeper, now_ns: u64) -> Result<(), StoreError> {
        let nodes = match keeper {
            Keeper::Toolstack => Nodes::of_toolstack(self.own, key.0, key.1),
            Keeper::Dom0 | Keeper::Us => Nodes::of_dom0(self.own, key.0, key.1),
        };
        let state = nodes.backend_state(&self.store)?;
        let online = nodes.is_online(&self.store)?;
        if let Some(device) = self.devices.get(&key) {
            if device.nodes == nodes && !(online && state.is_some()) {
                // To be removed, and waited for.
                self.drop_device(key);
            }
            return Ok(());
        }
        let rings = match state {
            Some(State::Initialising | State::Closed) if online => Rings::New,
            // By an earlier daemon.
            Some(State::InitWait | State::Connected | State::Reconfigured)
                if online && nodes.is_offered(&self.store)? =>
            {
                Rings::TakenOver
            }
            _ => return Ok(()),
        };
        let asked = match keeper {
            Keeper::Toolstack => self.asked_by_xl(key, &nodes),
            Keeper::Dom0 | Keeper::Us => self.asked_by_dom0(&nodes),
        };
        let outcome = match asked {
            Ok(None) => return Ok(()),
            Ok(Some((domain, attachment))) => self.adopt(domain, attachment, &nodes, rings),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = outcome {
            tracing::warn!("vif {} of domain {} is not served: {failure}", key.1, key.0);
            // libxl goes on to the script, which shows this and fails; dom0's command sees it too.
            nodes.set(&self.store, "hotplug-error", &failure.message)?;
            return nodes.set_state(&self.store, State::InitWait);
        }
        self.advance(key, now_ns)
    }

    /// Returns what an interface of xl's is to be, if its script is ours.
    fn asked_by_xl(
        &self,
        key: (DomainId, u32),
        nodes: &Nodes,
    ) -> Result<Option<(Domain, Attachment)>, Failure> {
        let read = |key: &str| read_text(&self.store, Transaction::NONE, &format!("{}/{key}", nodes.backend));
        let bad = |message: String| Failure::new(FailureKind::BadValue, message);
        let script = read("script")?.unwrap_or_default();
        if script.rsplit('/').next() != Some(SCRIPT) {
            return Ok(None);
        }
        if kernel_has(key) {
            let message = "the kernel's netback takes it: unload xen-netback, or write 0 to \
                           /sys/bus/xen-backend/drivers_autoprobe before the guest is created";
            return Err(Failure::new(FailureKind::Taken, message));
        }
        let domain = nodes::domain(&self.store, key.0)?
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("no domain {}", key.0)))?;
        let mac = read(keys::MAC)?.unwrap_or_default();
        let mac = keys::parse_mac(mac.as_bytes()).map(Mac).ok_or_else(|| bad(format!("bad mac {mac:?}")))?;
        let port = read("bridge")?.filter(|bridge| !bridge.is_empty()).map(|bridge| tap_on(&bridge));
        let request = AttachRequest {
            domain: domain.name.clone(),
            vif: Some(key.1),
            mac: Some(mac),
            port: port.transpose().map_err(bad)?,
            policy: self.defaults.0,
            urgent: self.defaults.1,
            size_bytes: super::DEFAULT_SIZE_BYTES,
            containers: Containers::On,
            rules: Default::default(),
            mapping: Asked { staged: self.defaults.2, ..Asked::default() },
        };
        request.judge()?;
        let attachment = request.attachment(&domain, key.1, self.own);
        Ok(Some((domain, attachment)))
    }

    /// Returns what dom0 wants of us, if it made the nodes.
    fn asked_by_dom0(&self, nodes: &Nodes) -> Result<Option<(Domain, Attachment)>, Failure> {
        let Some(text) = nodes.wanted_by_dom0(&self.store)? else { return Ok(None) };
        let attachment: Attachment = serde_json::from_str(&text).map_err(|error| {
            let message = format!("dom0's {:?} of drayage is another one: {error}", "attachment");
            Failure::new(FailureKind::BadValue, message)
        })?;
        let Attachment { name, uuid, .. } = attachment.clone();
        Ok(Some((Domain { id: nodes.domain(), name, uuid }, attachment)))
    }

    fn adopt(
        &mut self,
        domain: Domain,
        attachment: Attachment,
        nodes: &Nodes,
        rings: Rings,
    ) -> Result<(), Failure> {
        let key = (domain.id, attachment.vif);
        if let Some(spec) = &attachment.port {
            self.open_uplink(spec)?;
        }
        let (segment, _) = self.segment_of(&attachment);
        if rings == Rings::New {
            nodes.offer(&self.store, attachment.containers, attachment.mapping)?;
        }
        let device = Device::new(domain, attachment, nodes.clone(), segment, rings);
        self.store.watch(&device.watched(), &device.token())?;
        tracing::info!("serving vif {} of domain {:?} ({}) as asked for", key.1, device.domain.name, key.0);
        self.devices.insert(key, device);
        Ok(())
    }
}

/// Returns the TAP that all guests of a bridge share.
fn tap_on(bridge: &str) -> Result<PortSpec, String> {
    let name: String = format!("dry-{bridge}").chars().take(MOST_DEVICE_NAME).collect();
    format!("tap:{name},bridge={bridge}").parse().map_err(|error| format!("bad bridge {bridge:?}: {error}"))
}

/// Returns whether the kernel's driver serves an interface, or is about to.
fn kernel_has((domain, vif): (DomainId, u32)) -> bool {
    const BUS: &str = "/sys/bus/xen-backend";
    let loaded = Path::new(BUS).join("drivers/vif").exists();
    let probes = std::fs::read_to_string(format!("{BUS}/drivers_autoprobe")).is_ok_and(|on| on.trim() == "1");
    (loaded && probes) || Path::new(BUS).join(format!("devices/vif-{domain}-{vif}/driver")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_has_a_tap() {
        assert_eq!(tap_on("xenbr0").unwrap().to_string(), "tap:dry-xenbr0,bridge=xenbr0");
        assert_eq!(
            tap_on("a-long-bridge-1").unwrap().to_string(),
            "tap:dry-a-long-brid,bridge=a-long-bridge-1"
        );
        assert!(tap_on("a b").unwrap_err().contains("bad bridge \"a b\""));
    }
}
