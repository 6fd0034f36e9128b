//! xenstore, as `control` uses it. [`client`] speaks to the real one; memxen has one in memory, for tests.
//!
//! It knows paths and values, and nothing of what they mean.

pub mod client;

use crate::xen::DomainId;

/// An open transaction, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Transaction(pub u32);

impl Transaction {
    /// Outside of any transaction.
    pub const NONE: Self = Self(0);
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it becomes visible at once.
    Commit,
    /// None of it does.
    Abort,
}

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Nothing.
    None,
    /// Read it.
    Read,
}

/// Why xenstore did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such node.
    #[error("no xenstore node {0:?}")]
    Missing(String),
    /// The transaction met another one.
    #[error("the xenstore transaction met another")]
    Again,
    /// We may not.
    #[error("xenstore denies access to {0:?}; run as root in dom0")]
    Denied(String),
    /// Anything else, with xenstore's own name for it.
    #[error("xenstore refused {path:?}: {name}")]
    Refused {
        /// The node.
        path: String,
        /// xenstore's error.
        name: String,
    },
    /// The connection is gone.
    #[error("the connection to xenstore broke: {0}")]
    Broken(String),
}

/// A watch that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The node that changed.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

/// A connection to xenstore. Paths are absolute.
pub trait Store {
    /// Returns a node's value.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&self, within: Transaction, path: &str) -> Result<Vec<u8>, StoreError>;

    /// Sets a node's value, making the node and its parents where they are missing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(&self, within: Transaction, path: &str, value: &str) -> Result<(), StoreError>;

    /// Makes a node, if it is missing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn make(&self, within: Transaction, path: &str) -> Result<(), StoreError>;

    /// Removes a node and all below it; a missing one is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    fn remove(&self, within: Transaction, path: &str) -> Result<(), StoreError>;

    /// Sets a node's permissions: its owner with what everybody may, then what single domains may.
    ///
    /// # Errors
    /// [`StoreError`].
    fn permit(
        &self,
        within: Transaction,
        path: &str,
        permissions: &[(DomainId, Permission)],
    ) -> Result<(), StoreError>;

    /// Returns the names of a node's children.
    ///
    /// # Errors
    /// [`StoreError`].
    fn directory(&self, within: Transaction, path: &str) -> Result<Vec<String>, StoreError>;

    /// Watches a node and all below it, or a special node (`@introduceDomain`, `@releaseDomain`). Fires once
    /// at once.
    ///
    /// # Errors
    /// [`StoreError`].
    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError>;

    /// Ends a watch.
    ///
    /// # Errors
    /// [`StoreError`].
    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError>;

    /// Opens a transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    fn begin(&self) -> Result<Transaction, StoreError>;

    /// Ends a transaction.
    ///
    /// # Errors
    /// [`StoreError::Again`] when a commit met another writer.
    fn end(&self, transaction: Transaction, end: End) -> Result<(), StoreError>;
}

/// Returns a node's value as text, or `None` for a node that is missing or holds no text.
///
/// # Errors
/// Every [`StoreError`] but [`StoreError::Missing`].
pub fn read_text(store: &impl Store, within: Transaction, path: &str) -> Result<Option<String>, StoreError> {
    match store.read(within, path) {
        Ok(value) => Ok(String::from_utf8(value).ok()),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the names of a node's children, none for a node that is missing.
///
/// # Errors
/// Every [`StoreError`] but [`StoreError::Missing`].
pub fn children(store: &impl Store, path: &str) -> Result<Vec<String>, StoreError> {
    match store.directory(Transaction::NONE, path) {
        Err(StoreError::Missing(_)) => Ok(Vec::new()),
        result => result,
    }
}

/// Makes changes in a transaction, again and again while it meets others.
///
/// # Errors
/// [`StoreError`]; nothing is then changed.
pub fn transact<S: Store, R>(
    store: &S,
    mut change: impl FnMut(Transaction) -> Result<R, StoreError>,
) -> Result<R, StoreError> {
    /// Meetings are rare and short; this many are a broken xenstore.
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        let transaction = store.begin()?;
        match change(transaction) {
            Ok(result) => match store.end(transaction, End::Commit) {
                Ok(()) => return Ok(result),
                Err(StoreError::Again) => {}
                Err(error) => return Err(error),
            },
            Err(error) => {
                // The first error is the one to tell.
                let _ = store.end(transaction, End::Abort);
                if error != StoreError::Again {
                    return Err(error);
                }
            }
        }
    }
    Err(StoreError::Again)
}
