//! Single facts about the host.

use std::fs;
use std::path::Path;

use rustix::system::uname;

use crate::config::Config;
use crate::fault::{Fault, OrFault, Result};

/// Machine architecture as `uname -m` says it, e.g. `x86_64`.
pub fn architecture() -> Result<String> {
    Ok(uname().machine().to_string_lossy().into_owned())
}

/// Kernel release as `uname -r` says it, e.g. `6.1.0-13-amd64`.
pub fn kernel_release() -> Result<String> {
    Ok(uname().release().to_string_lossy().into_owned())
}

/// Nova's `hypervisor_hostname`: the configured one, or the host's name.
pub fn hypervisor_hostname(config: &Config) -> Result<String> {
    if !config.host.hypervisor_hostname.is_empty() {
        return Ok(config.host.hypervisor_hostname.clone());
    }
    uname().nodename().to_str().map(str::to_owned).map_err(|_| {
        Fault::invalid("host.hypervisor_hostname", "the host's own name is no text: set this key")
    })
}

/// Seconds since the host booted.
pub fn uptime() -> Result<u64> {
    let text = read(Path::new("/proc/uptime"))?;
    let whole = text.split(['.', ' ']).next().and_then(|t| t.parse().ok());
    whole.ok_or_else(|| Fault::internal("reading the uptime", text))
}

/// Reads a file of the kernel's, without blanks around.
pub(super) fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).or_fault(format_args!("reading {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Bytes of a line of `/proc/meminfo` (which counts KiB), 0 if there is none.
pub(super) fn meminfo(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = value.and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// First value of a key of `/proc/cpuinfo`.
pub(super) fn cpuinfo<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc() {
        assert_eq!(meminfo("MemTotal:       2 kB\nMemFree: 1 kB\n", "MemFree"), 1024);
        assert_eq!(meminfo("MemTotalX: 2 kB\n", "MemTotal"), 0);
        assert_eq!(
            cpuinfo("processor\t: 0\nmodel\t\t: 1\nmodel name\t: A B\n", "model name"),
            Some("A B")
        );
    }

    #[test]
    fn this_host() {
        assert!(uptime().unwrap() > 0);
        assert!(!architecture().unwrap().is_empty());
        let mut config = Config::default();
        assert!(!hypervisor_hostname(&config).unwrap().is_empty());
        config.host.hypervisor_hostname = "node".into();
        assert_eq!(hypervisor_hostname(&config).unwrap(), "node");
    }
}
