//! The kernel: its version, namespaces, file systems, devices, security modules.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::outcome::{failed, ok, warning};
use super::trials::Trials;
use crate::config::Config;
use crate::host::facts::{kernel_release, read};
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
        apparmor(read(Path::new("/sys/module/apparmor/parameters/enabled")).ok().as_deref()),
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

fn apparmor(enabled: Option<&str>) -> Check {
    match enabled {
        Some("Y") => ok("AppArmor", "enabled"),
        _ => warning(
            "AppArmor",
            "absent",
            "boot with apparmor=1 security=apparmor if the kernel has it; user namespaces and seccomp confine instances without",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(apparmor(Some("N")).status, Warning);
        let known = |text: &str| -> CheckStatus { filesystem(&Config::default(), text).status };
        assert_eq!(known("nodev\tproc\n\text4\n"), Ok);
        assert_eq!(known("\text3\n"), Warning);
    }

    #[test]
    fn devices() {
        assert_eq!(device("x", "/dev/null", "r").status, Ok);
        assert_eq!(device("x", "/proc/uptime", "r").status, Failed);
        assert_eq!(device("x", "/dev/absent", "r").status, Failed);
    }
}
