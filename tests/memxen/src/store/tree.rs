//! The nodes of the in-memory xenstore: permissions, transactions that meet each other, watches.
//!
//! It knows neither who calls nor how: `store` puts connections around it.

use std::collections::{BTreeMap, VecDeque};

use drayage_netfront::platform::StoreError;

use crate::DomainId;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Nothing (`n`).
    None,
    /// Read it (`r`).
    Read,
    /// Write it (`w`).
    Write,
    /// Both (`b`).
    Both,
}

impl Permission {
    fn allows(self, wanted: Self) -> bool {
        self == Self::Both || self == wanted
    }
}

/// A watch that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The node, relative to the domain's home if the watch was.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

#[derive(Clone, Debug)]
struct Node {
    value: Vec<u8>,
    /// The owner and what everybody else may, then what single domains may.
    permissions: Vec<(DomainId, Permission)>,
    generation: u64,
}

struct Watch {
    path: String,
    /// What is cut off the paths of events, for a watch on a relative path.
    home: Option<String>,
    token: String,
}

struct Connection {
    domain: DomainId,
    watches: Vec<Watch>,
    events: VecDeque<WatchEvent>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fire {
    /// Watches on the node and on all above it.
    Subtree,
    /// Watches on the node alone: it went with a parent, whose own event covers those above.
    Exact,
}

#[derive(Default)]
struct Open {
    owner: u64,
    changes: BTreeMap<String, Option<Node>>,
    /// What was looked at, with its generation then; `None` for what was missing.
    seen: BTreeMap<String, Option<u64>>,
    fired: Vec<(String, Fire)>,
}

/// The tree, with its connections and open transactions.
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
    generation: u64,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    open: BTreeMap<u32, Open>,
    next_transaction: u32,
    roused: VecDeque<DomainId>,
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Self {
            nodes: BTreeMap::new(),
            generation: 0,
            connections: BTreeMap::new(),
            next_connection: 1,
            open: BTreeMap::new(),
            next_transaction: 1,
            roused: VecDeque::new(),
        };
        for path in ["/", "/local", "/local/domain", "/tool"] {
            tree.plant(path, vec![(DomainId(0), Permission::None)]);
        }
        tree
    }
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

