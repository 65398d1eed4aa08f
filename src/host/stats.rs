//! What the host uses now.

use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};

use super::facts::{cpuinfo, meminfo, read};
use crate::fault::{Fault, OrFault, Result};
use crate::types::HostStats;

/// Reads the host's statistics.
pub fn stats() -> Result<HostStats> {
    let proc = |name: &str| read(&Path::new("/proc").join(name));
    let ticks = sysconf(SysconfVar::CLK_TCK).or_fault("reading the clock's rate")?;
    let ticks = ticks.and_then(|t| u64::try_from(t).ok()).filter(|t| *t > 0).unwrap_or(100);
    let mut stats = HostStats::default();
    cpu_times(&mut stats, &proc("stat")?, 1_000_000_000 / ticks)?;
    let memory = proc("meminfo")?;
    stats.memory_total = meminfo(&memory, "MemTotal");
    stats.memory_available = meminfo(&memory, "MemAvailable");
    stats.load = load(&proc("loadavg")?)?;
    stats.service_memory = meminfo(&proc("self/status")?, "VmRSS");
    stats.cpu_mhz = mhz(&proc("cpuinfo")?);
    Ok(stats)
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal.
fn cpu_times(stats: &mut HostStats, text: &str, tick_ns: u64) -> Result<()> {
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|t| t.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, ..] = ticks[..] else {
        return Err(Fault::internal("reading /proc/stat", format!("{line:?}")));
    };
    stats.cpu_user_ns = (user + nice) * tick_ns;
    stats.cpu_kernel_ns = (system + irq + softirq) * tick_ns;
    stats.cpu_idle_ns = idle * tick_ns;
    stats.cpu_iowait_ns = iowait * tick_ns;
    Ok(())
}

fn load(text: &str) -> Result<[f64; 3]> {
    let values: Vec<f64> = text.split_whitespace().map_while(|t| t.parse().ok()).take(3).collect();
    values.try_into().map_err(|_| Fault::internal("reading /proc/loadavg", text))
}

/// Frequency of the first CPU; 0 where neither source says it.
fn mhz(info: &str) -> u32 {
    let scaled = Path::new("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq");
    if let Some(khz) = read(scaled).ok().and_then(|t| t.parse::<u32>().ok()) {
        return khz / 1000;
    }
    let value = cpuinfo(info, "cpu MHz").and_then(|v| v.split('.').next()?.parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_of_a_line() {
        let mut stats = HostStats::default();
        cpu_times(&mut stats, "cpu  10 5 20 100 7 1 2 3 0 0\ncpu0 1 1 1", 10).unwrap();
        assert_eq!((stats.cpu_user_ns, stats.cpu_kernel_ns), (150, 230));
        assert_eq!((stats.cpu_idle_ns, stats.cpu_iowait_ns), (1000, 70));
        assert!(cpu_times(&mut stats, "intr 5", 10).is_err());
    }

    #[test]
    fn loads() {
        assert_eq!(load("0.50 1.25 2.00 3/400 5").unwrap(), [0.5, 1.25, 2.0]);
        assert!(load("0.50").is_err());
    }

    #[test]
    fn this_host() {
        let s = stats().unwrap();
        assert!(s.cpu_idle_ns > 0 && s.service_memory > 0);
        assert!(s.memory_available <= s.memory_total);
    }
}
