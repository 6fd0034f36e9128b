//! The side that finds guests and connects them: xenstore on one hand, the data path on the other.
//!
//! Everything here happens on one thread, in reaction to an operator's request, a watch, a fault that the
//! data path noticed, or a deadline. It may take its time; nothing here runs for a packet.

mod adopted;
pub mod attachment;
pub mod configured;
pub mod details;
mod device;
pub mod elsewhere;
pub mod error;
pub mod nodes;
pub mod plane;
mod recall;
mod request;
mod uplinks;
pub mod views;

use std::collections::BTreeMap;

use crate::class::Classes;
use crate::policy::Policy;
use crate::port::spec::PortSpec;
use crate::port::tap::Origin;
use crate::store::{Store, StoreError, WatchEvent};
use crate::switch::Segment;
use crate::vif::Rings;
use crate::xen::DomainId;
use attachment::{Attachment, Memory};
use configured::Wanted;
use details::Staged;
use device::{Device, Stage};
use error::{Failure, FailureKind};
use nodes::{Domain, Keeper, Nodes};
use plane::DataPlane;
pub use request::AttachRequest;
use uplinks::Uplinks;

/// How long a frontend may take to close before it is closed without it.
pub const CLOSE_PATIENCE_NS: u64 = 5_000_000_000;
/// How long an attachment is kept for a guest that is gone: a reboot takes a few seconds.
pub const REBOOT_PATIENCE_NS: u64 = 120_000_000_000;
/// The largest container unless somebody says otherwise.
pub const DEFAULT_SIZE_BYTES: u32 = 65_536;
/// The segment of guests without an uplink.
const LOCAL: Segment = Segment(1);

/// What became of a detachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// It is done.
    Done,
    /// The frontend has been asked to close; [`Manager::is_attached`] says when it has.
    Closing,
}

struct Remembered {
    attachment: Attachment,
    /// Since when there is no such guest.
    gone_since_ns: Option<u64>,
}

/// The control side.
pub struct Manager<S, D> {
    store: S,
    data: D,
    own: DomainId,
    memory: Memory,
    devices: BTreeMap<(DomainId, u32), Device>,
    remembered: Vec<Remembered>,
    uplinks: Uplinks,
    /// What a configuration wants attached.
    wanted: Vec<Wanted>,
    /// What holds for interfaces of xl's, whose `vif` lines cannot say it.
    defaults: (Policy, Classes, Staged),
}

