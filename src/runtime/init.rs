//! What init programs want to be told, when they start and by which signal.

use crate::fault::{Fault, FaultKind, Result};
use crate::types::{ImageConfig, InitKind};

use super::role::Role;

/// First real-time signal as the C library counts (glibc and musl keep 32 and 33, musl 34 too,
/// for themselves; both number `SIGRTMIN` 34 or 35, and systemd is built with glibc).
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Units of systemd images that only a machine can satisfy: its boot loader and
/// kernel, its disk and its partitions, sensors and firmware. Most images for
/// clouds have some of them, and each would wait, fail or change nothing.
const OF_MACHINES: &[&str] = &[
    // Boot loaders and kernels.
    "grub-common.service",
    "grub-initrd-fallback.service",
    "grub2-systemd-integration.service",
    "systemd-bless-boot.service",
    "systemd-boot-random-seed.service",
    "systemd-boot-update.service",
    "systemd-boot-system-token.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-initrd.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrmachine.service",
    "kdump.service",
    "kdump-tools.service",
    "kexec.service",
    "kexec-load.service",
    "secureboot-db.service",
    "fwupd.service",
    "fwupd-refresh.timer",
    // Disks and partitions: the root's size and options are the flavor's.
    "systemd-repart.service",
    "systemd-growfs-root.service",
    "systemd-fsck-root.service",
    "systemd-remount-fs.service",
    "systemd-quotacheck.service",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "growpart.service",
    "growroot.service",
    "coreos-growpart.service",
    "extend-filesystems.service",
    "resize2fs_once.service",
    "systemd-growfs@-.service",
    // The root has all of the files, and swap is the host's.
    "boot.automount",
    "boot.mount",
    "boot-efi.automount",
    "boot-efi.mount",
    "efi.automount",
    "efi.mount",
    "swap.target",
    "dphys-swapfile.service",
    "zram-config.service",
    "zramswap.service",
    "lvm2-monitor.service",
    "lvm2-lvmpolld.socket",
    "multipathd.service",
    "multipathd.socket",
    "mdmonitor.service",
    "smartmontools.service",
    // Waits half a minute for snaps, which are file systems that no instance may mount.
    "snapd.seeded.service",
    // Hardware.
    "serial-getty@ttyS0.service",
    "serial-getty@ttyAMA0.service",
    "serial-getty@hvc0.service",
    "irqbalance.service",
    "hv-kvp-daemon.service",
    "open-vm-tools.service",
];

/// What the init gets as arguments besides those of the image: systemd takes
/// in a container what it takes from the kernel's command line on a machine,
/// so units are masked for as long as it runs and nothing in the image changes.
/// Swap and devices in the fstab it leaves out by itself.
pub fn arguments(kind: InitKind) -> Vec<String> {
    match kind {
        InitKind::Systemd => {
            OF_MACHINES.iter().map(|unit| format!("systemd.mask={unit}")).collect()
        }
        _ => Vec::new(),
    }
}

/// What an instance reads as the kernel's command line: what it starts, as a machine is told.
pub fn command_line(image: &ImageConfig, command: Option<&[String]>) -> String {
    let words = image.entrypoint.iter().chain(command.unwrap_or(&image.cmd));
    let program = words.map(String::as_str).next().unwrap_or("/sbin/init");
    // Words of the kernel's are separated by blanks, and lines end.
    match program.chars().any(|c| c.is_whitespace() || c.is_control() || c == '"') {
        true => String::new(),
        false => format!("init={program}"),
    }
}

/// Whether an init's images log in where a machine has its first serial line.
/// systemd's log in at the console when they are a container; those that know
/// of containers less have a getty at `ttyS0`, or only where there is one.
pub fn logs_in_at_serial_line(role: Role) -> bool {
    matches!(role, Role::System(InitKind::Busybox | InitKind::Sysvinit | InitKind::Openrc))
}

/// The signals that stop and restart an instance softly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftSignals {
    /// Ends it in good order.
    pub stop: i32,
    /// Reboots it in good order; `None` when only a stop and a new start do.
    pub reboot: Option<i32>,
}

