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

/// What an init program and its services need beyond: their own mounts,
/// interfaces, namespaces, debugging and power-off. Left out is what the kernel
/// grants only in the first user namespace anyway, so that nothing inside
/// takes it for usable: modules, raw I/O, the clock, the log, raised limits,
/// locked memory, bpf, perf, checkpoint, MAC and wake-up alarms.
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
    let mut all: Capabilities = APPLICATION.into_iter().collect();
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
    fn nobody_gets_what_reaches_the_host() {
        for role in [Role::Application, Role::System(InitKind::Systemd)] {
            let set = set(role).unwrap();
            for never in [
                Capability::SysModule,
                Capability::SysRawio,
                Capability::SysTime,
                Capability::MacAdmin,
                Capability::MacOverride,
                Capability::Syslog,
                Capability::Bpf,
                Capability::Perfmon,
                Capability::SysResource,
            ] {
                assert!(!set.bounding().as_ref().unwrap().contains(&never), "{never}");
            }
        }
    }

    #[test]
    fn applications_have_the_usual_fourteen() {
        let set = set(Role::Application).unwrap();
        assert_eq!(set.bounding().as_ref().unwrap().len(), 14);
        assert_eq!(set.bounding(), set.effective());
        assert!(!set.bounding().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert!(set.ambient().as_ref().unwrap().is_empty());
    }
}
