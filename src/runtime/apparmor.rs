//! AppArmor profiles of instances, one for each role, where the host has AppArmor.
//!
//! Another wall behind those that stand without it: what is hidden or made
//! read-only is so by a mount, which root of a system instance takes away again
//! where the flavor has `berth:fresh_proc`; a profile it does not. Everything that
//! an instance's own namespaces hold stays its own: nested containers, mounts,
//! sysctls, traces.
//!
//! A file is known by its path there. So whoever may mount reaches one by
//! another path, and this is no substitute for the other walls.
//!
//! The profiles are loaded at the service's start, by AppArmor's own program,
//! and stay when it ends; all services of a host share them.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::role::Role;
use super::spec::MASKED;
use crate::config;
use crate::fault::{Fault, FaultKind, Result};
use crate::sys::process::feed;

/// Profile of an instance that runs an init program.
pub const SYSTEM: &str = "berth-system";
/// Profile of one that runs one program.
pub const APPLICATION: &str = "berth-application";

/// AppArmor's own program, where its packages put it.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// The features that the profiles are written for: what a later kernel knows
/// besides is not refused for want of a rule.
const ABI: &str = "/etc/apparmor.d/abi/3.0";

/// What is of no use inside, held or not.
const CAPABILITIES: &str = "sys_module sys_rawio sys_time syslog mac_admin mac_override";

/// File systems that show the kernel's inside, that lie on a device, or on another machine.
const FILE_SYSTEMS: &str = "debugfs, tracefs, securityfs, configfs, efivarfs, pstore, ext2, ext3, \
     ext4, xfs, btrfs, bcachefs, f2fs, jfs, nilfs2, ocfs2, gfs2, reiserfs, minix, vfat, msdos, exfat, \
     ntfs, ntfs3, hfs, hfsplus, iso9660, udf, squashfs, erofs, romfs, cramfs, fuseblk, nfs, nfs4, cifs, \
     smb3, ceph, 9p, virtiofs, afs";

/// What the host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// The kernel does not enforce profiles, for this reason.
    Absent(&'static str),
    /// It does, but the host has no `apparmor_parser` to load them with.
    NoParser,
    /// Profiles can be loaded, with this program.
    Ready(&'static Path),
}

impl Host {
    /// Looks at the host.
    pub fn look() -> Host {
        let enabled = fs::read_to_string(ENABLED).unwrap_or_default();
        if enabled.trim() != "Y" {
            return Host::Absent("the kernel has it not, or is booted without");
        }
        if !Path::new(LOADED).exists() {
            return Host::Absent("securityfs is not mounted on /sys/kernel/security");
        }
        match PARSERS.iter().map(Path::new).find(|path| path.exists()) {
            Some(program) => Host::Ready(program),
            None => Host::NoParser,
        }
    }
}

/// Whether instances run under a profile.
#[derive(Clone, Copy, Debug)]
pub struct AppArmor {
    used: bool,
}

impl AppArmor {
    /// Loads the profiles, in place of those of another version, unless they
    /// are off or the host has no AppArmor. What is required and cannot be is a fault.
    pub fn start(wanted: config::AppArmor) -> Result<AppArmor> {
        let outcome = match (wanted, Host::look()) {
            (config::AppArmor::Off, _) => return Ok(AppArmor { used: false }),
            (config::AppArmor::Auto, Host::Absent(_)) => return Ok(AppArmor { used: false }),
            (_, host) => load(&host),
        };
        match (wanted, outcome) {
            (_, Ok(())) => Ok(AppArmor { used: true }),
            (config::AppArmor::Required, Err(fault)) => Err(fault),
            (_, Err(fault)) => {
                tracing::warn!(fault = %fault.in_full(), "instances run without AppArmor profiles");
                Ok(AppArmor { used: false })
            }
        }
    }

    /// The profile of an instance that starts now; one that was unloaded meanwhile
    /// is loaded again. `None`: it has none.
    pub fn profile(self, role: Role) -> Result<Option<&'static str>> {
        if !self.used {
            return Ok(None);
        }
        let name = if role.is_system() { SYSTEM } else { APPLICATION };
        if mode(name).is_none() {
            load(&Host::look())?;
        }
        Ok(Some(name))
    }
}

/// How the kernel treats a profile: `enforce`, `complain`, …; `None`: it has none of this name.
pub fn mode(name: &str) -> Option<String> {
    let profiles = fs::read_to_string(LOADED).ok()?;
    let mode = |line: &str| {
        let (known, mode) = line.rsplit_once(" (")?;
        (known == name).then(|| mode.trim_end_matches(')').to_owned())
    };
    profiles.lines().find_map(mode)
}

fn unsupported(why: &str) -> Fault {
    let detail = format!(
        "instances cannot have AppArmor profiles: {why}; boot with AppArmor and install its \
         package, or set runtime.apparmor to \"off\""
    );
    Fault::new(FaultKind::HostUnsupported, detail)
}