impl<S: Store, D: DataPlane> Manager<S, D> {
    /// Makes a control side for the domain `own`, and watches for guests that come and go.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn new(store: S, data: D, own: DomainId, memory: Memory) -> Result<Self, StoreError> {
        store.watch("@introduceDomain", "introduce")?;
        store.watch("@releaseDomain", "release")?;
        Ok(Self {
            store,
            data,
            own,
            memory,
            devices: BTreeMap::new(),
            remembered: Vec::new(),
            uplinks: Uplinks::new(LOCAL),
            wanted: Vec::new(),
            defaults: Default::default(),
        })
    }

    /// Sets what holds for interfaces of xl's that are found from now on.
    pub fn set_defaults(&mut self, policy: Policy, urgent: Classes, staged: Staged) {
        self.defaults = (policy, urgent, staged);
    }

    /// Returns the data path.
    pub fn data(&mut self) -> &mut D {
        &mut self.data
    }

    /// Finds a domain by name or number.
    ///
    /// # Errors
    /// [`Failure`] of the kind [`FailureKind::NotFound`].
    pub fn find(&self, name: &str) -> Result<Domain, Failure> {
        find_domain(&self.store, self.own, name)
    }

    /// Attaches a guest. Returns what was made.
    ///
    /// # Errors
    /// [`Failure`]; nothing is then left.
    pub fn attach(&mut self, request: &AttachRequest) -> Result<Attachment, Failure> {
        let domain = self.find(&request.domain)?;
        let bad = |message: String| Err(Failure::new(FailureKind::BadValue, message));
        if domain.id == self.own {
            return bad(format!("domain {:?} is the one that this backend runs in", request.domain));
        }
        request.judge()?;
        let vif = self.choose_vif(&domain, request)?;
        let attachment = request.attachment(&domain, vif, self.own);
        self.install(&domain, &attachment)?;
        Ok(attachment)
    }

    /// Makes an attachment, and remembers it.
    fn install(&mut self, domain: &Domain, attachment: &Attachment) -> Result<(), Failure> {
        if let Some(spec) = &attachment.port {
            self.open_uplink(spec)?;
        }
        if let Err(failure) = self.start(domain, attachment) {
            self.close_unused_uplinks();
            return Err(failure);
        }
        // A guest of the same UUID that is gone left its place to this one.
        let place = (&attachment.uuid, attachment.vif);
        self.remembered.retain(|r| (&r.attachment.uuid, r.attachment.vif) != place);
        self.remembered.push(Remembered { attachment: attachment.clone(), gone_since_ns: None });
        self.save();
        Ok(())
    }

    /// Chooses the number of a new interface. A domain that has one of ours gets another only if the request
    /// says how it is told from the first: by number or by address.
    fn choose_vif(&self, domain: &Domain, request: &AttachRequest) -> Result<u32, Failure> {
        let name = &domain.name;
        let taken = |message: String| Err(Failure::new(FailureKind::Taken, message));
        let numbers = nodes::interfaces(&self.store, domain.id)?;
        let mut ours = self.devices.iter().filter(|((id, _), _)| *id == domain.id);
        if let Some(mac) = request.mac
            && let Some(((_, vif), _)) = ours.clone().find(|(_, device)| device.attachment.mac == mac)
        {
            return taken(format!(
                "domain {name:?} is attached already: its interface {vif} has the mac {mac}"
            ));
        }
        match (request.vif, ours.next()) {
            (Some(vif), _) if numbers.contains(&vif) => {
                taken(format!("domain {name:?} has an interface {vif} already; name another with --vif"))
            }
            (Some(vif), _) => Ok(vif),
            (None, Some(((_, vif), _))) if request.mac.is_none() => taken(format!(
                "domain {name:?} is attached already, as interface {vif}: `drayage detach {name}` first, or \
                 tell a second interface from it with --vif or --mac"
            )),
            (None, _) => Ok((0..).find(|n| !numbers.contains(n)).unwrap_or_default()),
        }
    }

    /// Makes the nodes of an attachment, and waits for the frontend.
    fn start(&mut self, domain: &Domain, attachment: &Attachment) -> Result<(), Failure> {
        let vif = attachment.vif;
        let (segment, mtu) = self.segment_of(attachment);
        let nodes = Nodes::new(self.own, domain.id, vif);
        // An earlier daemon's vif that still lives goes on where that one stopped.
        let rings = if nodes.found(&self.store, attachment.mac, attachment.containers)? {
            Rings::TakenOver
        } else {
            nodes.create(&self.store, vif, attachment.mac, mtu, attachment.containers, attachment.mapping)?;
            Rings::New
        };
        let device = Device::new(domain.clone(), attachment.clone(), nodes, segment, rings);
        self.store.watch(&device.watched(), &device.token())?;
        tracing::info!("attached vif {vif} of domain {:?} ({})", domain.name, domain.id);
        self.devices.insert((domain.id, vif), device);
        Ok(())
    }

    /// Returns the segment of an attachment whose uplink is open, and its MTU.
    fn segment_of(&self, attachment: &Attachment) -> (Segment, u16) {
        match &attachment.port {
            Some(spec) => self.uplinks.get(spec).map_or((LOCAL, 1500), |open| (open.segment, open.mtu())),
            None => (LOCAL, 1500),
        }
    }

    fn open_uplink(&mut self, spec: &PortSpec) -> Result<(), Failure> {
        if self.uplinks.open(spec, &mut self.data)? == Origin::Made {
            // At once: it outlives us from now on.
            self.save();
        }
        Ok(())
    }

    fn close_unused_uplinks(&mut self) {
        let Self { remembered, devices, uplinks, data, .. } = self;
        let remembered = remembered.iter().map(|r| &r.attachment);
        let used: Vec<&PortSpec> = remembered
            .chain(devices.values().map(|device| &device.attachment))
            .filter_map(|attachment| attachment.port.as_ref())
            .collect();
        if uplinks.close_all_but(&used, data) {
            self.save();
        }
    }

    /// Ends an attachment, in order if the guest plays along. `vif` is needed where there are several.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn detach(
        &mut self,
        name: &str,
        vif: Option<u32>,
        now_ns: u64,
    ) -> Result<((DomainId, u32), Detached), Failure> {
        let matches = |d: &Device| d.domain.name == name || d.domain.id.to_string() == name;
        let ours: Vec<(DomainId, u32)> = self
            .devices
            .iter()
            .filter(|((_, n), device)| matches(device) && vif.is_none_or(|vif| vif == *n))
            .map(|(key, _)| *key)
            .collect();
        let key = match ours[..] {
            [key] => key,
            [] => return self.forget(name, vif),
            _ => {
                let numbers: Vec<String> = ours.iter().map(|(_, n)| n.to_string()).collect();
                let numbers = numbers.join(", ");
                let message = format!("domain {name:?} has interfaces {numbers}: name one with --vif");
                return Err(Failure::new(FailureKind::BadValue, message));
            }
        };
        if let Some(device) = self.devices.get(&key) {
            let whose = match device.nodes.keeper() {
                Keeper::Us => None,
                Keeper::Toolstack => Some(format!("xl's: `xl network-detach {name} {}`", key.1)),
                Keeper::Dom0 => Some("dom0's: `drayage detach --backend` there".into()),
            };
            if let Some(whose) = whose {
                let message = format!("interface {} of domain {name:?} is {whose}", key.1);
                return Err(Failure::new(FailureKind::Taken, message));
            }
            if device.attachment.configured {
                let message = format!(
                    "interface {} of domain {name:?} is attached by the configuration: take it out of there, and \
                     `drayage reload`",
                    key.1
                );
                return Err(Failure::new(FailureKind::Taken, message));
            }
            let uuid = &device.attachment.uuid;
            self.remembered.retain(|r| (&r.attachment.uuid, r.attachment.vif) != (uuid, key.1));
            self.save();
        }
        self.close(key, now_ns)?;
        let done = if self.devices.contains_key(&key) { Detached::Closing } else { Detached::Done };
        Ok((key, done))
    }

    /// Forgets the attachment of a guest that is not there.
    fn forget(&mut self, name: &str, vif: Option<u32>) -> Result<((DomainId, u32), Detached), Failure> {
        let before = self.remembered.len();
        self.remembered
            .retain(|r| r.attachment.name != name || vif.is_some_and(|vif| vif != r.attachment.vif));
        if self.remembered.len() < before {
            self.save();
            self.close_unused_uplinks();
            return Ok(((DomainId(0), 0), Detached::Done));
        }
        self.find(name)?;
        let what = vif.map_or(String::new(), |vif| format!(" as interface {vif}"));
        let message = format!("domain {name:?} is not attached{what}; `drayage list` shows what is");
        Err(Failure::new(FailureKind::NotFound, message))
    }

    /// Returns whether an interface still exists.
    pub fn is_attached(&self, key: (DomainId, u32)) -> bool {
        self.devices.contains_key(&key)
    }

    /// Returns whether a domain has an interface of ours.
    pub fn serves(&self, domain: DomainId) -> bool {
        self.devices.keys().any(|(id, _)| *id == domain)
    }

    /// Returns whether there is no interface.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Begins to close all interfaces, in order; they stay remembered. Returns whether none is left.
    pub fn close_all(&mut self, now_ns: u64) -> bool {
        // Nobody is attached any more.
        self.wanted.clear();
        let keys: Vec<_> = self.devices.keys().copied().collect();
        for key in keys {
            if let Err(error) = self.close(key, now_ns) {
                tracing::warn!("closing vif {} of domain {}: {error}", key.1, key.0);
                self.drop_device(key);
            }
        }
        self.devices.is_empty()
    }

    /// Handles a watch that fired.
    ///
    /// # Errors
    /// [`StoreError::Broken`]; every other error concerns one guest, and is logged.
    pub fn on_watch(&mut self, event: &WatchEvent, now_ns: u64) -> Result<(), StoreError> {
        let result = match event.token.as_str() {
            "introduce" => self.welcome(now_ns),
            "release" => self.miss(now_ns),
            adopted::TOKEN => self.adoption_changed(&event.path, now_ns),
            token => match Device::key_of(token) {
                Some(key) => self.advance(key, now_ns),
                None => Ok(()),
            },
        };
        match result {
            Err(error @ StoreError::Broken(_)) => Err(error),
            Err(error) => {
                tracing::warn!("after a change of {:?}: {error}", event.path);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Attaches guests that came (again) and are remembered, or configured.
    fn welcome(&mut self, now_ns: u64) -> Result<(), StoreError> {
        if self.wanted.is_empty() && self.remembered.iter().all(|r| r.gone_since_ns.is_none()) {
            return Ok(());
        }
        let domains = nodes::domains(&self.store)?;
        for domain in &domains {
            for at in 0..self.remembered.len() {
                let remembered = &self.remembered[at];
                let attachment = remembered.attachment.clone();
                let key = (domain.id, attachment.vif);
                let wanted = remembered.gone_since_ns.is_some()
                    && attachment.uuid == domain.uuid
                    && !attachment.uuid.is_empty();
                if !wanted || self.devices.contains_key(&key) {
                    continue;
                }
                match self.start(domain, &attachment) {
                    Ok(()) => {
                        self.remembered[at].gone_since_ns = None;
                        // An earlier daemon's vif may be connected already.
                        self.advance(key, now_ns)?;
                    }
                    Err(failure) => tracing::warn!("attaching {:?} again: {failure}", domain.name),
                }
            }
        }
        self.welcome_configured(&domains, now_ns)
    }

    /// Cleans up after guests that are gone.
    fn miss(&mut self, now_ns: u64) -> Result<(), StoreError> {
        let keys: Vec<_> = self.devices.keys().copied().collect();
        for key in keys {
            // What we may not look into is told by its frontend's directory.
            let gone = nodes::domain(&self.store, key.0)?.is_none();
            if gone && self.devices.get(&key).is_some_and(|d| d.nodes.keeper() != Keeper::Dom0) {
                self.lose(key, now_ns)?;
            }
        }
        Ok(())
    }

    /// Handles what the data path noticed.
    ///
    /// # Errors
    /// [`StoreError::Broken`].
    pub fn on_faults(&mut self) -> Result<(), StoreError> {
        for (port, fault) in self.data.take_faults() {
            let found = self.devices.iter().find(|(_, d)| d.stage.port() == Some(port));
            if let Some((key, device)) = found.map(|(key, device)| (*key, device)) {
                tracing::warn!(
                    "vif {} of domain {:?} is not served any more: {fault}",
                    key.1,
                    device.domain.name
                );
                let report = device.nodes.report(&self.store, &fault.to_string());
                self.refuse(key)?;
                report?;
            }
        }
        Ok(())
    }

    /// Returns when [`on_time`](Self::on_time) is due, if it is.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let closing = self.devices.values().filter_map(|d| match d.stage {
            Stage::Closing { until_ns, .. } => Some(until_ns),
            _ => None,
        });
        let gone = self.remembered.iter().filter_map(|r| Some(r.gone_since_ns? + REBOOT_PATIENCE_NS));
        closing.chain(gone).min()
    }

    /// Ends what took too long.
    pub fn on_time(&mut self, now_ns: u64) {
        let late: Vec<_> = self
            .devices
            .iter()
            .filter(|(_, d)| matches!(d.stage, Stage::Closing { until_ns, .. } if until_ns <= now_ns))
            .map(|(key, _)| *key)
            .collect();
        for key in late {
            tracing::warn!("vif {} of domain {} did not close in time, and is removed", key.1, key.0);
            self.drop_device(key);
        }
        let before = self.remembered.len();
        self.remembered.retain(|r| r.gone_since_ns.is_none_or(|since| since + REBOOT_PATIENCE_NS > now_ns));
        if self.remembered.len() < before {
            self.save();
            self.close_unused_uplinks();
        }
    }
}

/// Finds a domain by name or number.
fn find_domain(store: &impl Store, own: DomainId, name: &str) -> Result<Domain, Failure> {
    let all = nodes::domains(store)?;
    let by_name = all.iter().find(|d| d.name == name);
    let found = by_name.or_else(|| all.iter().find(|d| d.id.to_string() == name));
    found.cloned().ok_or_else(|| {
        let others: Vec<String> =
            all.iter().filter(|d| d.id != own).map(|d| format!("{} ({})", d.name, d.id)).collect();
        let there_are = if others.is_empty() { "none".into() } else { others.join(", ") };
        let message = format!("no domain {name:?}; there are: {there_are} (see `xl list`)");
        Failure::new(FailureKind::NotFound, message)
    })
}
