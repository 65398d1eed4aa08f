//! Capabilities, all of them only over the instance's own user namespace.

use oci_spec::OciSpecError;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use super::role::Role;

/// What an application image gets: the same fourteen as in Docker.
const APPLICATION: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// What the kernel grants in the first user namespace, and elsewhere over that namespace's own
/// counts and limits at most.
/// A program whose file asks for one could not be executed without it (capabilities(7), "Safety
/// checking for capability-dumb binaries"). Left out are those by which services decide
/// whether this is a machine with hardware and modules of its own (`ConditionCapability=`).
const POWERLESS: [Capability; 14] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::IpcLock,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::Perfmon,
    Capability::SysPacct,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// What an init program and its services need beyond: their own mounts,
/// interfaces, namespaces, debugging and power-off.
const SYSTEM: [Capability; 7] = [
    Capability::DacReadSearch,
    Capability::IpcOwner,
    Capability::NetAdmin,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysPtrace,
];

/// The capabilities of the first process; none are inheritable or ambient.
/// When it does not run as root, they bound what programs it executes may gain.
pub fn set(role: Role) -> Result<LinuxCapabilities, OciSpecError> {
    let mut all: Capabilities = APPLICATION.into_iter().chain(POWERLESS).collect();
    if role.is_system() {
        all.extend(SYSTEM);
    }
    LinuxCapabilitiesBuilder::default()
        .bounding(all.clone())
        .permitted(all.clone())
        .effective(all)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::InitKind;

    #[test]
    fn nobody_gets_modules_and_hardware() {
        for role in [Role::Application, Role::System(InitKind::Systemd)] {
            let set = set(role).unwrap();
            for never in [
                Capability::SysModule,
                Capability::SysRawio,
                Capability::MacAdmin,
                Capability::MacOverride,
            ] {
                assert!(!set.bounding().as_ref().unwrap().contains(&never), "{never}");
            }
        }
    }

    #[test]
    fn applications_have_the_usual_fourteen_and_what_opens_nothing() {
        let set = set(Role::Application).unwrap();
        assert_eq!(set.bounding().as_ref().unwrap().len(), 28);
        assert_eq!(set.bounding(), set.effective());
        assert!(!set.bounding().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert!(set.ambient().as_ref().unwrap().is_empty());
    }
}
