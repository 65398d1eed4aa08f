//! An instance's want of memory: its init is the last that the kernel kills for it, and what was
//! killed is told.
//!
//! The kernel takes the process whose end frees most, by its `oom_score_adj`. A process inherits
//! that from its parent, so nothing that init alone has would tell it from what it starts. But the
//! kernel tells of want before it kills: then all processes but init get a higher value, as much as
//! [`APART`] of the limit. Whoever may do so inside gives them a lower one again.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::thread::CapabilitySet;

use crate::cgroup::pids_below;
use crate::sys::process::ProcessId;
use crate::sys::thread::without_right;

use super::log::log;

/// What sets the others apart from init, thousandths of the instance's memory: more than init takes.
const APART: i32 = 500;

/// Of the limit: above it, want may come at once.
const THRESHOLD_PERCENT: u64 = 85;

/// How long after the kernel told of want its kills are counted, and want is looked at again.
const LOOK: Duration = Duration::from_millis(200);

/// How often further kills are told of.
const TELL: Duration = Duration::from_secs(10);

/// The cgroup's memory, watched.
pub(super) struct Memory {
    counters: Vec<PathBuf>,
    ways: Option<Way>,
    before: u64,
    kills: u64,
    told: u64,
    tell: Option<Instant>,
    look: Option<Instant>,
}

/// By what the kernel tells.
enum Way {
    /// Version 1: a counter that it raises.
    Counter(OwnedFd),
    /// Version 2: a file whose change it tells.
    Events(File),
}

impl Memory {
    /// Watches the cgroup of files with a line `oom_kill N`, which is there. What cannot be
    /// watched is said and not watched.
    pub fn watch(counters: &[PathBuf]) -> Memory {
        let counters: Vec<PathBuf> =
            counters.iter().filter(|file| file.exists()).cloned().collect();
        let way = counters.first().map(|file| {
            if file.ends_with("memory.events") { Way::events(file) } else { Way::counter(file) }
        });
        let ways = way.and_then(|way| match way {
            Ok(way) => Some(way),
            Err(error) => {
                log(format_args!("watching the instance's want of memory: {error}"));
                None
            }
        });
        let before = count(&counters);
        Memory { counters, ways, before, kills: 0, told: 0, tell: None, look: None }
    }

    /// What to poll for news.
    pub fn as_poll(&self) -> Option<PollFd<'_>> {
        Some(match self.ways.as_ref()? {
            Way::Counter(counter) => PollFd::new(counter, PollFlags::IN),
            Way::Events(file) => PollFd::new(file, PollFlags::PRI),
        })
    }

    /// How long until the next look, while one is due.
    pub fn next_look(&self, now: Instant) -> Option<Duration> {
        self.look.map(|at| at.saturating_duration_since(now))
    }

    /// Takes what was told, and counts. A look at which there was something to see is followed by
    /// another.
    pub fn look(&mut self, now: Instant) {
        let news = self.ways.as_mut().is_some_and(|way| way.take().unwrap_or(false));
        let kills = count(&self.counters).saturating_sub(self.before);
        let more = kills > self.kills;
        self.kills = self.kills.max(kills);
        self.look = (news || more || self.kills > self.told).then_some(now + LOOK);
    }

    /// Whether there is something to tell now: the first kills at once, and then not too often.
    pub fn is_to_tell(&mut self, now: Instant) -> bool {
        if self.kills == self.told || self.tell.is_some_and(|at| now < at) {
            return false;
        }
        self.tell = Some(now + TELL);
        self.told = self.kills;
        true
    }

    /// Whether there are kills that nobody was told of.
    pub fn is_untold(&self) -> bool {
        self.kills > self.told
    }

    /// Processes that were killed, as of the last look.
    pub fn kills(&self) -> u64 {
        self.kills
    }

    /// Sets all other processes apart from init.
    pub fn spare(&self, init: ProcessId) {
        let Some(group) = self.counters.first().and_then(|file| file.parent()) else { return };
        let score = |pid: i32| PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
        let read = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<i32>().ok();
        let Some(own) = read(&score(init.pid)) else { return };
        let least = (own + APART).min(1000);
        let raised = without_right(CapabilitySet::SYS_RESOURCE, || {
            // Of those that end meanwhile nothing is wanted.
            for pid in pids_below(group).unwrap_or_default() {
                let path = score(pid);
                if pid != init.pid && read(&path).is_some_and(|value| value < least) {
                    let _ = fs::write(&path, least.to_string());
                }
            }
        });
        if let Err(fault) = raised {
            log(fault.in_full());
        }
    }
}

impl Way {
    fn events(file: &Path) -> io::Result<Way> {
        let mut way = Way::Events(File::open(file)?);
        way.take()?;
        Ok(way)
    }

    /// Told when a kill is due, when hardly anything is found to be given back, and when most of
    /// the limit is taken. The kernel may lack one of these.
    fn counter(oom_control: &Path) -> io::Result<Way> {
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let group = oom_control.parent().unwrap_or(Path::new("/"));
        let limit = fs::read_to_string(group.join("memory.limit_in_bytes"))?;
        let threshold = limit.trim().parse::<u64>().unwrap_or(u64::MAX) / 100 * THRESHOLD_PERCENT;
        let about = [
            ("memory.oom_control", String::new()),
            ("memory.pressure_level", "critical".to_owned()),
            ("memory.usage_in_bytes", threshold.to_string()),
        ];
        let mut tells = false;
        for (name, what) in about {
            let Ok(file) = File::open(group.join(name)) else { continue };
            let line = format!("{} {} {what}", counter.as_fd().as_raw_fd(), file.as_raw_fd());
            tells |= fs::write(group.join("cgroup.event_control"), line).is_ok();
        }
        if tells {
            Ok(Way::Counter(counter))
        } else {
            Err(io::Error::other("the kernel tells nothing"))
        }
    }

    /// Takes what was told, if anything was.
    fn take(&mut self) -> io::Result<bool> {
        match self {
            Way::Counter(counter) => Ok(rustix::io::read(counter, &mut [0; 8]).is_ok()),
            Way::Events(file) => {
                let pending = rustix::event::poll(
                    &mut [PollFd::new(&*file, PollFlags::PRI)],
                    Some(&rustix::event::Timespec::default()),
                )?;
                file.seek(SeekFrom::Start(0))?;
                file.read_to_string(&mut String::new())?;
                Ok(pending > 0)
            }
        }
    }
}

/// Sum of the lines `oom_kill N`; files that are absent count nothing.
fn count(counters: &[PathBuf]) -> u64 {
    let kills = |text: &str| {
        let number = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
        number.trim().parse::<u64>().ok()
    };
    counters.iter().filter_map(|path| kills(&fs::read_to_string(path).ok()?)).sum()
}
