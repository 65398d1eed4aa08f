//! `berth:*` of a flavor that opens or closes a way into the kernel; pure.

use crate::fault::{Fault, Result};
use crate::types::ExtraSpecs;

/// Who inside may mount proc and sysfs anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreshProc {
    /// Nobody (`false`).
    Nobody,
    /// The instance's root (`true`).
    Root,
    /// Its users, too, if they make namespaces (`users`).
    Users,
}

/// What the flavor says of its instances' walls. It holds from the next start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walls {
    /// Programs may make the system calls of the 32-bit architecture (`berth:compat_syscalls`, true).
    pub compat_syscalls: bool,
    /// Programs may make user namespaces within the instance's (`berth:nesting`, true): their
    /// root has no right over anything that the instance's has not.
    pub nesting: bool,
    /// Programs may have rings of packet sockets (`berth:packet_rings`, false): the kernel charges
    /// their memory to nobody, so that with them an instance takes all that the host has.
    pub packet_rings: bool,
    /// Who may mount proc and sysfs anew, as container engines do (`berth:fresh_proc`, false): who
    /// does sees there what is the host's and the neighbours'.
    pub fresh_proc: FreshProc,
    /// A system instance has `/dev/fuse` (`berth:fuse`, true): who mounts may serve file systems
    /// from programs of the instance.
    pub fuse: bool,
    /// A system instance has `/dev/net/tun` (`berth:tun`, false): the kernel charges nobody for
    /// packets that nobody fetches from such a device, 30 MiB and more of each.
    pub tun: bool,
}

impl Default for Walls {
    fn default() -> Self {
        Walls {
            compat_syscalls: true,
            nesting: true,
            packet_rings: false,
            fresh_proc: FreshProc::Nobody,
            fuse: true,
            tun: false,
        }
    }
}

impl Walls {
    /// What the flavor's extra specs say.
    pub fn from_extra_specs(specs: &ExtraSpecs) -> Result<Walls> {
        let usual = Walls::default();
        let flag = |name: &str, usual: bool| match specs.get(name).map(|text| text.trim()) {
            None => Ok(usual),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(text) => Err(Fault::invalid(
                format!("flavor.extra_specs.{name}"),
                format!("{text:?} must be true or false"),
            )),
        };
        Ok(Walls {
            compat_syscalls: flag("berth:compat_syscalls", usual.compat_syscalls)?,
            nesting: flag("berth:nesting", usual.nesting)?,
            packet_rings: flag("berth:packet_rings", usual.packet_rings)?,
            fresh_proc: fresh_proc(specs)?,
            fuse: flag("berth:fuse", usual.fuse)?,
            tun: flag("berth:tun", usual.tun)?,
        })
    }
}

fn fresh_proc(specs: &ExtraSpecs) -> Result<FreshProc> {
    const NAME: &str = "berth:fresh_proc";
    match specs.get(NAME).map(|text| text.trim().to_ascii_lowercase()).as_deref() {
        None | Some("false") => Ok(FreshProc::Nobody),
        Some("true") => Ok(FreshProc::Root),
        Some("users") => Ok(FreshProc::Users),
        Some(text) => Err(Fault::invalid(
            format!("flavor.extra_specs.{NAME}"),
            format!("{text:?} must be true, false or users"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Result<Walls> {
        Walls::from_extra_specs(&[(name.into(), value.into())].into())
    }

    #[test]
    fn a_flavor_says_it() {
        let usual = Walls::default();
        assert_eq!(Walls::from_extra_specs(&ExtraSpecs::new()).unwrap(), usual);
        let without = Walls { compat_syscalls: false, ..usual };
        assert_eq!(of("berth:compat_syscalls", "False").unwrap(), without);
        assert_eq!(of("berth:nesting", " false ").unwrap(), Walls { nesting: false, ..usual });
        assert_eq!(
            of("berth:packet_rings", "true").unwrap(),
            Walls { packet_rings: true, ..usual }
        );
        for (text, fresh_proc) in
            [("false", FreshProc::Nobody), (" True", FreshProc::Root), ("users", FreshProc::Users)]
        {
            assert_eq!(of("berth:fresh_proc", text).unwrap(), Walls { fresh_proc, ..usual });
        }
        let fault = of("berth:fresh_proc", "user").unwrap_err();
        assert_eq!(fault.field.unwrap(), "flavor.extra_specs.berth:fresh_proc");
        assert_eq!(of("berth:fuse", "false").unwrap(), Walls { fuse: false, ..usual });
        assert_eq!(of("berth:tun", "true").unwrap(), Walls { tun: true, ..usual });
        let fault = of("berth:nesting", "no").unwrap_err();
        assert_eq!(fault.field.unwrap(), "flavor.extra_specs.berth:nesting");
    }
}
