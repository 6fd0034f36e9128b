//! All vifs of the guest: they are found in xenstore, come, go and come again.
//!
//! It knows names and numbers of vifs, and neither states nor rings. It fetches no watch events itself: who
//! owns the xenstore connection hands them over.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;

use drayage_wire::keys;

use crate::features::Options;
use crate::platform::{Platform, Store, StoreError, Transaction};
use crate::vif::{Aftermath, Change, Fate, Vif};

/// The directory of all vifs, in the guest's home.
const DEVICES: &str = "device/vif";
/// The token of the watch on it.
const DEVICES_TOKEN: &str = "netfront";
/// What the tokens of the watches on backends start with; the vif's number follows.
pub(crate) const BACKEND_TOKEN: &str = "netfront/";
/// How long to wait before asking again for pages that a backend still used, in nanoseconds.
const RECLAIM_INTERVAL_NS: u64 = 100_000_000;

/// Whose watch fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    /// The driver's; it has acted on it.
    Ours,
    /// Somebody else's.
    Foreign,
}

/// The driver: all vifs of the guest.
#[derive(Debug)]
pub struct Netfront<P> {
    platform: P,
    options: Options,
    vifs: Vec<Vif<P>>,
    after: Aftermath<P>,
    reclaim_at_ns: u64,
}

impl<P: Platform + Store + Clone> Netfront<P> {
    /// Starts to watch for vifs. Those that exist are found by the watch events that follow.
    ///
    /// # Errors
    /// [`StoreError`] when the watch cannot be set.
    pub fn new(platform: P, options: Options) -> Result<Self, StoreError> {
        platform.watch(DEVICES, DEVICES_TOKEN)?;
        let after = Aftermath { changes: VecDeque::new(), remains: Vec::new() };
        Ok(Self { platform, options, vifs: Vec::new(), after, reclaim_at_ns: 0 })
    }

    /// Takes a watch event. Path and token are as xenstore sent them.
    pub fn watch_fired(&mut self, path: &str, token: &str) -> Fired {
        if token == DEVICES_TOKEN {
            match path.strip_prefix(DEVICES).map(|rest| rest.trim_start_matches('/')) {
                None | Some("") => self.look_for_all(),
                Some(rest) => {
                    let (number, key) = rest.split_once('/').unwrap_or((rest, ""));
                    if let Some(handle) = keys::parse_number(number.as_bytes()) {
                        self.directory_changed(handle, key);
                    }
                }
            }
            return Fired::Ours;
        }
        let Some(number) = token.strip_prefix(BACKEND_TOKEN) else { return Fired::Foreign };
        let handle = keys::parse_number(number.as_bytes());
        if let Some(vif) = self.vifs.iter_mut().find(|vif| Some(vif.handle()) == handle) {
            vif.backend_changed(&mut self.after);
        }
        Fired::Ours
    }

    fn look_for_all(&mut self) {
        let names = self.platform.directory(Transaction::NONE, DEVICES).unwrap_or_default();
        let named = names.iter().filter_map(|name| keys::parse_number(name.as_bytes()));
        let mut handles: Vec<u32> = Vec::new();
        for handle in named.chain(self.vifs.iter().map(Vif::handle)) {
            // In order as they come: there are few, and a sort would be 3 KB of the guest's image.
            if let Err(at) = handles.binary_search(&handle) {
                handles.insert(at, handle);
            }
        }
        for handle in handles {
            self.directory_changed(handle, "");
        }
    }

    /// Looks at a vif's directory, of which `key` changed, or all of it.
    fn directory_changed(&mut self, handle: u32, key: &str) {
        match self.vifs.iter().position(|vif| vif.handle() == handle) {
            Some(at) => {
                // The rest is mostly what we wrote ourselves.
                let telling = matches!(key, "" | keys::STATE | keys::BACKEND | keys::BACKEND_ID);
                if telling && self.vifs[at].directory_changed(&mut self.after) == Fate::Gone {
                    self.vifs.remove(at);
                }
            }
            None => {
                let dir = format!("{DEVICES}/{handle}");
                self.vifs.extend(Vif::appear(&self.platform, self.options, handle, dir));
            }
        }
    }

    /// Does what is due outside the data path: closes vifs that broke, and asks for pages back that a backend
    /// still used. Cheap when nothing is due; to be called once in every round of the poll loop.
    pub fn service(&mut self) {
        for vif in &mut self.vifs {
            vif.service(&mut self.after);
        }
        if self.after.remains.is_empty() {
            return;
        }
        let now = self.platform.now_ns();
        if now >= self.reclaim_at_ns {
            self.reclaim_at_ns = now + RECLAIM_INTERVAL_NS;
            self.after.remains.retain_mut(|remains| remains.reclaim().is_err());
        }
    }

    /// Returns what happened to the vifs since it was last asked, oldest first.
    pub fn next_change(&mut self) -> Option<Change> {
        self.after.changes.pop_front()
    }

    /// Returns the vifs.
    pub fn vifs(&self) -> &[Vif<P>] {
        &self.vifs
    }

    /// Returns the vifs, to be polled.
    pub fn vifs_mut(&mut self) -> &mut [Vif<P>] {
        &mut self.vifs
    }

    /// Returns the vif with the given number.
    pub fn vif_mut(&mut self, handle: u32) -> Option<&mut Vif<P>> {
        self.vifs.iter_mut().find(|vif| vif.handle() == handle)
    }

    /// Starts to close all vifs, before the guest ends. Watch events bring it to its end.
    pub fn close(&mut self) {
        for vif in &mut self.vifs {
            vif.end(&mut self.after);
        }
    }

    /// Returns whether every vif is closed and every page is back.
    pub fn is_closed(&self) -> bool {
        self.after.remains.is_empty() && self.vifs.iter().all(Vif::is_closed)
    }
}
