//! The toolstack's wishes: `control/shutdown` is watched, and acknowledged by an empty value. Saving
//! and migrating are declined: this guest's state cannot be moved.

use drayage_kernel::control::Request;

use crate::console::println;
use crate::xenstore::{self, End, NO_TRANSACTION, StoreError, Transaction};

const PATH: &str = "control/shutdown";

/// The token of our watch; [`look`] is to be called when it fires.
pub(crate) const TOKEN: &str = "control";

/// How often a transaction that met another one is tried again.
const MAX_TRIES: usize = 16;

/// Says what this guest can do, and watches for wishes.
///
/// # Errors
/// [`StoreError`]: without the watch the guest could only be destroyed.
pub(crate) fn start() -> Result<(), StoreError> {
    for feature in ["control/feature-poweroff", "control/feature-reboot"] {
        // A toolstack that does not know the feature has made no such node and allows none.
        if let Err(StoreError::NoAnswer) = xenstore::write(NO_TRANSACTION, feature, b"1") {
            return Err(StoreError::NoAnswer);
        }
    }
    xenstore::watch(PATH, TOKEN)
}

/// Looks at what is asked and acknowledges it. Returns what must be obeyed: an end.
pub(crate) fn look() -> Option<Request> {
    match acknowledge() {
        Ok(None) => {}
        Ok(Some(Request::PowerOff)) => {
            println!("control: power off");
            return Some(Request::PowerOff);
        }
        Ok(Some(Request::Reboot)) => {
            println!("control: reboot");
            return Some(Request::Reboot);
        }
        Ok(Some(Request::Suspend)) => {
            println!(
                "control: suspend declined: this guest can be neither saved nor migrated; it keeps running"
            );
        }
        Ok(Some(Request::Unknown)) => {
            println!("control: a request that this guest does not know was ignored")
        }
        Err(error) => println!("control: {PATH} cannot be read: {error}"),
    }
    None
}

/// Takes the request: reads the node and empties it, in one transaction.
fn acknowledge() -> Result<Option<Request>, StoreError> {
    for _ in 0..MAX_TRIES {
        let transaction = xenstore::begin()?;
        let request = take(transaction);
        let how = if matches!(request, Ok(Some(_))) { End::Commit } else { End::Abort };
        match xenstore::end(transaction, how) {
            Ok(()) => return request,
            Err(StoreError::Refused(errno)) if errno == "EAGAIN" => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Refused("EAGAIN".into()))
}

fn take(transaction: Transaction) -> Result<Option<Request>, StoreError> {
    let value = match xenstore::read_bytes(transaction, PATH) {
        Ok(value) => value,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error),
    };
    let request = Request::parse(&alloc::string::String::from_utf8_lossy(&value));
    if request.is_some() {
        xenstore::write(transaction, PATH, b"")?;
    }
    Ok(request)
}
