//! Whom a process is that still is berth's program, and what it may.

use oci_spec::runtime::PosixRlimitType;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::config::{self, refused};
use crate::fault::{OrFault, Result};

/// Has the kernel kill this process when its parent ends. It forgets that with a change of ids and
/// is not told of a parent that has ended before: what holds always is that the line ends.
pub(super) fn die_with_the_monitor() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).or_fault("tying it to the monitor")
}

/// What takes the host's root: raising limits, a lower score.
pub(super) fn as_root_of_the_host(score: Option<i32>, rlimits: &[config::Rlimit]) -> Result<()> {
    if let Some(score) = score {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .or_fault("setting oom_score_adj")?;
    }
    for limit in rlimits {
        let known = |value: u64| (value != u64::MAX).then_some(value);
        let new = Rlimit { current: known(limit.soft), maximum: known(limit.hard) };
        setrlimit(resource(limit.kind)?, new)
            .or_fault(format_args!("setting the limit {:?}", limit.kind))?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> Result<Resource> {
    use PosixRlimitType as Type;
    Ok(match kind {
        Type::RlimitCpu => Resource::Cpu,
        Type::RlimitFsize => Resource::Fsize,
        Type::RlimitData => Resource::Data,
        Type::RlimitStack => Resource::Stack,
        Type::RlimitCore => Resource::Core,
        Type::RlimitRss => Resource::Rss,
        Type::RlimitNproc => Resource::Nproc,
        Type::RlimitNofile => Resource::Nofile,
        Type::RlimitMemlock => Resource::Memlock,
        Type::RlimitAs => Resource::As,
        Type::RlimitLocks => Resource::Locks,
        Type::RlimitSigpending => Resource::Sigpending,
        Type::RlimitMsgqueue => Resource::Msgqueue,
        Type::RlimitNice => Resource::Nice,
        Type::RlimitRtprio => Resource::Rtprio,
        Type::RlimitRttime => Resource::Rttime,
        #[allow(unreachable_patterns)]
        other => return Err(refused(format!("process.rlimits: {other:?} is unknown"))),
    })
}

/// Becomes root of the user namespace that was joined. Nobody inside may look into a process
/// that still is berth's program: it cannot be traced, nor its files be opened.
pub(super) fn become_its_root() -> Result<()> {
    let doing = "becoming the instance's root";
    set_thread_groups(&[]).or_fault(doing)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).or_fault(doing)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).or_fault(doing)?;
    be_closed()
}

/// No process of the instance's may trace this one, nor open its program or its files. The
/// kernel decides it anew with every change of ids.
pub(super) fn be_closed() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).or_fault("closing the process")
}
