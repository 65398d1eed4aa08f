//! What many instances use up together: disk, kernel limits, CPUs.

use std::path::Path;

use super::outcome::{failed, ok, warning};
use crate::config::Config;
use crate::host::cpus::cpu_sets;
use crate::host::facts::read;
use crate::host::inventory::{Disk, disk};
use crate::types::Check;

/// A limit of the kernel, and why instances need more than a small one.
struct Sysctl {
    name: &'static str,
    /// Whether it is one number for all, of which more instances need more.
    shared: bool,
    least: u64,
    advice: u64,
    why: &'static str,
}

/// [`etc/sysctl.d/60-berth.conf`] sets them to what is advised, which is enough for a thousand instances.
///
/// [`etc/sysctl.d/60-berth.conf`]: ../../../etc/sysctl.d/60-berth.conf
const SYSCTLS: [Sysctl; 16] = [
    Sysctl {
        name: "fs.inotify.max_user_instances",
        shared: false,
        least: 128,
        advice: 8192,
        why: "each instance has so many, and each systemd in it takes about ten",
    },
    Sysctl {
        name: "fs.inotify.max_user_watches",
        shared: false,
        least: 65_536,
        advice: 1_048_576,
        why: "each instance has so many",
    },
    Sysctl {
        name: "fs.inotify.max_queued_events",
        shared: false,
        least: 16_384,
        advice: 1_048_576,
        why: "a program inside that reads late loses what is beyond it",
    },
    Sysctl {
        name: "fs.aio-max-nr",
        shared: true,
        least: 16_777_216,
        advice: 1_073_741_824,
        why: "instances share them, and where there are enough their memory is the limit",
    },
    Sysctl {
        name: "fs.file-max",
        shared: true,
        least: 16_777_216,
        advice: 9_223_372_036_854_775_807,
        why: "instances share them, and where there are enough their memory is the limit",
    },
    Sysctl {
        name: "kernel.keys.maxkeys",
        shared: false,
        least: 200,
        advice: 2000,
        why: "systemd inside takes a keyring for each service",
    },
    Sysctl {
        name: "kernel.keys.maxbytes",
        shared: false,
        least: 20_000,
        advice: 2_000_000,
        why: "systemd inside takes a keyring for each service",
    },
    Sysctl {
        name: "kernel.dmesg_restrict",
        shared: false,
        least: 1,
        advice: 1,
        why: "every user of the host reads the kernel's messages, its addresses among them",
    },
    Sysctl {
        name: "kernel.pty.max",
        shared: true,
        least: 16_384,
        advice: 266_240,
        why: "an instance takes up to 256, its console first",
    },
    Sysctl {
        name: "kernel.pty.reserve",
        shared: true,
        least: 8192,
        advice: 258_048,
        why: "one instance takes all of kernel.pty.max but these, by a devpts that it mounts itself",
    },
    Sysctl {
        name: "kernel.pid_max",
        shared: true,
        least: 131_072,
        advice: 4_194_304,
        why: "instances share the host's process ids",
    },
    Sysctl {
        name: "kernel.threads-max",
        shared: true,
        least: 65_536,
        advice: 1_048_576,
        why: "instances share the host's threads",
    },
    Sysctl {
        name: "net.core.bpf_jit_limit",
        shared: true,
        least: 264_241_152,
        advice: 1_000_000_000,
        why: "the system call filters of all instances share it",
    },
    Sysctl {
        name: "vm.max_map_count",
        shared: false,
        least: 65_530,
        advice: 262_144,
        why: "databases inside do not start with less",
    },
    Sysctl {
        name: "net.ipv4.neigh.default.gc_thresh3",
        shared: true,
        least: 65_536,
        advice: 262_144,
        why: "the neighbours of all instances and of the host are in one table",
    },
    Sysctl {
        name: "net.ipv6.neigh.default.gc_thresh3",
        shared: true,
        least: 65_536,
        advice: 262_144,
        why: "the neighbours of all instances and of the host are in one table",
    },
];

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![cpus(config), free_disk(config)];
    checks.extend(SYSCTLS.iter().map(|s| sysctl(s, value(s.name))));
    if config.bridge.enabled {
        checks.push(forwarding(value("net.ipv4.ip_forward")));
    }
    checks.push(match config.bridge.enabled && config.bridge.nat {
        true => connections(config, value(CONNTRACK)),
        false => sysctl(&TRACKED, value(CONNTRACK)),
    });
    checks
}

fn value(name: &str) -> Option<u64> {
    read(&Path::new("/proc/sys").join(name.replace('.', "/"))).ok()?.parse().ok()
}

fn cpus(config: &Config) -> Check {
    match cpu_sets(config) {
        Ok(sets) => {
            ok("CPUs", format!("{} shared, {} dedicated", sets.shared.len(), sets.dedicated.len()))
        }
        Err(fault) => {
            let field = fault.field.unwrap_or_default();
            failed("CPUs", fault.detail, format!("correct {field} in the configuration"))
        }
    }
}

fn free_disk(config: &Config) -> Check {
    let dir = &config.service.state_dir;
    match disk(dir) {
        Ok(disk) => enough_disk(dir, disk),
        Err(fault) => failed("disk", fault.detail, "correct service.state_dir"),
    }
}