fn load(host: &Host) -> Result<()> {
    run(host, &["--replace"])
}

/// Whether the host's program takes the profiles; nothing is loaded.
pub fn try_out(host: &Host) -> Result<()> {
    run(host, &["--skip-kernel-load"])
}

fn run(host: &Host, args: &[&str]) -> Result<()> {
    let program = match host {
        Host::Ready(program) => program,
        Host::Absent(why) => return Err(unsupported(why)),
        Host::NoParser => return Err(unsupported("there is no apparmor_parser")),
    };
    let failed = |why: &str| unsupported(&format!("{} refuses it: {why}", program.display()));
    let mut command = Command::new(program);
    command.args(args).args(["--skip-cache", "--quiet"]);
    feed(&mut command, text(Path::new(ABI).exists()).as_bytes())
        .map_err(|error| failed(&error.to_string()))?
        .map_err(|said| failed(&said))
}

/// Both profiles, as the program reads them.
fn text(abi: bool) -> String {
    let abi = if abi { "abi <abi/3.0>,\n" } else { "" };
    format!("{abi}{}{}", profile(SYSTEM, &system()), profile(APPLICATION, APPLICATION_RULES))
}

/// What both have. No rule makes an exception from a `deny`: so where something is an
/// instance's own, all else is described by how its name begins.
fn profile(name: &str, rules: &str) -> String {
    // Whoever takes away what hides it; and in the tree of a container inside, too.
    let hidden: String = MASKED
        .iter()
        .map(|path| format!("  deny /{{,**/}}{}{{,/**}} rwklx,\n", &path[1..]))
        .collect();
    format!(
        "
profile {name} flags=(attach_disconnected, mediate_deleted) {{
  file,
  network,
  unix,
  dbus,
  capability,
  deny capability {CAPABILITIES},

  # The host reaches it, and it reaches what is in it.
  signal (receive),
  signal (send) peer={name},
  ptrace (readby, tracedby),
  ptrace peer={name},

  # The machine's.
  deny /proc/* wl,
  deny /{{,**/}}proc/sysrq-trigger rwklx,
  deny /{{,**/}}proc/{{bus,fs,irq}}/** wl,
  deny /{{,**/}}proc/{{kmsg,kpage*,slabinfo,vmallocinfo}} rwklx,
  deny /sys/kernel/{{security,tracing}}/** rwklx,

  # Not fs/mqueue/, kernel/, net/ and user/.
  deny /{{,**/}}proc/sys/{{[^fknu]*,f[^s]*}}/** wl,
  deny /{{,**/}}proc/sys/fs/{{[^m]*,m[^q]*}}{{,/**}} wl,
  # Not auto_msgmni, domainname, hostname, msg*, ns_last_pid, pid_max, sem* and shm*.
  deny /{{,**/}}proc/sys/kernel/{{[^adhmnps]*,a[^u]*,d[^o]*,h[^o]*,ho[^s]*,m[^s]*}}{{,/**}} wl,
  deny /{{,**/}}proc/sys/kernel/{{n[^s]*,p[^i]*,s[^eh]*,se[^m]*,sh[^m]*}}{{,/**}} wl,
{hidden}{rules}}}
"
    )
}

/// It mounts, and sets its interfaces and its cgroups.
fn system() -> String {
    format!(
        "
  mount,
  remount,
  umount,
  pivot_root,
  deny mount fstype=({FILE_SYSTEMS}),

  # Not devices/virtual/net/, fs/bpf/ and fs/cgroup/.
  deny /sys/{{[^df]*,f[^s]*}}/** wl,
  deny /sys/devices/{{[^v]*,virtual/[^n]*,virtual/n[^e]*}}/** wl,
  deny /sys/fs/{{[^bc]*,b[^p]*,c[^g]*}}/** wl,
"
    )
}

/// It mounts nothing, and writes to nothing of sysfs.
const APPLICATION_RULES: &str = "
  deny mount,
  deny remount,
  deny umount,
  deny pivot_root,
  deny /sys/** wl,
";

#[cfg(test)]
mod tests {
    use super::*;

    /// Matches as AppArmor does, in as far as the rules use its patterns.
    fn matches(pattern: &str, text: &str) -> bool {
        let Some(first) = pattern.chars().next() else { return text.is_empty() };
        let rest = &pattern[first.len_utf8()..];
        let mut others = text.chars();
        let next = others.next();
        match first {
            '{' => {
                let (choices, after) = rest.split_once('}').unwrap();
                choices.split(',').any(|choice| matches(&format!("{choice}{after}"), text))
            }
            '*' => {
                let (after, crosses) = match rest.strip_prefix('*') {
                    Some(after) => (after, true),
                    None => (rest, false),
                };
                matches(after, text)
                    || next
                        .is_some_and(|c| (crosses || c != '/') && matches(pattern, others.as_str()))
            }
            '?' => next.is_some_and(|c| c != '/') && matches(rest, others.as_str()),
            '[' => {
                let (class, after) = rest.split_once(']').unwrap();
                let class = class.strip_prefix('^').unwrap();
                next.is_some_and(|c| !class.contains(c)) && matches(after, others.as_str())
            }
            _ => next == Some(first) && matches(rest, others.as_str()),
        }
    }

    /// Whether a profile refuses to do this to a path.
    fn denies(rules: &str, access: char, path: &str) -> bool {
        rules.lines().filter_map(|line| line.trim().strip_prefix("deny ")).any(|rule| {
            let mut words = rule.trim_end_matches(',').split(' ');
            let (pattern, access_of) = (words.next().unwrap(), words.next().unwrap_or_default());
            pattern.contains('/') && access_of.contains(access) && matches(pattern, path)
        })
    }

    #[test]
    fn an_init_sets_what_is_its_own_and_nothing_else() {
        let rules = profile(SYSTEM, &system());
        for own in [
            "/proc/sys/kernel/hostname",
            "/proc/sys/kernel/shmmax",
            "/proc/sys/kernel/shm_rmid_forced",
            "/proc/sys/kernel/sem",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/fs/mqueue/msg_max",
            "/proc/sys/user/max_user_namespaces",
            "/proc/self/oom_score_adj",
            "/proc/17/uid_map",
            "/sys/fs/cgroup/system.slice/cgroup.procs",
            "/sys/devices/virtual/net/eth0/mtu",
            "/usr/include/x86_64-linux-gnu/sys/types.h",
            "/srv/linux/fs/proc/new.c",
            "/srv/rootfs/proc/sys/net/ipv4/ip_forward",
            "/etc/passwd",
        ] {
            assert!(!denies(&rules, 'w', own), "{own} is refused");
        }
        for other in [
            "/proc/sysrq-trigger",
            "/proc/mtrr",
            "/proc/irq/default_smp_affinity",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/kernel/pty/max",
            "/proc/sys/vm/drop_caches",
            "/proc/sys/vm/overcommit_memory",
            "/proc/sys/fs/file-max",
            "/proc/sys/fs/mount-max",
            "/proc/sys/fs/inotify/max_user_watches",
            "/proc/sys/dev/raid/speed_limit_max",
            "/proc/sys/kernel/hotplug",
            "/proc/sys/kernel/seccomp/actions_logged",
            "/srv/rootfs/proc/sys/kernel/core_pattern",
            "/sys/power/state",
            "/sys/kernel/uevent_helper",
            "/sys/devices/system/cpu/cpu1/online",
            "/sys/devices/virtual/block/loop0/ro",
            "/sys/module/printk/parameters/time",
            "/sys/fs/btrfs/features/x",
            "/sys/fs/ext4/features/x",
        ] {
            assert!(denies(&rules, 'w', other), "{other} is allowed");
        }
    }

    #[test]
    fn what_is_hidden_is_not_read_and_the_rest_is() {
        for rules in [profile(SYSTEM, &system()), profile(APPLICATION, APPLICATION_RULES)] {
            for path in ["/proc/interrupts", "/proc/kcore", "/sys/firmware/dmi/tables/DMI"] {
                assert!(denies(&rules, 'r', path), "{path}");
                assert!(denies(&rules, 'r', &format!("/srv/rootfs{path}")), "{path}");
            }
            for path in ["/proc/meminfo", "/sys/class/net/eth0/mtu", "/home/interrupts"] {
                assert!(!denies(&rules, 'r', path), "{path}");
            }
        }
    }

    #[test]
    fn an_application_writes_to_its_own_sysctls_alone() {
        let rules = profile(APPLICATION, APPLICATION_RULES);
        for path in ["/proc/sys/kernel/core_pattern", "/sys/fs/cgroup/cgroup.procs"] {
            assert!(denies(&rules, 'w', path), "{path}");
        }
        for path in ["/proc/self/comm", "/proc/sys/kernel/shmmax", "/proc/sys/fs/mqueue/msg_max"] {
            assert!(!denies(&rules, 'w', path), "{path}");
        }
    }

    #[test]
    fn what_is_required_and_absent_is_a_fault_that_names_the_key() {
        let Host::Absent(why) = Host::look() else { return };
        let fault = AppArmor::start(config::AppArmor::Required).unwrap_err();
        assert_eq!(fault.kind, FaultKind::HostUnsupported);
        assert!(fault.detail.contains("runtime.apparmor") && fault.detail.contains(why), "{fault}");
        let without = AppArmor::start(config::AppArmor::Auto).unwrap();
        assert_eq!(without.profile(Role::Application).unwrap(), None);
    }
}
