//! What an instance uses, read from its cgroup.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::plan::read;
use super::{DeviceNumber, Place, Version};
use crate::fault::{OrFault, Result};
use crate::types::{CpuStats, MemoryStats, PidsStats, PressureStats};

/// Statistics of a group. A controller that the host lacks leaves zeros.
#[derive(Clone, Debug, Default)]
pub struct GroupStats {
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Each block device that was used. On version 1 without the kernel's own
    /// write-back, which is charged to the root: see [`device_io`].
    pub block: BTreeMap<DeviceNumber, DeviceIo>,
    /// Pressure, on version 2 and where the kernel keeps it.
    pub pressure: Option<PressureStats>,
}

/// Transfers of a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

/// All transfers of a block device since the kernel made it, whoever asked.
///
/// A loop device keeps counting over its users: subtract what it said when it
/// was attached. `None` if there is no such device.
pub fn device_io(device: DeviceNumber) -> Option<DeviceIo> {
    let text = read(&Path::new("/sys/dev/block").join(device.to_string()).join("stat")).ok()?;
    parse_device_stat(&text)
}

/// Columns of `Documentation/block/stat.rst`; a sector there is 512 bytes.
fn parse_device_stat(text: &str) -> Option<DeviceIo> {
    let columns: Vec<u64> = text.split_whitespace().map_while(|t| t.parse().ok()).collect();
    Some(DeviceIo {
        read_ops: *columns.first()?,
        read_bytes: columns.get(2)? * 512,
        write_ops: *columns.get(4)?,
        write_bytes: columns.get(6)? * 512,
    })
}

/// The group's directory for each controller that counts something.
pub(super) struct Sources {
    pub cpu: Option<Place>,
    pub cpuacct: Option<Place>,
    pub memory: Option<Place>,
    pub pids: Option<Place>,
    pub io: Option<Place>,
    pub unified: Option<std::path::PathBuf>,
}

impl Sources {
    pub(super) fn read(&self) -> Result<GroupStats> {
        let gather = || -> io::Result<GroupStats> {
            Ok(GroupStats {
                cpu: self.cpu()?,
                memory: self.memory.as_ref().map_or(Ok(MemoryStats::default()), memory)?,
                pids: self.pids.as_ref().map_or(Ok(PidsStats::default()), |p| pids(&p.path))?,
                block: self.io.as_ref().map_or(Ok(BTreeMap::new()), block)?,
                pressure: self.unified.as_deref().and_then(pressure),
            })
        };
        gather().or_fault("reading the cgroup's statistics")
    }

    fn cpu(&self) -> io::Result<CpuStats> {
        let mut stats = CpuStats::default();
        if let Some(Place { version: Version::V1, path }) = &self.cpuacct {
            stats.usage_ns = number(&path.join("cpuacct.usage"))?;
            stats.user_ns = number(&path.join("cpuacct.usage_user"))?;
            stats.system_ns = number(&path.join("cpuacct.usage_sys"))?;
        }
        for place in [&self.cpuacct, &self.cpu].into_iter().flatten() {
            if place.version == Version::V2 || self.cpu.as_ref() == Some(place) {
                add_cpu_stat(&mut stats, &table(&place.path.join("cpu.stat"))?);
            }
        }
        Ok(stats)
    }
}

/// `cpu.stat` of both versions; version 2 counts microseconds.
fn add_cpu_stat(stats: &mut CpuStats, table: &BTreeMap<String, u64>) {
    for (name, value) in table {
        match name.as_str() {
            "usage_usec" => stats.usage_ns = value * 1000,
            "user_usec" => stats.user_ns = value * 1000,
            "system_usec" => stats.system_ns = value * 1000,
            "nr_throttled" => stats.throttled_periods = *value,
            "throttled_usec" => stats.throttled_ns = value * 1000,
            "throttled_time" => stats.throttled_ns = *value,
            _ => {}
        }
    }
}

fn memory(place: &Place) -> io::Result<MemoryStats> {
    let at = |file: &str| place.path.join(file);
    let stat = table(&at("memory.stat"))?;
    let of = |name: &str| stat.get(name).copied().unwrap_or(0);
    Ok(match place.version {
        Version::V1 => MemoryStats {
            usage: number(&at("memory.usage_in_bytes"))?,
            limit: number(&at("memory.limit_in_bytes"))?,
            peak: number(&at("memory.max_usage_in_bytes"))?,
            rss: of("total_rss"),
            cache: of("total_cache"),
            swap: of("total_swap"),
            oom_kills: oom_kills(place)?,
        },
        Version::V2 => MemoryStats {
            usage: number(&at("memory.current"))?,
            limit: number(&at("memory.max"))?,
            // Since Linux 5.19.
            peak: number(&at("memory.peak")).unwrap_or(0),
            rss: of("anon"),
            cache: of("file"),
            swap: number(&at("memory.swap.current")).unwrap_or(0),
            oom_kills: oom_kills(place)?,
        },
    })
}

/// Processes that the kernel killed in the group for want of memory.
pub(super) fn oom_kills(memory: &Place) -> io::Result<u64> {
    let file = match memory.version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    Ok(table(&memory.path.join(file))?.get("oom_kill").copied().unwrap_or(0))
}

fn pids(dir: &Path) -> io::Result<PidsStats> {
    Ok(PidsStats {
        current: number(&dir.join("pids.current"))?,
        limit: number(&dir.join("pids.max"))?,
    })
}

fn block(place: &Place) -> io::Result<BTreeMap<DeviceNumber, DeviceIo>> {
    match place.version {
        Version::V2 => Ok(parse_io_stat(&read(&place.path.join("io.stat"))?)),
        Version::V1 => {
            let at = |file: &str| read(&place.path.join(file));
            let bytes = at("blkio.throttle.io_service_bytes_recursive")?;
            let ops = at("blkio.throttle.io_serviced_recursive")?;
            Ok(parse_throttle_stat(&bytes, &ops))
        }
    }
}

