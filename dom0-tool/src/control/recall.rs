//! What outlives a daemon: what it remembers, what an earlier one left, and an end in order. Knows no frontend.

use super::attachment::Remembrance;
use super::error::{Failure, FailureKind};
use super::nodes::{self, Nodes};
use super::plane::DataPlane;
use super::{Manager, Remembered};
use crate::store::{Store, StoreError};
use crate::xen::DomainId;

impl<S: Store, D: DataPlane> Manager<S, D> {
    /// Attaches the guests that were attached before, and removes what an earlier daemon left of others.
    ///
    /// # Errors
    /// [`Failure`], when what was remembered cannot be read.
    pub fn recall(&mut self, now_ns: u64) -> Result<(), Failure> {
        let Remembrance { attachments, devices } = self.memory.load().map_err(|error| {
            let message = format!("{error}; remove the file to start without remembered attachments");
            Failure::new(FailureKind::Other, message)
        })?;
        self.uplinks.inherit(devices);
        for attachment in attachments {
            if let Some(spec) = &attachment.port
                && let Err(failure) = self.uplinks.open(spec, &mut self.data)
            {
                tracing::warn!("not attaching {:?} again: {failure}", attachment.name);
                continue;
            }
            self.remembered.push(Remembered { attachment, gone_since_ns: Some(now_ns) });
        }
        self.welcome(now_ns)?;
        self.adopt_all(now_ns)?;
        self.watch_for_adoption()?;
        self.clear_leftovers()?;
        self.uplinks.remove_inherited();
        self.save();
        Ok(())
    }

    /// Removes backend directories of our type that belong to no attachment.
    fn clear_leftovers(&mut self) -> Result<(), StoreError> {
        let root = nodes::backend_root(self.own);
        for domain in crate::store::children(&self.store, &root)? {
            for vif in crate::store::children(&self.store, &format!("{root}/{domain}"))? {
                if let (Ok(id), Ok(vif)) = (domain.parse(), vif.parse())
                    && !self.devices.contains_key(&(DomainId(id), vif))
                {
                    let of_dom0 = Nodes::of_dom0(self.own, DomainId(id), vif);
                    if of_dom0.wanted_by_dom0(&self.store)?.is_some() {
                        of_dom0.remove(&self.store)?;
                        continue;
                    }
                    tracing::info!("removing what an earlier daemon left of vif {vif} of domain {id}");
                    Nodes::new(self.own, DomainId(id), vif).remove(&self.store)?;
                }
            }
        }
        Ok(())
    }

    /// Ends in order, with no interface left: what was made is removed. What is remembered stays so.
    pub fn end(&mut self) {
        self.uplinks.close_all_but(&[], &mut self.data);
        self.save();
    }

    pub(super) fn save(&self) {
        let all = Remembrance {
            attachments: self.remembered.iter().map(|r| r.attachment.clone()).collect(),
            devices: self.uplinks.made(),
        };
        if let Err(error) = self.memory.save(&all) {
            tracing::warn!("attachments will not be known after a restart: {error}");
        }
    }
}
