//! What init programs want to be told, when they start and by which signal.

use crate::fault::{Fault, FaultKind, Result};
use crate::types::{ImageConfig, InitKind};

use super::asking::{self, Note};
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
    let boots = image.inits.first().and_then(|init| init.command.first());
    let program = words.chain(boots).map(String::as_str).next().unwrap_or("/sbin/init");
    // Words of the kernel's are separated by blanks, and lines end.
    match program.chars().any(|c| c.is_whitespace() || c.is_control() || c == '"') {
        true => String::new(),
        false => format!("init={program}"),
    }
}

/// The init whose instances have a machine's lines, on which their images log in
/// ([`super::lines`]). systemd's log in at the console when they are a container;
/// those that know of containers less start a getty on each line that a machine has.
pub fn of_lines(role: Role) -> Option<InitKind> {
    match role {
        Role::System(InitKind::Systemd | InitKind::Other) | Role::Application => None,
        Role::System(kind) => Some(kind),
    }
}

/// What an init is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To power off.
    PowerOff,
    /// To reboot.
    Reboot,
}

/// How it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// What it finds in its files, put there before the signals are sent.
    pub notes: Vec<Note>,
    /// What it is sent.
    pub signals: Vec<i32>,
}

/// How an instance with this role and image is asked. What knows no reboot is
/// asked to stop, and started again.
///
/// The image's own `StopSignal` goes first, except that systemd's "halt"
/// becomes its "power off": the same for a container, but without the wait of
/// a machine that is only halted.
pub fn asking(role: Role, image: &ImageConfig, ask: Ask) -> Result<Asking> {
    let wished = match image.stop_signal.as_str() {
        "" => None,
        name => Some(parse_signal(name)?),
    };
    let off = ask == Ask::PowerOff;
    let either = |stop, reboot| if off { stop } else { reboot };
    let mut notes = Vec::new();
    let signals = match role {
        // systemd(1): RTMIN+4 starts poweroff.target, RTMIN+5 reboot.target.
        Role::System(InitKind::Systemd) => {
            let signals = vec![SIGRTMIN + either(4, 5)];
            return Ok(Asking { notes, signals });
        }
        // An image that knows best.
        _ if off && let Some(signal) = wished => vec![signal],
        Role::Application | Role::System(InitKind::Other) => {
            vec![wished.unwrap_or(libc::SIGTERM)]
        }
        // BusyBox init: USR2 powers off (USR1 halts), TERM reboots; Finit has it from there.
        Role::System(InitKind::Busybox | InitKind::Finit) => {
            vec![either(libc::SIGUSR2, libc::SIGTERM)]
        }
        // inittab(5): of signals it only knows what its image makes of them, INT (ctrlaltdel)
        // and PWR (powerwait); hence its pipe, into which telinit writes, goes first.
        Role::System(InitKind::Sysvinit) => {
            notes.push(asking::sysvinit(off));
            vec![either(libc::SIGPWR, libc::SIGINT)]
        }
        // openrc-init(8): its pipe, into which openrc-shutdown writes; INT reboots, TERM halts.
        Role::System(InitKind::Openrc) => {
            notes.push(asking::openrc(off));
            vec![either(libc::SIGTERM, libc::SIGINT)]
        }
        // runit(8): CONT has it look at its files.
        Role::System(InitKind::Runit) => {
            notes.extend(asking::runit(off));
            vec![libc::SIGCONT]
        }
        // s6-linux-init-maker(8): USR1 powers off, INT reboots, and TERM does nothing, by which
        // s6-svscan alone ends.
        Role::System(InitKind::S6) => vec![either(libc::SIGUSR1, libc::SIGINT), libc::SIGTERM],
        // dinit(8): TERM halts, INT reboots.
        Role::System(InitKind::Dinit) => vec![either(libc::SIGTERM, libc::SIGINT)],
    };
    Ok(Asking { notes, signals })
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
    use crate::types::InitProgram;

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

    fn signals(role: Role, image: &ImageConfig, ask: Ask) -> Vec<i32> {
        asking(role, image, ask).unwrap().signals
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
        let init = InitProgram { command: vec!["/init".into()], kind: InitKind::Busybox };
        let image = ImageConfig { inits: vec![init], ..Default::default() };
        assert_eq!(command_line(&image, None), "init=/init");
        assert_eq!(line(&[], &["/lib/systemd/systemd"], None), "init=/lib/systemd/systemd");
        assert_eq!(line(&["/entry"], &["x", "a secret"], None), "init=/entry");
        assert_eq!(line(&[], &["x"], Some(&["sleep", "1"])), "init=sleep");
        assert_eq!(line(&[], &["a b"], None), "");
    }

    #[test]
    fn each_init_is_told_in_its_own_words() {
        let image = ImageConfig::default();
        for (role, off, reboot) in [
            (Role::System(InitKind::Systemd), 38, 39),
            (Role::System(InitKind::Busybox), libc::SIGUSR2, libc::SIGTERM),
            (Role::System(InitKind::Finit), libc::SIGUSR2, libc::SIGTERM),
            (Role::System(InitKind::Sysvinit), libc::SIGPWR, libc::SIGINT),
            (Role::System(InitKind::Openrc), libc::SIGTERM, libc::SIGINT),
            (Role::System(InitKind::Runit), libc::SIGCONT, libc::SIGCONT),
            (Role::System(InitKind::Dinit), libc::SIGTERM, libc::SIGINT),
            (Role::Application, libc::SIGTERM, libc::SIGTERM),
        ] {
            assert_eq!(signals(role, &image, Ask::PowerOff), [off], "{role:?}");
            assert_eq!(signals(role, &image, Ask::Reboot), [reboot], "{role:?}");
        }
        let notes = |kind, ask| asking(Role::System(kind), &image, ask).unwrap().notes;
        for kind in [InitKind::Sysvinit, InitKind::Openrc, InitKind::Runit] {
            assert_ne!(notes(kind, Ask::PowerOff), notes(kind, Ask::Reboot), "{kind:?}");
        }
    }

    #[test]
    fn the_image_has_the_first_word_except_on_systemds_halt() {
        let image = ImageConfig { stop_signal: "SIGQUIT".into(), ..Default::default() };
        assert_eq!(signals(Role::Application, &image, Ask::PowerOff), [libc::SIGQUIT]);
        assert_eq!(signals(Role::Application, &image, Ask::Reboot), [libc::SIGQUIT]);
        let runit = asking(Role::System(InitKind::Runit), &image, Ask::PowerOff).unwrap();
        assert_eq!(runit, Asking { notes: Vec::new(), signals: vec![libc::SIGQUIT] });
        let image = ImageConfig { stop_signal: "SIGRTMIN+3".into(), ..Default::default() };
        assert_eq!(signals(Role::System(InitKind::Systemd), &image, Ask::PowerOff), [38]);
    }
}