fn below(path: &str, root: &str) -> bool {
    root == "/" || path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn home(domain: DomainId) -> String {
    format!("/local/domain/{}", domain.0)
}

fn valid(path: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-/_@".contains(&b);
    let shape = path == "/" || (path.starts_with('/') && !path.ends_with('/') && !path.contains("//"));
    shape && path.len() < 3072 && path.bytes().all(legal)
}

impl Tree {
    fn plant(&mut self, path: &str, permissions: Vec<(DomainId, Permission)>) {
        self.generation += 1;
        let node = Node { value: Vec::new(), permissions, generation: self.generation };
        self.nodes.insert(path.into(), node);
    }

    pub(crate) fn introduce(&mut self, domain: DomainId) {
        let home = home(domain);
        for path in [home.clone(), format!("{home}/device")] {
            self.plant(&path, vec![(DomainId(0), Permission::None), (domain, Permission::Read)]);
        }
        for dir in ["data", "control", "backend"] {
            self.plant(&format!("{home}/{dir}"), vec![(domain, Permission::None)]);
        }
        self.fire("@introduceDomain", Fire::Exact);
    }

    pub(crate) fn release(&mut self, domain: DomainId) {
        let gone: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.domain == domain).map(|(id, _)| *id).collect();
        for id in gone {
            self.disconnect(id);
        }
        self.delete(0, &home(domain));
        self.fire("@releaseDomain", Fire::Exact);
    }

    /// Returns a domain whose watches fired since it was last returned.
    pub(crate) fn take_roused(&mut self) -> Option<DomainId> {
        self.roused.pop_front()
    }

    pub(crate) fn connect(&mut self, domain: DomainId) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(id, Connection { domain, watches: Vec::new(), events: VecDeque::new() });
        id
    }

    pub(crate) fn disconnect(&mut self, connection: u64) {
        self.connections.remove(&connection);
        self.open.retain(|_, open| open.owner != connection);
    }

    fn domain(&self, connection: u64) -> Result<DomainId, StoreError> {
        self.connections.get(&connection).map(|c| c.domain).ok_or(StoreError::Failed)
    }

    fn absolute(&self, connection: u64, path: &str) -> Result<String, StoreError> {
        let full = if path.starts_with('/') {
            path.into()
        } else {
            format!("{}/{path}", home(self.domain(connection)?))
        };
        if valid(&full) { Ok(full) } else { Err(StoreError::Failed) }
    }

    fn get(&mut self, transaction: u32, path: &str) -> Result<Option<Node>, StoreError> {
        let node = self.nodes.get(path).cloned();
        if transaction == 0 {
            return Ok(node);
        }
        let open = self.open.get_mut(&transaction).ok_or(StoreError::Failed)?;
        if let Some(change) = open.changes.get(path) {
            return Ok(change.clone());
        }
        open.seen.entry(path.into()).or_insert(node.as_ref().map(|n| n.generation));
        Ok(node)
    }

    fn put(&mut self, transaction: u32, path: &str, node: Option<Node>, fire: Fire) {
        if let Some(open) = self.open.get_mut(&transaction) {
            open.changes.insert(path.into(), node);
            open.fired.push((path.into(), fire));
            return;
        }
        self.apply(path, node);
        self.fire(path, fire);
    }

    fn apply(&mut self, path: &str, node: Option<Node>) {
        self.generation += 1;
        match node {
            Some(node) => {
                let node = Node { generation: self.generation, ..node };
                self.nodes.insert(path.into(), node);
            }
            None => {
                self.nodes.remove(path);
            }
        }
    }

    fn fire(&mut self, path: &str, fire: Fire) {
        for connection in self.connections.values_mut() {
            let before = connection.events.len();
            for watch in &connection.watches {
                let hit = match fire {
                    Fire::Subtree => below(path, &watch.path),
                    Fire::Exact => path == watch.path,
                };
                if hit {
                    let relative = watch.home.as_ref().and_then(|home| path.strip_prefix(home.as_str()));
                    let path = relative.map_or(path, |rest| rest.trim_start_matches('/')).into();
                    connection.events.push_back(WatchEvent { path, token: watch.token.clone() });
                }
            }
            if connection.events.len() > before {
                self.roused.push_back(connection.domain);
            }
        }
    }

    /// Returns the paths of a subtree, its root first, as a transaction sees them.
    fn subtree(&self, transaction: u32, root: &str) -> Vec<String> {
        let mut paths: Vec<String> = self.nodes.keys().filter(|p| below(p, root)).cloned().collect();
        if let Some(open) = self.open.get(&transaction) {
            paths.retain(|p| !matches!(open.changes.get(p), Some(None)));
            for (path, node) in &open.changes {
                if node.is_some() && below(path, root) && !paths.contains(path) {
                    paths.push(path.clone());
                }
            }
        }
        paths.sort();
        paths
    }

    fn delete(&mut self, transaction: u32, root: &str) {
        for path in self.subtree(transaction, root) {
            let fire = if path == root { Fire::Subtree } else { Fire::Exact };
            self.put(transaction, &path, None, fire);
        }
    }

    fn check(&self, connection: u64, node: &Node, wanted: Permission) -> Result<(), StoreError> {
        let domain = self.domain(connection)?;
        let owner = node.permissions[0];
        let granted = node.permissions[1..].iter().find(|(d, _)| *d == domain).unwrap_or(&owner).1;
        if domain == DomainId(0) || owner.0 == domain || granted.allows(wanted) {
            Ok(())
        } else {
            Err(StoreError::Denied)
        }
    }

    /// Returns a node that the connection may access, and its path.
    fn find(
        &mut self,
        connection: u64,
        transaction: u32,
        path: &str,
        wanted: Permission,
    ) -> Result<(String, Node), StoreError> {
        let path = self.absolute(connection, path)?;
        let node = self.get(transaction, &path)?.ok_or(StoreError::Missing)?;
        self.check(connection, &node, wanted)?;
        Ok((path, node))
    }

    pub(crate) fn read(&mut self, connection: u64, tx: u32, path: &str) -> Result<Vec<u8>, StoreError> {
        Ok(self.find(connection, tx, path, Permission::Read)?.1.value)
    }

    pub(crate) fn directory(
        &mut self,
        connection: u64,
        tx: u32,
        path: &str,
    ) -> Result<Vec<String>, StoreError> {
        let (path, _) = self.find(connection, tx, path, Permission::Read)?;
        let prefix = if path == "/" { path.clone() } else { format!("{path}/") };
        let all = self.subtree(tx, &path);
        let names = all.iter().filter_map(|p| p.strip_prefix(&prefix));
        Ok(names.filter(|rest| !rest.is_empty() && !rest.contains('/')).map(Into::into).collect())
    }

    /// Makes a node and its missing parents. Fires nothing.
    fn make(&mut self, connection: u64, tx: u32, path: &str) -> Result<Node, StoreError> {
        if let Some(node) = self.get(tx, path)? {
            self.check(connection, &node, Permission::Write)?;
            return Ok(node);
        }
        let above = self.make(connection, tx, parent(path))?;
        let mut permissions = above.permissions;
        let domain = self.domain(connection)?;
        if domain != DomainId(0) {
            permissions[0].0 = domain;
        }
        let node = Node { value: Vec::new(), permissions, generation: 0 };
        match self.open.get_mut(&tx) {
            Some(open) => {
                open.changes.insert(path.into(), Some(node.clone()));
            }
            None => self.apply(path, Some(node.clone())),
        }
        Ok(node)
    }

    pub(crate) fn write(
        &mut self,
        connection: u64,
        tx: u32,
        path: &str,
        value: &[u8],
    ) -> Result<(), StoreError> {
        if value.len() > 2048 {
            return Err(StoreError::Quota);
        }
        let path = self.absolute(connection, path)?;
        let node = self.make(connection, tx, &path)?;
        self.put(tx, &path, Some(Node { value: value.into(), ..node }), Fire::Subtree);
        Ok(())
    }

    pub(crate) fn mkdir(&mut self, connection: u64, tx: u32, path: &str) -> Result<(), StoreError> {
        let path = self.absolute(connection, path)?;
        if self.get(tx, &path)?.is_none() {
            let node = self.make(connection, tx, &path)?;
            self.put(tx, &path, Some(node), Fire::Subtree);
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, connection: u64, tx: u32, path: &str) -> Result<(), StoreError> {
        let (path, _) = self.find(connection, tx, path, Permission::Write)?;
        self.delete(tx, &path);
        Ok(())
    }

    pub(crate) fn permissions(
        &mut self,
        connection: u64,
        tx: u32,
        path: &str,
    ) -> Result<Vec<(DomainId, Permission)>, StoreError> {
        Ok(self.find(connection, tx, path, Permission::Read)?.1.permissions)
    }

    pub(crate) fn set_permissions(
        &mut self,
        connection: u64,
        tx: u32,
        path: &str,
        permissions: &[(DomainId, Permission)],
    ) -> Result<(), StoreError> {
        let (path, node) = self.find(connection, tx, path, Permission::Write)?;
        let owner = permissions.first().ok_or(StoreError::Failed)?;
        if self.domain(connection)? != DomainId(0) && owner.0 != node.permissions[0].0 {
            return Err(StoreError::Denied);
        }
        self.put(tx, &path, Some(Node { permissions: permissions.into(), ..node }), Fire::Subtree);
        Ok(())
    }

    pub(crate) fn watch(&mut self, connection: u64, path: &str, token: &str) -> Result<(), StoreError> {
        let domain = self.domain(connection)?;
        let relative = !path.starts_with(['/', '@']);
        let full = if path.starts_with('@') { path.into() } else { self.absolute(connection, path)? };
        let home = relative.then(|| home(domain));
        let link = self.connections.get_mut(&connection).ok_or(StoreError::Failed)?;
        if link.watches.iter().any(|w| w.path == full && w.token == token) {
            return Err(StoreError::Failed);
        }
        link.watches.push(Watch { path: full, home, token: token.into() });
        link.events.push_back(WatchEvent { path: path.into(), token: token.into() });
        self.roused.push_back(domain);
        Ok(())
    }

    pub(crate) fn unwatch(&mut self, connection: u64, path: &str, token: &str) -> Result<(), StoreError> {
        let full = if path.starts_with('@') { path.into() } else { self.absolute(connection, path)? };
        let link = self.connections.get_mut(&connection).ok_or(StoreError::Failed)?;
        let at = link.watches.iter().position(|w| w.path == full && w.token == token);
        link.watches.remove(at.ok_or(StoreError::Missing)?);
        Ok(())
    }

    pub(crate) fn next_event(&mut self, connection: u64) -> Option<WatchEvent> {
        self.connections.get_mut(&connection)?.events.pop_front()
    }

    pub(crate) fn has_event(&self, connection: u64) -> bool {
        self.connections.get(&connection).is_none_or(|c| !c.events.is_empty())
    }

    pub(crate) fn begin(&mut self, connection: u64) -> Result<u32, StoreError> {
        self.domain(connection)?;
        let id = self.next_transaction;
        self.next_transaction += 1;
        self.open.insert(id, Open { owner: connection, ..Open::default() });
        Ok(id)
    }

    pub(crate) fn commit(&mut self, connection: u64, tx: u32) -> Result<(), StoreError> {
        let open = self.close(connection, tx)?;
        let current = |path: &String| self.nodes.get(path).map(|n| n.generation);
        if open.seen.iter().any(|(path, generation)| current(path) != *generation) {
            return Err(StoreError::Again);
        }
        for (path, node) in open.changes {
            self.apply(&path, node);
        }
        for (path, fire) in open.fired {
            self.fire(&path, fire);
        }
        Ok(())
    }

    pub(crate) fn abort(&mut self, connection: u64, tx: u32) -> Result<(), StoreError> {
        self.close(connection, tx).map(drop)
    }

    fn close(&mut self, connection: u64, tx: u32) -> Result<Open, StoreError> {
        match self.open.remove(&tx) {
            Some(open) if open.owner == connection => Ok(open),
            _ => Err(StoreError::Missing),
        }
    }
}
