//! What an operator, or a configuration, wants attached. Knows what can be judged without looking for the guest.

use drayage_wire::container::{MAX_RX_BYTES, MIN_SIZE_BYTES};

use super::attachment::Attachment;
use super::details::{Asked, Containers};
use super::error::{Failure, FailureKind};
use super::nodes::Domain;
use crate::class::Classes;
use crate::policy::Policy;
use crate::port::spec::PortSpec;
use crate::rules::Rules;
use crate::switch::Mac;
use crate::xen::DomainId;

/// What an operator wants attached.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// The guest, by name or number.
    pub domain: String,
    /// The interface's number; the lowest free one when absent.
    pub vif: Option<u32>,
    /// Its address; derived from the guest's UUID when absent.
    pub mac: Option<Mac>,
    /// The uplink of its segment; none for a segment of guests alone.
    pub port: Option<PortSpec>,
    /// When containers go out.
    pub policy: Policy,
    /// Packets that do not wait.
    pub urgent: Classes,
    /// The largest container.
    pub size_bytes: u32,
    /// Whether containers are offered.
    pub containers: Containers,
    /// What the guest is held to.
    pub rules: Rules,
    /// Whether it may have its pages mapped, and what it is told of us.
    pub mapping: Asked,
}

impl AttachRequest {
    /// Judges what can be judged without looking for the guest.
    ///
    /// # Errors
    /// [`Failure`] of the kind [`FailureKind::BadValue`].
    pub fn judge(&self) -> Result<(), Failure> {
        let bad = |message: String| Err(Failure::new(FailureKind::BadValue, message));
        if !(MIN_SIZE_BYTES..=MAX_RX_BYTES).contains(&(self.size_bytes as usize)) {
            let range = format!("{MIN_SIZE_BYTES} to {MAX_RX_BYTES}");
            return bad(format!("bad container size {}: it can be {range} bytes", self.size_bytes));
        }
        if let Some(mac) = self.mac
            && mac.is_group()
        {
            return bad(format!("bad mac {mac}: the first byte of a guest's own address is even"));
        }
        Ok(())
    }

    /// Returns what is remembered of it, for a domain, an interface and who is its backend.
    pub(super) fn attachment(&self, domain: &Domain, vif: u32, backend: DomainId) -> Attachment {
        Attachment {
            mac: self.mac.unwrap_or_else(|| derived_mac(&domain.uuid, vif)),
            uuid: domain.uuid.clone(),
            name: domain.name.clone(),
            vif,
            port: self.port.clone(),
            policy: self.policy,
            urgent: self.urgent,
            size_bytes: self.size_bytes,
            containers: self.containers,
            rules: self.rules,
            mapping: self.mapping.resolve(backend, self.containers),
            configured: false,
        }
    }
}

/// Derives an address from a guest's UUID, in Xen's own range (00:16:3e), so that it stays the same.
fn derived_mac(uuid: &str, vif: u32) -> Mac {
    // FNV-1a.
    let bytes = uuid.bytes().chain(vif.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, ..] = hash.to_be_bytes();
    Mac([0x00, 0x16, 0x3e, a & 0x7f, b, c])
}
