//! The system calls that the daemon makes. All others are refused with `EPERM` and named in its log, once each.
//!
//! Whoever adds a call to the daemon adds it here: the tests under Xen fail on a refused one. What is allowed whatever
//! its arguments costs next to nothing (the kernel keeps a bitmap of such calls, Linux 5.11); what is judged by its
//! arguments is therefore nothing that the data path does for packets.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Allowed whatever their arguments.
const ANY: &[i64] = &[
    // The data path: grant copies, event channels, frames, waiting.
    libc::SYS_ioctl,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    // Memory. Mappings that can be run are judged below.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_memfd_create,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_getparam,
    libc::SYS_sched_setattr,
    libc::SYS_sched_getattr,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    // Signals: those that end or reload the daemon, and its own abort.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    // Files: devices, the configuration, the memory of attachments, /sys/class/net.
    libc::SYS_openat,
    libc::SYS_open,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_dup,
    libc::SYS_pipe2,
    // Sockets: the command line's, xenstore's, the metrics', uplinks. Their families are judged below.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // AF_XDP's map and program; it takes CAP_BPF or CAP_NET_ADMIN, too.
    libc::SYS_bpf,
    // Who and where we are.
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_capget,
];

/// The socket families that are used.
const FAMILIES: [i32; 6] =
    [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_XDP];

/// `PR_GET_AUXV` (`linux/prctl.h`).
const PR_GET_AUXV: i32 = 0x4155_5856;

/// What is asked of `prctl`: names of threads, how exact their timers are, and where the kernel's own functions are.
const PRCTLS: [i32; 5] =
    [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_TIMERSLACK, libc::PR_GET_TIMERSLACK, PR_GET_AUXV];

/// Namespaces that a new thread could be in.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

fn rule(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// Returns the filter of everything, with what is to be done about the rest.
fn allowed(otherwise: SeccompAction) -> Result<BpfProgram, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ANY.iter().map(|call| (*call, Vec::new())).collect();
    // No memory that can be run: this program loads no code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = libc::PROT_EXEC as u64;
        rules.insert(call, vec![rule(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    // Threads of this process, and neither others nor new namespaces.
    let thread = libc::CLONE_THREAD as u64;
    let mask = thread | u64::from(NAMESPACES as u32);
    rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(mask), thread)?]);
    // What it asks for is in memory, where it cannot be judged: see `unknown`.
    rules.insert(libc::SYS_clone3, Vec::new());
    let families: Result<Vec<_>, _> =
        FAMILIES.into_iter().map(|family| rule(0, SeccompCmpOp::Eq, family as u64)).collect();
    rules.insert(libc::SYS_socket, families?);
    let prctls: Result<Vec<_>, _> =
        PRCTLS.into_iter().map(|option| rule(0, SeccompCmpOp::Eq, option as u64)).collect();
    rules.insert(libc::SYS_prctl, prctls?);
    rules.insert(libc::SYS_socketpair, vec![rule(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?]);
    Ok(SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()?)
}

/// Returns the filter that makes the C library use `clone`, whose flags can be judged, in place of `clone3`.
fn unknown() -> Result<BpfProgram, Error> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, absent, TargetArch::x86_64)?.try_into()?)
}

/// Filters the system calls of this thread and of those that it will start.
pub(super) fn restrict() -> Result<(), Error> {
    let all = allowed(SeccompAction::Trap)?;
    // Before the other one, in which there is no `seccomp`.
    apply_filter(&unknown()?)?;
    apply_filter(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_made() {
        let program = allowed(SeccompAction::Trap).unwrap();
        assert!(program.len() > ANY.len(), "{}", program.len());
        let mut sorted = ANY.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), ANY.len(), "a call is listed twice");
        for call in
            [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_mount, libc::SYS_init_module, libc::SYS_setuid]
        {
            assert!(!ANY.contains(&call), "{call}");
        }
    }
}
