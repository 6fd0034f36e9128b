//! The test bed's own tool: a control agent for dom0, a Linux guest's init, and traffic whose
//! every packet is counted. The launcher links this library for the agent's messages and for the
//! reports, so that both ends of the serial line share one definition.
//!
//! Knows nothing of Xen, of `drayage` and of the launcher.

pub mod agent;
pub mod echo;
pub mod frame;
pub mod init;
pub mod keep;
pub mod offload;
pub mod orders;
pub mod ping;
pub mod processes;
pub mod protocol;
pub mod query;
pub mod recv;
pub mod registers;
pub mod remote;
pub mod report;
pub mod send;
pub mod spin;
pub mod stream;
pub mod sys;
pub mod watchfile;
