//! Flavor → limits: pure, and the only place that gives extra specs a meaning here.
//!
//! What Nova's names mean follows the libvirt driver, whose flavors operators
//! have. Where one cgroup differs from a virtual machine of several threads:
//!
//! * `quota:cpu_quota` is a vCPU's share of a period in libvirt. An instance is
//!   one cgroup, so its quota is that times `vcpus`. Without it an instance may
//!   use `vcpus` whole CPUs. A negative value or 0 is no limit of time; it runs
//!   on `vcpus` CPUs all the same, unless the operator lets instances float.
//! * `quota:cpu_shares` is the whole domain's in libvirt, so it is taken as it
//!   is. Without it: 1024 for each vCPU.
//! * `quota:disk_*` hold for each disk of the instance, as libvirt's `iotune`.
//!   `total` cannot stand beside `read` or `write` of the same kind, as in
//!   libvirt. The kernel has no sum of both directions: each direction gets
//!   half. A limit must not be exceeded; with the whole for each it could be,
//!   twofold. Whoever wants more of one direction says `read` and `write`.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::config;
use crate::fault::{Fault, Result};
use crate::types::Flavor;

const MIB: u64 = 1 << 20;
const DEFAULT_PERIOD_US: u64 = 100_000;
const SHARES: RangeInclusive<u64> = 2..=262_144;
const PERIOD_US: RangeInclusive<u64> = 1_000..=1_000_000;
/// libvirt's greatest quota, which is also the kernel's.
const MOST_QUOTA_US: i64 = 17_592_186_044_415;
const PROCESSES: RangeInclusive<u64> = 16..=4_194_304;
/// QEMU's greatest rate.
const MOST_BYTES_SEC: u64 = 1_000_000_000_000_000;
/// The kernel keeps operations a second in 32 bits, and the greatest means none.
const MOST_IOPS: u64 = u32::MAX as u64 - 1;

/// What an instance may use, in the kernel's terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// CPU time.
    pub cpu: Cpu,
    /// The CPUs it may run on; `None`: all that its parent cgroup may use.
    pub cpuset: Option<BTreeSet<u32>>,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Swap beyond memory, bytes; 0: none.
    pub swap_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Rates of each of its disks.
    pub disk: DiskRates,
}

/// CPU time of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Time in each period, all CPUs together, microseconds; `None`: no limit.
    pub quota_us: Option<u64>,
    /// The period, microseconds, 1,000 to 1,000,000.
    pub period_us: u64,
    /// Share among those that want the same CPU, 2 to 262,144; 1024 is one vCPU's.
    pub shares: u64,
}

impl Cpu {
    /// The shares as version 2's `cpu.weight`, 1 to 10,000.
    ///
    /// 1024 ↔ 100, linear, as the scheduler itself converts: one vCPU weighs as
    /// much as any unit of the host left at its default.
    pub fn weight(&self) -> u64 {
        ((self.shares * 100 + 512) / 1024).clamp(1, 10_000)
    }
}

/// Rates of one disk; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRates {
    /// Bytes read in a second.
    pub read_bytes: Option<u64>,
    /// Bytes written in a second.
    pub write_bytes: Option<u64>,
    /// Reads in a second.
    pub read_iops: Option<u64>,
    /// Writes in a second.
    pub write_iops: Option<u64>,
}

/// `hw:cpu_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuPolicy {
    /// Shares its CPUs.
    Shared,
    /// Has CPUs of its own.
    Dedicated,
}

impl CpuPolicy {
    /// Reads `hw:cpu_policy`; without it an instance shares.
    pub fn from_flavor(flavor: &Flavor) -> Result<CpuPolicy> {
        match flavor.extra_specs.get("hw:cpu_policy").map(String::as_str) {
            None | Some("shared") => Ok(CpuPolicy::Shared),
            Some("dedicated") => Ok(CpuPolicy::Dedicated),
            Some("mixed") => Err(Fault::invalid(
                field("hw:cpu_policy"),
                "mixed needs virtual CPUs that a container has not: use shared or dedicated",
            )),
            Some(other) => Err(Fault::invalid(
                field("hw:cpu_policy"),
                format!("{other:?} is no policy: use shared or dedicated"),
            )),
        }
    }
}

