//! The kernel: its version, namespaces, file systems, devices, security modules.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::outcome::{failed, ok, warning};
use super::trials::Trials;
use crate::config::{AppArmor, Config};
use crate::fault::Result;
use crate::host::facts::{kernel_release, read};
use crate::runtime::apparmor::{self, Host};
use crate::types::Check;

pub(super) const OVERLAY: &str = "overlayfs on idmapped layers";
/// The first kernel whose overlayfs takes idmapped layers.
const OLDEST: (u32, u32) = (5, 19);

pub(super) fn checks(config: &Config, trials: &Trials<'_>) -> Vec<Check> {
    vec![
        privilege(rustix::process::geteuid().is_root()),
        version(&kernel_release().unwrap_or_default()),
        user_namespaces(read(Path::new("/proc/sys/user/max_user_namespaces")).ok().as_deref()),
        overlay(trials),
        filesystem(config, &fs::read_to_string("/proc/filesystems").unwrap_or_default()),
        device(
            "loop devices",
            "/dev/loop-control",
            "modprobe loop; the kernel needs CONFIG_BLK_DEV_LOOP",
        ),
        device(
            "terminals",
            "/dev/ptmx",
            "mount devpts on /dev/pts; the kernel needs CONFIG_UNIX98_PTYS",
        ),
        seccomp(read(Path::new("/proc/sys/kernel/seccomp/actions_avail")).ok().as_deref()),
        apparmor(config.runtime.apparmor, &Host::look(), apparmor::mode, apparmor::try_out),
    ]
}

fn privilege(root: bool) -> Check {
    match root {
        true => ok("privilege", "root"),
        false => {
            failed("privilege", "not root", "run berth as root: it mounts and makes namespaces")
        }
    }
}

fn version(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= OLDEST {
        return ok("kernel", release);
    }
    failed("kernel", release, "boot Linux 5.19 or later: overlayfs on idmapped layers needs it")
}

fn user_namespaces(most: Option<&str>) -> Check {
    const NAME: &str = "user namespaces";
    const REMEDY: &str =
        "sysctl -w user.max_user_namespaces=65536; the kernel needs CONFIG_USER_NS";
    match most.and_then(|text| text.parse::<u64>().ok()) {
        None => failed(NAME, "the kernel has none", REMEDY),
        Some(0) => failed(NAME, "none allowed", REMEDY),
        Some(most) if most < 1024 => warning(NAME, format!("{most} allowed"), REMEDY),
        Some(most) => ok(NAME, format!("{most} allowed")),
    }
}

fn overlay(trials: &Trials<'_>) -> Check {
    match (trials.overlay)() {
        Ok(()) => ok(OVERLAY, "mounted and written to"),
        Err(fault) => failed(
            OVERLAY,
            fault.detail,
            "modprobe overlay; put service.state_dir on ext4, xfs or btrfs, which take idmapped mounts",
        ),
    }
}

fn filesystem(config: &Config, known: &str) -> Check {
    let wanted = &config.storage.filesystem;
    let found = known.lines().any(|line| line.split_whitespace().last() == Some(wanted));
    match found {
        true => ok("disk file system", wanted),
        // A module may still be loaded on the first mount.
        false => warning(
            "disk file system",
            format!("the kernel does not list {wanted}"),
            format!("modprobe {wanted}, or set storage.filesystem to one that the kernel has"),
        ),
    }
}

fn device(name: &str, path: &str, remedy: &str) -> Check {
    let is_device = fs::metadata(path).is_ok_and(|m| m.file_type().is_char_device());
    if !is_device {
        return failed(name, format!("no {path}"), remedy);
    }
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => ok(name, path),
        Err(e) => failed(name, format!("{path}: {e}"), remedy),
    }
}

fn seccomp(actions: Option<&str>) -> Check {
    match actions {
        Some(actions) if actions.split_whitespace().any(|action| action == "errno") => {
            ok("seccomp", "filters")
        }
        _ => failed(
            "seccomp",
            "the kernel has no filters",
            "boot a kernel with CONFIG_SECCOMP_FILTER: instances are not run without",
        ),
    }
}

