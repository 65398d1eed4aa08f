//! Sharing out the CPUs: those that instances share, and those that one has alone.

use std::collections::BTreeSet;
use std::path::Path;

use crate::config::{Config, parse_cpu_set};
use crate::fault::{Fault, FaultKind, Result};

use super::facts::read;

/// The CPUs instances may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSets {
    /// CPUs that are online.
    pub online: BTreeSet<u32>,
    /// CPUs for instances that share.
    pub shared: BTreeSet<u32>,
    /// CPUs for `hw:cpu_policy=dedicated`.
    pub dedicated: BTreeSet<u32>,
}

impl CpuSets {
    /// What to give to [`Limits::from_flavor`](crate::cgroup::Limits::from_flavor)
    /// for an instance that shares: `None` if it may run anywhere.
    pub fn shared_limit(&self) -> Option<Vec<u32>> {
        (self.shared != self.online).then(|| self.shared.iter().copied().collect())
    }
}

/// The configured sets against the CPUs that are online.
pub fn cpu_sets(config: &Config) -> Result<CpuSets> {
    let text = read(Path::new("/sys/devices/system/cpu/online"))?;
    resolve(config, parse_cpu_set("/sys/devices/system/cpu/online", &text)?)
}

/// The CPUs of each NUMA node; none where the kernel knows of none.
pub fn cpu_nodes() -> Vec<BTreeSet<u32>> {
    nodes_in(Path::new("/sys/devices/system/node"))
}

fn nodes_in(dir: &Path) -> Vec<BTreeSet<u32>> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let lists = entries.filter_map(|entry| read(&entry.path().join("cpulist")).ok());
    let sets = lists.filter_map(|text| parse_cpu_set("cpulist", &text).ok());
    let mut nodes: Vec<_> = sets.filter(|cpus| !cpus.is_empty()).collect();
    nodes.sort();
    nodes
}

fn resolve(config: &Config, online: BTreeSet<u32>) -> Result<CpuSets> {
    let set = |field: &str, text: &str| -> Result<BTreeSet<u32>> {
        let set = parse_cpu_set(field, text)?;
        match set.difference(&online).next() {
            Some(cpu) => Err(Fault::invalid(
                field,
                format!("CPU {cpu} is not online: take it out, or bring it online"),
            )),
            None => Ok(set),
        }
    };
    let dedicated = set("host.cpu_dedicated_set", &config.host.cpu_dedicated_set)?;
    let mut shared = set("host.cpu_shared_set", &config.host.cpu_shared_set)?;
    if shared.is_empty() {
        shared = online.difference(&dedicated).copied().collect();
    }
    if let Some(cpu) = shared.intersection(&dedicated).next() {
        return Err(Fault::invalid(
            "host.cpu_dedicated_set",
            format!("CPU {cpu} is in host.cpu_shared_set too: take it out of one"),
        ));
    }
    Ok(CpuSets { online, shared, dedicated })
}

/// Picks `count` CPUs of `set` that nobody in `used` has: the lowest, so that
/// neighbours in the topology stay together. Of an empty `set` none: that is a fault of the
/// flavor, which such a host never serves.
pub fn pick_dedicated(set: &BTreeSet<u32>, used: &BTreeSet<u32>, count: usize) -> Result<Vec<u32>> {
    let free: Vec<u32> = set.difference(used).copied().take(count).collect();
    if free.len() == count {
        return Ok(free);
    }
    if set.is_empty() {
        return Err(Fault::invalid(
            "flavor.extra_specs.hw:cpu_policy",
            "dedicated CPUs were asked for and this host has none: set host.cpu_dedicated_set, or use shared",
        ));
    }
    Err(Fault::new(
        FaultKind::ResourcesExhausted,
        format!(
            "{count} dedicated CPUs were asked for and {} of the {} in host.cpu_dedicated_set are free",
            set.difference(used).count(),
            set.len()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(shared: &str, dedicated: &str) -> Result<CpuSets> {
        let mut config = Config::default();
        config.host.cpu_shared_set = shared.into();
        config.host.cpu_dedicated_set = dedicated.into();
        resolve(&config, (0..8).collect())
    }

    #[test]
    fn sharing_defaults_to_what_is_not_dedicated() {
        let plain = sets("", "").unwrap();
        assert_eq!(plain.shared.len(), 8);
        assert_eq!(plain.shared_limit(), None);
        let split = sets("", "4-7").unwrap();
        assert_eq!(split.shared_limit(), Some(vec![0, 1, 2, 3]));
        assert_eq!(split.dedicated, (4..8).collect());
        assert_eq!(sets("1", "4").unwrap().shared, BTreeSet::from([1]));
        assert!(sets("", "0-7").unwrap().shared.is_empty());
    }

    #[test]
    fn wrong_sets_name_their_key() {
        let field = |shared, dedicated| sets(shared, dedicated).unwrap_err().field.unwrap();
        assert_eq!(field("", "6-8"), "host.cpu_dedicated_set");
        assert_eq!(field("9", ""), "host.cpu_shared_set");
        assert_eq!(field("1-3", "3"), "host.cpu_dedicated_set");
    }

    #[test]
    fn picks_free_cpus_or_none() {
        let set: BTreeSet<u32> = [2, 3, 6, 7].into();
        assert_eq!(pick_dedicated(&set, &BTreeSet::from([2]), 2).unwrap(), [3, 6]);
        assert_eq!(pick_dedicated(&set, &BTreeSet::new(), 4).unwrap(), [2, 3, 6, 7]);
        let fault = pick_dedicated(&set, &BTreeSet::from([2, 3]), 3).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ResourcesExhausted);
        assert!(fault.detail.contains("2 of the 4"), "{fault}");
        let fault = pick_dedicated(&BTreeSet::new(), &BTreeSet::new(), 1).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("flavor.extra_specs.hw:cpu_policy"));
    }

    #[test]
    fn nodes_without_cpus_are_none() {
        let dir = tempfile::tempdir().unwrap();
        for (node, cpus) in [("node1", "1,3\n"), ("node0", "0,2\n"), ("node2", "\n")] {
            std::fs::create_dir(dir.path().join(node)).unwrap();
            std::fs::write(dir.path().join(node).join("cpulist"), cpus).unwrap();
        }
        std::fs::write(dir.path().join("online"), "0-2\n").unwrap();
        assert_eq!(nodes_in(dir.path()), [BTreeSet::from([0, 2]), BTreeSet::from([1, 3])]);
        assert!(nodes_in(&dir.path().join("absent")).is_empty());
    }

    #[test]
    fn this_host_has_a_cpu_to_share() {
        assert!(!cpu_sets(&Config::default()).unwrap().shared.is_empty());
    }
}