impl CgroupLimits {
    /// The limits of a flavor.
    ///
    /// `cpus` are the CPUs the instance may run on: those picked for it when
    /// its policy is dedicated (exactly `vcpus` of them), those shared ones where
    /// it is placed otherwise; `None` when it may run anywhere.
    pub fn from_flavor(
        flavor: &Flavor,
        config: &config::Instances,
        cpus: Option<&[u32]>,
    ) -> Result<CgroupLimits> {
        within("flavor.vcpus", u64::from(flavor.vcpus), 1..=1024)?;
        within("flavor.memory_mb", flavor.memory_mb, 16..=16_777_216)?;
        within("flavor.swap_mb", flavor.swap_mb, 0..=16_777_216)?;
        let specs = Specs(flavor);
        Ok(CgroupLimits {
            cpu: specs.cpu()?,
            cpuset: specs.cpuset(cpus)?,
            memory_bytes: flavor.memory_mb * MIB,
            swap_bytes: flavor.swap_mb * MIB,
            processes: specs.number("berth:processes", PROCESSES)?.unwrap_or(config.processes),
            disk: specs.disk()?,
        })
    }
}

/// Reads extra specs and says which one is wrong.
struct Specs<'a>(&'a Flavor);

impl Specs<'_> {
    fn cpu(&self) -> Result<Cpu> {
        let vcpus = u64::from(self.0.vcpus);
        let period_us = self.number("quota:cpu_period", PERIOD_US)?.unwrap_or(DEFAULT_PERIOD_US);
        let quota_us = match self.quota_of_a_vcpu()? {
            None => Some(vcpus * period_us),
            Some(quota) => quota.map(|q| q * vcpus),
        };
        // The kernel caps shares by itself; capped here, what is read back is what was written.
        let shares = (1024 * vcpus).min(*SHARES.end());
        let shares = self.number("quota:cpu_shares", SHARES)?.unwrap_or(shares);
        Ok(Cpu { quota_us, period_us, shares })
    }

    /// `None`: not given; `Some(None)`: no limit.
    fn quota_of_a_vcpu(&self) -> Result<Option<Option<u64>>> {
        let name = "quota:cpu_quota";
        let Some(text) = self.text(name) else { return Ok(None) };
        let most = MOST_QUOTA_US / i64::from(self.0.vcpus);
        match text.parse::<i64>() {
            Ok(quota) if quota <= 0 => Ok(Some(None)),
            Ok(quota) if (1_000..=most).contains(&quota) => Ok(Some(Some(quota.unsigned_abs()))),
            _ => Err(Fault::invalid(
                field(name),
                format!("{text:?} must be 1000 to {most} microseconds, or -1 for no limit"),
            )),
        }
    }

    fn cpuset(&self, cpus: Option<&[u32]>) -> Result<Option<BTreeSet<u32>>> {
        let set: Option<BTreeSet<u32>> = cpus.map(|cpus| cpus.iter().copied().collect());
        if CpuPolicy::from_flavor(self.0)? == CpuPolicy::Dedicated {
            let picked = set.as_ref().map_or(0, BTreeSet::len);
            if picked != self.0.vcpus as usize {
                return Err(Fault::internal(
                    "limiting a dedicated instance",
                    format!("{picked} CPUs were picked for {} vcpus", self.0.vcpus),
                ));
            }
        }
        Ok(set.filter(|set| !set.is_empty()))
    }

    fn disk(&self) -> Result<DiskRates> {
        let (read_bytes, write_bytes) = self.disk_pair("bytes", MOST_BYTES_SEC)?;
        let (read_iops, write_iops) = self.disk_pair("iops", MOST_IOPS)?;
        Ok(DiskRates { read_bytes, write_bytes, read_iops, write_iops })
    }

    /// Read and write rate of a kind; 0 is no limit, as in libvirt.
    fn disk_pair(&self, kind: &str, most: u64) -> Result<(Option<u64>, Option<u64>)> {
        let rate = |direction: &str| -> Result<Option<u64>> {
            let name = format!("quota:disk_{direction}_{kind}_sec");
            Ok(self.number(&name, 0..=most)?.filter(|rate| *rate > 0))
        };
        let (total, read, write) = (rate("total")?, rate("read")?, rate("write")?);
        let Some(total) = total else { return Ok((read, write)) };
        let name = format!("quota:disk_total_{kind}_sec");
        if read.is_some() || write.is_some() {
            return Err(Fault::invalid(
                field(&name),
                "cannot stand beside the read or write rate of the same kind: give the total or the two",
            ));
        }
        if total < 2 {
            return Err(Fault::invalid(field(&name), "must be 0 (no limit) or at least 2"));
        }
        Ok((Some(total / 2), Some(total / 2)))
    }

    fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(value) if range.contains(&value) => Ok(Some(value)),
            _ => Err(Fault::invalid(
                field(name),
                format!("{text:?} must be a number from {} to {}", range.start(), range.end()),
            )),
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.extra_specs.get(name).map(|text| text.trim())
    }
}

