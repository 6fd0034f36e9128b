//! Guests that a configuration names: attached when they appear, changed and detached when the configuration is
//! another one.
//!
//! It knows what is wanted and what is there, and no file.

use super::device::Stage;
use super::nodes::Domain;
use super::plane::DataPlane;
use super::{AttachRequest, Manager};
use crate::store::{Store, StoreError};
use crate::vif::Rings;
use crate::xen::DomainId;

/// How a configuration names a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// By name.
    Name(String),
    /// By UUID.
    Uuid(String),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name:?}"),
            Self::Uuid(uuid) => write!(f, "with the uuid {uuid}"),
        }
    }
}

/// An interface that a configuration wants.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose.
    pub guest: Who,
    /// Its number.
    pub vif: u32,
    /// The rest.
    pub request: AttachRequest,
}

impl Wanted {
    fn means(&self, name: &str, uuid: &str) -> bool {
        match &self.guest {
            Who::Name(wanted) => wanted == name,
            Who::Uuid(wanted) => wanted.eq_ignore_ascii_case(uuid),
        }
    }
}

impl<S: Store, D: DataPlane> Manager<S, D> {
    /// Attaches what a configuration wants from now on, and detaches what the last one wanted and this one does not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn configure(&mut self, wanted: Vec<Wanted>, now_ns: u64) -> Result<(), StoreError> {
        self.wanted = wanted;
        let unwanted: Vec<(String, u32)> = self
            .remembered
            .iter()
            .map(|r| &r.attachment)
            .filter(|a| {
                let means = |w: &Wanted| w.vif == a.vif && w.means(&a.name, &a.uuid);
                a.configured && !self.wanted.iter().any(means)
            })
            .map(|a| (a.uuid.clone(), a.vif))
            .collect();
        for (uuid, vif) in unwanted {
            self.remembered.retain(|r| (&r.attachment.uuid, r.attachment.vif) != (&uuid, vif));
            let found = self.devices.iter().find(|((_, n), d)| d.attachment.uuid == uuid && *n == vif);
            if let Some(key) = found.map(|(key, _)| *key) {
                tracing::info!("vif {vif} of domain {} is not configured any more", key.0);
                self.close(key, now_ns)?;
            }
        }
        self.save();
        self.close_unused_uplinks();
        self.welcome(now_ns)
    }

    /// Attaches or changes what is configured of the domains that are there.
    pub(super) fn welcome_configured(&mut self, domains: &[Domain], now_ns: u64) -> Result<(), StoreError> {
        let own = self.own;
        for domain in domains.iter().filter(|domain| domain.id != own) {
            for at in 0..self.wanted.len() {
                let wanted = &self.wanted[at];
                if !wanted.means(&domain.name, &domain.uuid) {
                    continue;
                }
                let key = (domain.id, wanted.vif);
                let mut attachment = wanted.request.attachment(domain, wanted.vif, self.own);
                attachment.configured = true;
                match self.devices.get(&key) {
                    Some(device) if matches!(device.stage, Stage::Closing { .. }) => {}
                    // What others made is as they want it.
                    Some(device) if device.nodes.keeper() != super::nodes::Keeper::Us => {}
                    Some(device) if device.attachment == attachment => {}
                    Some(_) => self.change(key, &attachment, now_ns)?,
                    None => {
                        let taken = super::nodes::interfaces(&self.store, domain.id)?.contains(&wanted.vif);
                        let live = super::Nodes::new(self.own, domain.id, wanted.vif)
                            .backend_state(&self.store)?
                            .is_some();
                        if taken && !live {
                            tracing::warn!(
                                "not attaching {:?}: it has an interface {} already; configure another vif",
                                domain.name,
                                wanted.vif
                            );
                            continue;
                        }
                        match self.install(domain, &attachment) {
                            Ok(()) => self.advance(key, now_ns)?,
                            Err(failure) => tracing::warn!("attaching {:?}: {failure}", domain.name),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes an interface what it is wanted to be. Its guest does not notice, unless what was agreed with it changes.
    fn change(
        &mut self,
        key: (DomainId, u32),
        attachment: &super::Attachment,
        now_ns: u64,
    ) -> Result<(), StoreError> {
        if let Some(spec) = &attachment.port
            && let Err(failure) = self.open_uplink(spec)
        {
            tracing::warn!("vif {} of domain {:?} stays as it is: {failure}", key.1, attachment.name);
            return Ok(());
        }
        let (segment, _) = self.segment_of(attachment);
        let Some(device) = self.devices.get_mut(&key) else { return Ok(()) };
        let agreed = |a: &super::Attachment| (a.mac, a.containers, a.mapping);
        let anew = agreed(&device.attachment) != agreed(attachment);
        for remembered in &mut self.remembered {
            let place = &remembered.attachment;
            if place.uuid == attachment.uuid && place.vif == attachment.vif {
                remembered.attachment = attachment.clone();
            }
        }
        if anew {
            // The configuration attaches it again once it is closed.
            let uuid = &attachment.uuid;
            self.remembered.retain(|r| (&r.attachment.uuid, r.attachment.vif) != (uuid, key.1));
            tracing::info!("vif {} of domain {:?} closes, to come again", key.1, attachment.name);
            self.close(key, now_ns)?;
            return if self.devices.contains_key(&key) { Ok(()) } else { self.welcome(now_ns) };
        }
        tracing::info!("vif {} of domain {:?} changes", key.1, attachment.name);
        let connected = matches!(device.stage, Stage::Connected { .. });
        device.attachment = attachment.clone();
        device.segment = segment;
        if connected {
            self.disconnect(key);
            if let Some(device) = self.devices.get_mut(&key) {
                device.rings = Rings::TakenOver;
            }
            self.advance(key, now_ns)?;
        }
        self.save();
        self.close_unused_uplinks();
        Ok(())
    }
}
