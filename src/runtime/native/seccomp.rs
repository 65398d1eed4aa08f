//! The seccomp profile as a program for the kernel, made by libseccomp as crun and runc do.
//!
//! That takes some milliseconds, so the service does it, once for each profile that there is,
//! and puts the bytes into the bundle; the first process only loads them. In them the system
//! call is found by halves, not one after another.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, Spec,
};
use rustix::fs::{MemfdFlags, memfd_create};

use super::config::{SECCOMP, profile, refused};
use crate::fault::{OrFault, Result};

/// Programs that are kept: one for each role and each flavor's walls.
const KEPT: usize = 32;

type Program = Arc<Vec<u8>>;

/// Puts the program of a specification's profile into its bundle.
pub fn write(bundle: &Path, spec: &Spec) -> Result<()> {
    let Some(profile) = profile(spec) else { return Ok(()) };
    let file = bundle.join(SECCOMP);
    fs::write(&file, program(profile)?.as_slice())
        .or_fault(format_args!("writing {}", file.display()))
}

/// The program of a profile, made once.
fn program(profile: &LinuxSeccomp) -> Result<Program> {
    static MADE: Mutex<Vec<(LinuxSeccomp, Program)>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, program)) = made.iter().find(|(known, _)| known == profile) {
        return Ok(program.clone());
    }
    let program = Arc::new(compile(profile)?);
    made.truncate(KEPT - 1);
    made.insert(0, (profile.clone(), program.clone()));
    Ok(program)
}

/// Makes the program: instructions as the kernel takes them, in this machine's order of bytes.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let doing = "making the seccomp program";
    if profile.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(refused("linux.seccomp.flags: the native runtime has none"));
    }
    if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
        return Err(refused("linux.seccomp.listenerPath: the native runtime has none"));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).or_fault(doing)?;
    filter.set_ctl_nnp(false).or_fault(doing)?;
    filter.set_ctl_optimize(2).or_fault(doing)?;
    for arch in profile.architectures().iter().flatten() {
        filter.add_arch(architecture(*arch)?).or_fault(doing)?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // What happens anyway: libseccomp takes no rule for it.
        if action == default {
            continue;
        }
        let arguments = comparisons(rule.args().as_deref().unwrap_or_default())?;
        for name in rule.names() {
            // One that this libseccomp does not know is left to the default, as by every runtime.
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            filter
                .add_rule_conditional(action, call, &arguments)
                .or_fault(format_args!("{doing}: {name}"))?;
        }
    }
    export(&filter)
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>> {
    let doing = "taking the seccomp program";
    let memory = memfd_create(c"seccomp", MemfdFlags::CLOEXEC).or_fault(doing)?;
    filter.export_bpf(&memory).or_fault(doing)?;
    let mut file = File::from(memory);
    let mut program = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut program)).or_fault(doing)?;
    Ok(program)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    let number = errno.unwrap_or(libc::EPERM.cast_unsigned());
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number.cast_signed()),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        other => {
            return Err(refused(format!("linux.seccomp: the native runtime has no {other:?}")));
        }
    })
}

/// All of them must hold.
fn comparisons(arguments: &[LinuxSeccompArg]) -> Result<Vec<ScmpArgCompare>> {
    let mut comparisons = Vec::new();
    for (at, argument) in arguments.iter().enumerate() {
        // Some runtimes take two of one argument for two rules.
        if arguments[..at].iter().any(|earlier| earlier.index() == argument.index()) {
            return Err(refused("linux.seccomp: one comparison of an argument, no more"));
        }
        let (op, value) = match argument.op() {
            LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, argument.value()),
            LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, argument.value()),
            LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, argument.value()),
            LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
            LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, argument.value()),
            LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, argument.value()),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                (ScmpCompareOp::MaskedEqual(argument.value()), argument.value_two().unwrap_or(0))
            }
        };
        let index = u32::try_from(argument.index()).or_fault("reading linux.seccomp")?;
        comparisons.push(ScmpArgCompare::new(index, op, value));
    }
    Ok(comparisons)
}

fn architecture(arch: Arch) -> Result<ScmpArch> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchArm => ScmpArch::Arm,
        other => return Err(refused(format!("linux.seccomp.architectures: {other:?}"))),
    })
}