/// The signals for an instance with this role and image.
///
/// The image's own `StopSignal` goes first, except that systemd's "halt"
/// becomes its "power off": the same for a container, but without the wait of
/// a machine that is only halted.
pub fn soft_signals(role: Role, image: &ImageConfig) -> Result<SoftSignals> {
    let wished = match image.stop_signal.as_str() {
        "" => None,
        name => Some(parse_signal(name)?),
    };
    let known = match role {
        Role::Application => SoftSignals { stop: libc::SIGTERM, reboot: None },
        Role::System(InitKind::Systemd) => {
            // systemd(1): RTMIN+4 starts poweroff.target, RTMIN+5 reboot.target.
            return Ok(SoftSignals { stop: SIGRTMIN + 4, reboot: Some(SIGRTMIN + 5) });
        }
        // BusyBox init: USR2 powers off (USR1 halts), TERM reboots.
        Role::System(InitKind::Busybox) => {
            SoftSignals { stop: libc::SIGUSR2, reboot: Some(libc::SIGTERM) }
        }
        // inittab(5): INT is ctrlaltdel, by default `shutdown -r`; PWR is powerwait,
        // which powers off where the image has such a line.
        Role::System(InitKind::Sysvinit) => {
            SoftSignals { stop: libc::SIGPWR, reboot: Some(libc::SIGINT) }
        }
        // openrc-init(8): INT reboots, TERM and PWR (newer) shut down.
        Role::System(InitKind::Openrc) => {
            SoftSignals { stop: libc::SIGTERM, reboot: Some(libc::SIGINT) }
        }
        Role::System(InitKind::Other) => SoftSignals { stop: libc::SIGTERM, reboot: None },
    };
    Ok(SoftSignals { stop: wished.unwrap_or(known.stop), ..known })
}

/// A signal by name (`SIGTERM`, `TERM`, `SIGRTMIN+3`, `RTMAX-1`) or number (1 to 64).
pub fn parse_signal(text: &str) -> Result<i32> {
    let bad = || {
        let detail = format!("the image's stop signal {text:?} is none that Linux has");
        Fault::new(FaultKind::ImageUnacceptable, detail)
    };
    let name = text.trim().to_ascii_uppercase();
    if let Ok(number) = name.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number).ok_or_else(bad);
    }
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = if let Some(offset) = name.strip_prefix("RTMIN") {
        Some((SIGRTMIN, offset, "+"))
    } else {
        name.strip_prefix("RTMAX").map(|offset| (SIGRTMAX, offset, "-"))
    };
    let Some((base, offset, sign)) = real_time else {
        let signal = format!("SIG{name}").parse::<nix::sys::signal::Signal>();
        return signal.map(|signal| signal as i32).map_err(|_| bad());
    };
    let offset: i32 = match offset {
        "" => 0,
        // Digits only: a number's own sign would be taken, too.
        _ => offset
            .strip_prefix(sign)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse::<u8>().ok())
            .ok_or_else(bad)?
            .into(),
    };
    let number = if sign == "+" { base + offset } else { base - offset };
    (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX-1", 63),
            ("SIGQUIT", 3),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "-1", "SIGFOO", "RTMIN+31", "RTMIN-1", "RTMIN++1", "RTMAX+1"] {
            assert_eq!(parse_signal(bad).unwrap_err().kind, FaultKind::ImageUnacceptable, "{bad}");
        }
    }

    #[test]
    fn the_command_line_names_what_starts() {
        let line = |entrypoint: &[&str], cmd: &[&str], command: Option<&[&str]>| {
            let texts = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
            let (entrypoint, cmd) = (texts(entrypoint), texts(cmd));
            let image = ImageConfig { entrypoint, cmd, ..Default::default() };
            command_line(&image, command.map(texts).as_deref())
        };
        assert_eq!(line(&[], &[], None), "init=/sbin/init");
        assert_eq!(line(&[], &["/lib/systemd/systemd"], None), "init=/lib/systemd/systemd");
        assert_eq!(line(&["/entry"], &["x", "a secret"], None), "init=/entry");
        assert_eq!(line(&[], &["x"], Some(&["sleep", "1"])), "init=sleep");
        assert_eq!(line(&[], &["a b"], None), "");
    }

    #[test]
    fn each_init_is_told_in_its_own_words() {
        let image = ImageConfig::default();
        let signals = |role| soft_signals(role, &image).unwrap();
        assert_eq!(
            signals(Role::System(InitKind::Systemd)),
            SoftSignals { stop: 38, reboot: Some(39) }
        );
        assert_eq!(
            signals(Role::System(InitKind::Busybox)),
            SoftSignals { stop: libc::SIGUSR2, reboot: Some(libc::SIGTERM) }
        );
        assert_eq!(signals(Role::Application), SoftSignals { stop: libc::SIGTERM, reboot: None });
    }

    #[test]
    fn the_image_has_the_first_word_except_on_systemds_halt() {
        let image = ImageConfig { stop_signal: "SIGQUIT".into(), ..Default::default() };
        assert_eq!(soft_signals(Role::Application, &image).unwrap().stop, libc::SIGQUIT);
        let image = ImageConfig { stop_signal: "SIGRTMIN+3".into(), ..Default::default() };
        let signals = soft_signals(Role::System(InitKind::Systemd), &image).unwrap();
        assert_eq!(signals.stop, 38);
    }
}