/// What instances that start now get. The service loads the profiles when it starts.
fn apparmor(
    wanted: AppArmor,
    host: &Host,
    mode: impl Fn(&str) -> Option<String>,
    try_out: impl Fn(&Host) -> Result<()>,
) -> Check {
    const NAME: &str = "AppArmor";
    const WITHOUT: &str = "the other walls stand without";
    if wanted == AppArmor::Off {
        return ok(NAME, "off by runtime.apparmor = \"off\"");
    }
    let names = [apparmor::SYSTEM, apparmor::APPLICATION];
    let modes = names.map(|name| mode(name).map(|mode| (name, mode)));
    let lax = modes.iter().flatten().find(|(_, mode)| mode != "enforce");
    let (found, remedy) = match (host, lax) {
        (Host::Ready(_), Some((name, mode))) => (
            format!("{name} is in {mode} mode: it refuses nothing"),
            "systemctl restart berth: it loads them to be enforced".to_owned(),
        ),
        (Host::Ready(_), None) if modes.iter().all(Option::is_some) => {
            return ok(NAME, "profiles are loaded and enforced");
        }
        (Host::Ready(_), None) => match try_out(host) {
            Ok(()) => return ok(NAME, "the service loads its profiles when it starts"),
            Err(fault) => (fault.detail, format!("apt install --reinstall apparmor; {WITHOUT}")),
        },
        (Host::NoParser, _) => (
            "enabled, without a program to load profiles".to_owned(),
            format!("apt install apparmor; {WITHOUT}"),
        ),
        (Host::Absent(why), _) => (
            format!("absent: {why}"),
            format!("boot with apparmor=1 security=apparmor if the kernel has it; {WITHOUT}"),
        ),
    };
    match wanted {
        AppArmor::Required => failed(NAME, found, remedy),
        _ => warning(NAME, found, remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, FaultKind};
    use crate::types::CheckStatus::{self, Failed, Ok, Warning};

    #[test]
    fn versions() {
        let status = |release| version(release).status;
        for (release, expected) in [
            ("5.19.0", Ok),
            ("6.1.0-13-amd64", Ok),
            ("10.0-rc1", Ok),
            ("5.18.19", Failed),
            ("5.4", Failed),
            ("", Failed),
        ] {
            assert_eq!(status(release), expected, "{release}");
        }
    }

    #[test]
    fn tables() {
        let namespaces = |most| user_namespaces(most).status;
        assert_eq!(namespaces(Some("0")), Failed);
        assert_eq!(namespaces(Some("100")), Warning);
        assert_eq!(namespaces(Some("65536")), Ok);
        assert_eq!(namespaces(None), Failed);
        assert_eq!(privilege(false).status, Failed);
        assert_eq!(seccomp(Some("kill errno allow")).status, Ok);
        assert_eq!(seccomp(None).status, Failed);
        let known = |text: &str| -> CheckStatus { filesystem(&Config::default(), text).status };
        assert_eq!(known("nodev\tproc\n\text4\n"), Ok);
        assert_eq!(known("\text3\n"), Warning);
    }

    #[test]
    fn apparmor_says_what_instances_get() {
        let host = Host::Ready(Path::new("/sbin/apparmor_parser"));
        let check = |wanted, host: &Host, mode: Option<&str>| {
            apparmor(wanted, host, |_| mode.map(str::to_owned), |_| Result::Ok(()))
        };
        assert_eq!(check(AppArmor::Auto, &host, Some("enforce")).status, Ok);
        assert_eq!(check(AppArmor::Required, &host, None).status, Ok);
        assert_eq!(check(AppArmor::Auto, &host, Some("complain")).status, Warning);
        let refuses = |_: &Host| Err(Fault::new(FaultKind::HostUnsupported, "syntax error"));
        assert_eq!(apparmor(AppArmor::Auto, &host, |_| None, refuses).found, "syntax error");
        for host in [Host::Absent("booted without"), Host::NoParser] {
            assert_eq!(check(AppArmor::Auto, &host, None).status, Warning);
            assert_eq!(check(AppArmor::Required, &host, None).status, Failed);
            assert_eq!(check(AppArmor::Off, &host, None).status, Ok);
        }
    }

    #[test]
    fn devices() {
        assert_eq!(device("x", "/dev/null", "r").status, Ok);
        assert_eq!(device("x", "/proc/uptime", "r").status, Failed);
        assert_eq!(device("x", "/dev/absent", "r").status, Failed);
    }
}