fn enough_disk(dir: &Path, disk: Disk) -> Check {
    let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
    let found = format!(
        "{:.1} of {:.1} GiB free for {}",
        gib(disk.available),
        gib(disk.size),
        dir.display()
    );
    const REMEDY: &str = "free space, or put service.state_dir on a larger file system";
    match disk.available >> 20 {
        // No more: the instances that are there want their service on a full disk too.
        0..4096 => warning("disk", found, REMEDY),
        _ => ok("disk", found),
    }
}

fn sysctl(limit: &Sysctl, value: Option<u64>) -> Check {
    match value {
        Some(value) if value >= limit.least => ok(limit.name, value.to_string()),
        // A kernel without it has no such limit.
        None => ok(limit.name, "no such limit"),
        Some(value) => {
            let enough = if limit.shared { "; enough for a thousand instances" } else { "" };
            warning(
                limit.name,
                format!("{value}: {}", limit.why),
                format!("sysctl -w {}={}{enough}", limit.name, limit.advice),
            )
        }
    }
}

const CONNTRACK: &str = "net.netfilter.nf_conntrack_max";

/// Not in the package's file: it exists only once connections are tracked.
const TRACKED: Sysctl = Sysctl {
    name: CONNTRACK,
    shared: true,
    least: 1_048_576,
    advice: 4_194_304,
    why: "what security groups track for all servers and the host is in one table",
};

/// Room in the one table of connections for instances on the bridge, each with as many as it may have.
fn connections(config: &Config, value: Option<u64>) -> Check {
    let each = u64::from(config.bridge.connections);
    let remedy = || {
        let most = (each * 64).clamp(1 << 20, 1 << 26);
        format!("sysctl -w {CONNTRACK}={most}; an entry takes about 300 bytes")
    };
    match value {
        // Until the module is there: the service's rules load it.
        None => ok(CONNTRACK, "nothing is tracked yet"),
        Some(most) if each == 0 => warning(
            CONNTRACK,
            format!("{most}, and one instance can take them all: bridge.connections is 0"),
            "set bridge.connections to what one instance may have",
        ),
        Some(most) if most < each * 8 => {
            warning(CONNTRACK, format!("{most}: {} instances take them all", most / each), remedy())
        }
        Some(most) => ok(CONNTRACK, format!("{most}, for {} instances at least", most / each)),
    }
}

fn forwarding(value: Option<u64>) -> Check {
    match value {
        Some(1) => ok("net.ipv4.ip_forward", "1"),
        _ => warning(
            "net.ipv4.ip_forward",
            "0: instances on the bridge reach the host and each other only",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::CheckStatus::{Failed, Ok, Warning};

    #[test]
    fn a_low_limit_is_a_warning_with_the_command() {
        let check = sysctl(&SYSCTLS[0], Some(127));
        assert_eq!(check.status, Warning);
        assert_eq!(check.remedy.unwrap(), "sysctl -w fs.inotify.max_user_instances=8192");
        assert_eq!(sysctl(&SYSCTLS[0], Some(128)).status, Ok);
        assert_eq!(sysctl(&SYSCTLS[0], None).status, Ok);
        let shared = SYSCTLS.iter().find(|s| s.name == "kernel.pty.max").unwrap();
        let remedy = sysctl(shared, Some(16_383)).remedy.unwrap();
        assert_eq!(remedy, "sysctl -w kernel.pty.max=266240; enough for a thousand instances");
        let file = include_str!("../../../etc/sysctl.d/60-berth.conf");
        for s in &SYSCTLS {
            assert!(s.advice >= s.least, "{}", s.name);
            let line = format!("{} = {}", s.name, s.advice);
            assert!(file.lines().any(|l| l == line), "60-berth.conf has no line {line}");
        }
    }

    #[test]
    fn a_table_that_few_instances_fill_is_a_warning() {
        let mut config = Config::default();
        config.bridge.connections = 1000;
        assert_eq!(connections(&config, Some(7999)).status, Warning);
        assert_eq!(connections(&config, Some(8000)).status, Ok);
        assert_eq!(connections(&config, None).status, Ok);
        config.bridge.connections = 0;
        assert_eq!(connections(&config, Some(1 << 30)).status, Warning);
        // Security groups' connections are in the same table.
        assert_eq!(sysctl(&TRACKED, Some(262_144)).status, Warning);
        assert_eq!(sysctl(&TRACKED, None).status, Ok);
    }

    #[test]
    fn disks() {
        let status = |mib: u64| {
            enough_disk(Path::new("/x"), Disk { size: 1 << 40, available: mib << 20 }).status
        };
        assert_eq!((status(0), status(4095), status(4096)), (Warning, Warning, Ok));
    }

    #[test]
    fn a_cpu_that_is_not_there_fails() {
        let mut config = Config::default();
        config.host.cpu_dedicated_set = "8000".into();
        let check = cpus(&config);
        assert_eq!(check.status, Failed);
        assert!(check.remedy.unwrap().contains("host.cpu_dedicated_set"));
        assert_eq!(forwarding(Some(0)).status, Warning);
    }
}