fn field(name: &str) -> String {
    format!("flavor.extra_specs.{name}")
}

fn within(name: &str, value: u64, range: RangeInclusive<u64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Fault::invalid(name, format!("{value} must be {} to {}", range.start(), range.end())))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::fault::FaultKind;

    pub(crate) fn flavor(vcpus: u32, memory_mb: u64, specs: &[(&str, &str)]) -> Flavor {
        Flavor {
            name: "test".into(),
            vcpus,
            memory_mb,
            root_gb: 1,
            ephemeral_gb: 0,
            swap_mb: 0,
            extra_specs: specs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        }
    }

    pub(crate) fn limits(
        vcpus: u32,
        memory_mb: u64,
        specs: &[(&str, &str)],
    ) -> Result<CgroupLimits> {
        CgroupLimits::from_flavor(
            &flavor(vcpus, memory_mb, specs),
            &config::Instances::default(),
            None,
        )
    }

    #[test]
    fn plain_flavor() {
        let l = limits(2, 512, &[("hw:numa_nodes", "1")]).unwrap();
        assert_eq!(l.cpu, Cpu { quota_us: Some(200_000), period_us: 100_000, shares: 2048 });
        assert_eq!((l.memory_bytes, l.swap_bytes), (512 << 20, 0));
        assert_eq!(l.processes, config::Instances::default().processes);
        assert_eq!(l.disk, DiskRates::default());
        assert_eq!(l.cpuset, None);
    }

    #[test]
    fn cpu_specs() {
        let cpu = |vcpus, specs: &[(&str, &str)]| {
            let c = limits(vcpus, 64, specs).unwrap().cpu;
            (c.quota_us, c.period_us, c.shares)
        };
        assert_eq!(cpu(1, &[("quota:cpu_shares", "2")]), (Some(100_000), 100_000, 2));
        assert_eq!(cpu(4, &[("quota:cpu_period", "10000")]), (Some(40_000), 10_000, 4096));
        assert_eq!(cpu(3, &[("quota:cpu_quota", "20000")]), (Some(60_000), 100_000, 3072));
        assert_eq!(cpu(2, &[("quota:cpu_quota", "-1")]), (None, 100_000, 2048));
        assert_eq!(cpu(2, &[("quota:cpu_quota", "0")]), (None, 100_000, 2048));
        assert_eq!(cpu(1000, &[]), (Some(100_000_000), 100_000, 262_144));
    }

    #[test]
    fn weights_keep_the_proportion() {
        let weight = |shares| Cpu { quota_us: None, period_us: 1000, shares }.weight();
        for (shares, expected) in [(2, 1), (512, 50), (1024, 100), (2048, 200), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn disk_rates() {
        let disk = |specs: &[(&str, &str)]| limits(1, 64, specs).unwrap().disk;
        let rates = disk(&[
            ("quota:disk_read_bytes_sec", "1000000"),
            ("quota:disk_write_iops_sec", "50"),
            ("quota:disk_write_bytes_sec", "0"),
        ]);
        assert_eq!(
            rates,
            DiskRates { read_bytes: Some(1_000_000), write_iops: Some(50), ..DiskRates::default() }
        );
        let rates =
            disk(&[("quota:disk_total_iops_sec", "101"), ("quota:disk_read_bytes_sec", "7")]);
        assert_eq!((rates.read_iops, rates.write_iops), (Some(50), Some(50)));
        assert_eq!(rates.read_bytes, Some(7));
    }

    #[test]
    fn wrong_specs_name_the_field() {
        for (name, value) in [
            ("quota:cpu_shares", "1"),
            ("quota:cpu_shares", "262145"),
            ("quota:cpu_shares", "many"),
            ("quota:cpu_period", "999"),
            ("quota:cpu_period", "1000001"),
            ("quota:cpu_quota", "999"),
            ("quota:cpu_quota", "17592186044416"),
            ("quota:cpu_quota", ""),
            ("quota:disk_read_bytes_sec", "-1"),
            ("quota:disk_write_iops_sec", "4294967295"),
            ("quota:disk_total_bytes_sec", "1"),
            ("quota:disk_total_iops_sec", "1.5"),
            ("hw:cpu_policy", "mixed"),
            ("hw:cpu_policy", "Dedicated"),
            ("berth:processes", "15"),
            ("berth:processes", "4194305"),
        ] {
            let fault = limits(1, 64, &[(name, value)]).unwrap_err();
            assert_eq!(fault.kind, FaultKind::InvalidInput, "{name}={value}");
            assert_eq!(fault.field, Some(format!("flavor.extra_specs.{name}")), "{value}");
        }
    }

    #[test]
    fn a_quota_of_many_vcpus_stays_below_the_kernels_most() {
        let fault = limits(1024, 64, &[("quota:cpu_quota", "17592186044415")]).unwrap_err();
        assert!(fault.detail.contains("17179869184") || fault.detail.contains("17179869183"));
    }

    #[test]
    fn total_does_not_stand_beside_read_or_write() {
        for other in ["quota:disk_read_bytes_sec", "quota:disk_write_bytes_sec"] {
            let specs = [("quota:disk_total_bytes_sec", "1000"), (other, "10")];
            let fault = limits(1, 64, &specs).unwrap_err();
            assert_eq!(
                fault.field.as_deref(),
                Some("flavor.extra_specs.quota:disk_total_bytes_sec")
            );
        }
    }

    #[test]
    fn sizes_out_of_range_name_the_field() {
        assert_eq!(limits(0, 64, &[]).unwrap_err().field.as_deref(), Some("flavor.vcpus"));
        assert_eq!(limits(1, 15, &[]).unwrap_err().field.as_deref(), Some("flavor.memory_mb"));
        let mut swapping = flavor(1, 64, &[]);
        swapping.swap_mb = 16_777_217;
        let fault = CgroupLimits::from_flavor(&swapping, &config::Instances::default(), None);
        assert_eq!(fault.unwrap_err().field.as_deref(), Some("flavor.swap_mb"));
    }

    #[test]
    fn dedicated_takes_what_was_picked() {
        let config = config::Instances::default();
        let dedicated = flavor(2, 64, &[("hw:cpu_policy", "dedicated")]);
        let l = CgroupLimits::from_flavor(&dedicated, &config, Some(&[5, 3])).unwrap();
        assert_eq!(l.cpuset, Some(BTreeSet::from([3, 5])));
        assert!(CgroupLimits::from_flavor(&dedicated, &config, Some(&[5])).is_err());
        assert!(CgroupLimits::from_flavor(&dedicated, &config, None).is_err());
        let shared = flavor(1, 64, &[("hw:cpu_policy", "shared")]);
        let l = CgroupLimits::from_flavor(&shared, &config, Some(&[0, 1, 2])).unwrap();
        assert_eq!(l.cpuset, Some(BTreeSet::from([0, 1, 2])));
    }
}
