//! What lxcfs offers: files of /proc and /sys that show the instance, not the host.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder, Spec};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::fault::{OrFault, Result};
use crate::store::atomic;

/// Files and directories below lxcfs's mount point, which are also the paths
/// below the instance's root that they cover.
///
/// Its `proc/diskstats` is not among them: without a hierarchy for blkio that is the host's.
pub(super) const OFFERED: [&str; 7] = [
    "proc/cpuinfo",
    "proc/loadavg",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "sys/devices/system/cpu",
];
/// How long its daemon may take to answer.
pub const ANSWER: Duration = Duration::from_secs(5);
/// Threads that may wait for it at once: a stopped daemon does not take all that there are.
const MOST: usize = 64;

/// Whether lxcfs is mounted there, and answers: whoever touches one of its
/// files, the runtime program too, waits for its daemon as long as that pleases.
pub fn answers(mount_point: &Path) -> bool {
    device(mount_point).is_some()
}

/// The device number of its file system, which another start of its daemon has anew; `None` when
/// it does not answer.
pub fn device(mount_point: &Path) -> Option<u64> {
    let path = mount_point.to_owned();
    within(ANSWER, move || ask(&path).ok())?
}

/// Asks its daemon, which may not answer, for a file.
///
/// First for its root, by which alone one that is gone is known: of a name that is looked up
/// below, and not found, the kernel takes away whatever is mounted on it anywhere, and has nothing
/// mounted on it any more. Instances have mounts of these names, to be covered by those of its next
/// start.
pub fn ask(mount_point: &Path) -> std::io::Result<u64> {
    statx(CWD, mount_point, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    let file = mount_point.join("proc/meminfo");
    // Attributes alone could come from the kernel's cache.
    std::fs::read(&file)?;
    Ok(std::fs::metadata(&file)?.dev())
}

/// What is there to be bind-mounted: source on the host, and destination inside.
pub fn files(mount_point: &Path) -> Vec<(PathBuf, PathBuf)> {
    let path = mount_point.to_owned();
    within(ANSWER, move || offered(&path)).unwrap_or_default()
}

fn offered(mount_point: &Path) -> Vec<(PathBuf, PathBuf)> {
    OFFERED
        .iter()
        .map(|path| (mount_point.join(path), Path::new("/").join(path)))
        .filter(|(source, _)| source.exists())
        .collect()
}

/// How the bundle has what it offers.
pub(super) fn mounts(files: &[(PathBuf, PathBuf)]) -> Result<Vec<Mount>, OciSpecError> {
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
    let mount = |(source, to): &(PathBuf, PathBuf)| {
        let mount = MountBuilder::default().source(source).destination(to).typ("bind");
        mount.options(options.to_vec()).build()
    };
    files.iter().map(mount).collect()
}

/// Has a bundle, of which an instance is to boot again, offer what lxcfs offers now. Without its
/// daemon the bundle's mounts could not be made.
pub fn offer_again(bundle: &Path, mount_point: &Path) -> Result<()> {
    let file = bundle.join("config.json");
    let doing = "renewing the bundle";
    let mut spec = Spec::load(&file).or_fault(doing)?;
    let mut all = spec.mounts().clone().unwrap_or_default();
    all.retain(|mount| !mount.source().as_ref().is_some_and(|from| from.starts_with(mount_point)));
    if answers(mount_point) {
        all.extend(mounts(&files(mount_point)).or_fault(doing)?);
    }
    spec.set_mounts(Some(all));
    atomic::write_json(&file, &spec)
}

/// Asks a daemon that may not answer; `None` when it does not in time. The
/// thread that asked stays for as long as the daemon lets it.
pub fn within<T: Send + 'static>(
    limit: Duration,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    static ASKING: AtomicUsize = AtomicUsize::new(0);
    if ASKING.fetch_add(1, Ordering::Relaxed) >= MOST {
        ASKING.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let (answer, answers) = channel();
    let asking = std::thread::Builder::new().name("berth-lxcfs".into()).spawn(move || {
        // Nobody takes it when it comes too late.
        let _ = answer.send(ask());
        ASKING.fetch_sub(1, Ordering::Relaxed);
    });
    if asking.is_err() {
        ASKING.fetch_sub(1, Ordering::Relaxed);
    }
    answers.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(files(dir.path()), []);
        assert!(!answers(dir.path()));
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/meminfo"), "").unwrap();
        let expected = (dir.path().join("proc/meminfo"), PathBuf::from("/proc/meminfo"));
        assert_eq!(files(dir.path()), [expected]);
        assert!(answers(dir.path()));
    }

    #[test]
    fn who_does_not_answer_is_waited_for_in_few_threads() {
        let (hold, held) = channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let ask = || {
            let held = held.clone();
            within(Duration::from_millis(1), move || {
                let _ = held.lock().map(|held| held.recv());
            })
        };
        for _ in 0..MOST + 1 {
            assert_eq!(ask(), None);
        }
        assert_eq!(within(Duration::from_secs(10), || 1), None, "no more threads");
        drop(hold);
        while within(Duration::from_secs(10), || 1).is_none() {
            std::thread::yield_now();
        }
    }
}