fn parse_io_stat(text: &str) -> BTreeMap<DeviceNumber, DeviceIo> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next().and_then(parse_device) else { continue };
        let io: &mut DeviceIo = all.entry(device).or_default();
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.read_ops = value,
                "wios" => io.write_ops = value,
                _ => {}
            }
        }
    }
    all
}

fn parse_throttle_stat(bytes: &str, ops: &str) -> BTreeMap<DeviceNumber, DeviceIo> {
    let mut all: BTreeMap<DeviceNumber, DeviceIo> = BTreeMap::new();
    for (device, direction, value) in bytes.lines().filter_map(parse_throttle_line) {
        let io = all.entry(device).or_default();
        match direction {
            "Read" => io.read_bytes = value,
            "Write" => io.write_bytes = value,
            _ => {}
        }
    }
    for (device, direction, value) in ops.lines().filter_map(parse_throttle_line) {
        let io = all.entry(device).or_default();
        match direction {
            "Read" => io.read_ops = value,
            "Write" => io.write_ops = value,
            _ => {}
        }
    }
    all
}

fn parse_throttle_line(line: &str) -> Option<(DeviceNumber, &str, u64)> {
    let mut words = line.split_whitespace();
    Some((parse_device(words.next()?)?, words.next()?, words.next()?.parse().ok()?))
}

fn parse_device(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// Pressure of a version 2 cgroup. On a hybrid host the runtime may not have
/// put the instance there: then there is nothing to say.
fn pressure(dir: &Path) -> Option<PressureStats> {
    let events = read(&dir.join("cgroup.events")).ok()?;
    if !events.lines().any(|line| line == "populated 1") {
        return None;
    }
    let some = |file: &str| parse_pressure(&read(&dir.join(file)).ok()?);
    Some(PressureStats {
        cpu: some("cpu.pressure")?,
        memory: some("memory.pressure")?,
        io: some("io.pressure")?,
    })
}

/// The ten-second average of the `some` line, percent.
fn parse_pressure(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// Lines of a name and a number.
fn table(path: &Path) -> io::Result<BTreeMap<String, u64>> {
    let text = read(path)?;
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(pair).collect())
}

/// A number, where `max` is the greatest.
fn number(path: &Path) -> io::Result<u64> {
    match read(path)?.as_str() {
        "max" => Ok(u64::MAX),
        text => {
            text.parse().map_err(|e| io::Error::other(format!("{}: {text:?}: {e}", path.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LOOP: DeviceNumber = DeviceNumber { major: 7, minor: 3 };

    #[test]
    fn v2_files() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 7\n",
            ),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "16384\n"),
            ("memory.stat", "anon 4096\nfile 2048\n"),
            ("memory.events", "low 0\noom 2\noom_kill 1\n"),
            ("memory.swap.current", "5\n"),
            ("pids.current", "3\n"),
            ("pids.max", "100\n"),
            ("io.stat", "7:3 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0 \n"),
            ("cgroup.events", "populated 1\nfrozen 0\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=1\n"),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=9.00\n",
            ),
            ("io.pressure", "some avg10=33.00 avg60=0.00 avg300=0.00 total=1\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let place = Some(Place { version: Version::V2, path: dir.path().to_owned() });
        let sources = Sources {
            cpu: place.clone(),
            cpuacct: place.clone(),
            memory: place.clone(),
            pids: place.clone(),
            io: place,
            unified: Some(dir.path().to_owned()),
        };
        let s = sources.read().unwrap();
        assert_eq!(
            (s.cpu.usage_ns, s.cpu.user_ns, s.cpu.system_ns),
            (3_000_000, 2_000_000, 1_000_000)
        );
        assert_eq!((s.cpu.throttled_periods, s.cpu.throttled_ns), (4, 7_000));
        assert_eq!((s.memory.usage, s.memory.limit, s.memory.peak), (8192, u64::MAX, 16384));
        assert_eq!((s.memory.rss, s.memory.cache, s.memory.swap), (4096, 2048, 5));
        assert_eq!(s.memory.oom_kills, 1);
        assert_eq!((s.pids.current, s.pids.limit), (3, 100));
        let io = DeviceIo { read_bytes: 10, write_bytes: 20, read_ops: 1, write_ops: 2 };
        assert_eq!(s.block[&LOOP], io);
        let pressure = s.pressure.unwrap();
        assert_eq!((pressure.cpu, pressure.memory, pressure.io), (1.5, 0.0, 33.0));
        fs::write(dir.path().join("cgroup.events"), "populated 0\n").unwrap();
        assert!(sources.read().unwrap().pressure.is_none());
    }

    #[test]
    fn throttle_statistics_of_v1() {
        let all = parse_throttle_stat(
            "7:3 Read 4096\n7:3 Write 8192\n7:3 Total 12288\nTotal 12288\n",
            "7:3 Read 1\n7:3 Write 2\nTotal 3\n",
        );
        let io = DeviceIo { read_bytes: 4096, write_bytes: 8192, read_ops: 1, write_ops: 2 };
        assert_eq!(all, BTreeMap::from([(LOOP, io)]));
    }

    #[test]
    fn device_statistics() {
        let io = parse_device_stat("   10   0   16 3   20   0   32 5  0 0 0 0 0 0 0").unwrap();
        assert_eq!(
            io,
            DeviceIo { read_ops: 10, read_bytes: 8192, write_ops: 20, write_bytes: 16384 }
        );
        assert_eq!(parse_device_stat("1 2"), None);
    }
}
