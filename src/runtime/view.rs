//! The last touch on a created container's mounts, before its first process starts: `/proc` and
//! `/sys` without what is [`hidden`], behind a wall.
//!
//! A runtime program mounts inside the instance's user namespace, where the instance's root may
//! unmount again whatever hides something. What comes from a mount namespace of a more privileged
//! user namespace comes locked: the kernel then takes it apart for nobody inside, and refuses
//! fresh mounts of proc and sysfs, which would show more. So both are taken out, completed in a
//! mount namespace of the host's root, and handed back by propagation. See mount_namespaces(7).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::MountPropagationFlags as Propagation;
use uuid::Uuid;

use super::disks::{self, Disk, VolumeDisk};
use super::hidden::{self, DiskLink, Hidden, Narrowed};
use crate::fault::{Fault, OrFault, Result};
use crate::sys::mount::{self, Attributes, FsOption};
use crate::sys::thread::{self, MountNamespace};

/// Room for the short files and directories that stand for others, a page of memory each: most are
/// volumes', some 30 each.
const SIZE: &str = "8m";

/// What a created container is to see.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What `/proc/cmdline` says.
    pub command_line: &'a str,
    /// This boot's id.
    pub boot_id: Uuid,
    /// The instance's user namespace; a first process in another one is a program that brings a
    /// kernel of its own, and is left alone.
    pub user_ns: &'a Path,
    /// A directory that the work may mount on, unseen by others.
    pub stage: &'a Path,
    /// Whether root inside can take away what hides, and mount proc and sysfs anew.
    pub locked: bool,
    /// Its disks.
    pub disks: &'a [Disk],
}

/// What stands for files of the kernel's in a container, to be changed while it runs.
#[derive(Debug)]
pub struct Stage(OwnedFd);

/// Gives the container whose first process is `init` its view. To be called between the runtime's
/// `create` and its `start`. None: the program has a kernel of its own.
pub fn complete(init: i32, view: &View<'_>) -> Result<Option<Stage>> {
    let doing = "completing the instance's /proc and /sys";
    let inode = |path: &Path| fs::metadata(path).map(|found| found.ino()).or_fault(doing);
    if inode(Path::new(&format!("/proc/{init}/ns/user")))? != inode(view.user_ns)? {
        return Ok(None);
    }
    let inside = PathBuf::from(format!("/proc/{init}/ns/mnt"));
    thread::in_own_mounts(&inside, |outside, inside| Work { view, outside, inside }.run().map(Some))
        .map_err(|fault| Fault { detail: format!("{doing}: {}", fault.detail), ..fault })
}

/// The work, on a thread that goes from one mount namespace to the other.
struct Work<'a> {
    view: &'a View<'a>,
    outside: MountNamespace,
    inside: MountNamespace,
}

impl Work<'_> {
    fn run(&self) -> Result<Stage> {
        self.inside.enter()?;
        let taken = [&hidden::PROC, &hidden::SYS].map(|hidden| {
            let point = Path::new(hidden.mount_point);
            mount::clone_trees(point).map(|tree| (hidden, tree))
        });
        let root = mount::clone_tree(Path::new("/"))?;
        // Slave or not, what it was to the host's mounts is over.
        mount::propagate(Path::new("/"), Propagation::PRIVATE)?;
        let own_root = open(Path::new("/"))?;
        self.outside.enter()?;
        let stage = self.make_stage()?;
        let mut complete = Vec::new();
        for tree in taken {
            let (hidden, tree) = tree?;
            complete.push((hidden.mount_point, self.hide(hidden, tree)?));
        }
        // The first process may be at work, and is never without: what is new comes above or,
        // by propagation, beneath what is there.
        if !self.view.locked {
            self.inside.enter()?;
            for (point, tree) in &complete {
                mount::attach(tree.as_fd(), Path::new(point))?;
            }
            return Ok(stage);
        }
        self.outside.enter()?;
        self.hand_over(root, &own_root, &complete)?;
        self.inside.enter()?;
        for (point, _) in &complete {
            mount::unmount_top(Path::new(point))?;
            let all = Propagation::PRIVATE | Propagation::REC;
            mount::propagate(Path::new(point), all)?;
        }
        mount::propagate(Path::new("/"), Propagation::PRIVATE)?;
        Ok(stage)
    }

    fn stage(&self, name: &str) -> PathBuf {
        self.view.stage.join(name)
    }

    /// A small file system for what stands in place of something.
    fn make_stage(&self) -> Result<Stage> {
        let doing = "making what stands for hidden files";
        let options = [
            FsOption::Text("source", Path::new("berth")),
            FsOption::Text("mode", Path::new("0755")),
            FsOption::Text("size", Path::new(SIZE)),
        ];
        let stage = mount::create("tmpfs", &options, Attributes::empty()).or_fault(doing)?;
        let root = mount::root_of(stage.as_fd())?;
        mount::attach(stage.as_fd(), self.view.stage)?;
        for name in ["block", "empty", "tree", "root", "peer"] {
            make_dir(&self.stage(name))?;
        }
        write(&self.stage("zero"), b"0\n")?;
        Ok(Stage(root))
    }

    /// The whole of a file system, with what is hidden covered.
    fn hide(&self, hidden: &Hidden, tree: OwnedFd) -> Result<OwnedFd> {
        let top = self.stage("tree");
        mount::attach(tree.as_fd(), &top)?;
        let sys = hidden.mount_point == hidden::SYS.mount_point;
        let live = if sys { self.live(&top)? } else { Vec::new() };
        for path in hidden.emptied {
            let place = top.join(path);
            if place.is_dir() {
                uncover(&place)?;
                self.cover(&self.stage("empty"), &place)?;
            }
        }
        for narrowed in hidden.narrowed {
            self.narrow(&top, narrowed)?;
        }
        if sys {
            self.show_disks(&top, live)?;
        } else {
            self.replace(&top)?;
        }
        let complete = mount::clone_trees(&top)?;
        mount::unmount(&top)?;
        Ok(complete)
    }

    fn narrow(&self, top: &Path, narrowed: &Narrowed) -> Result<()> {
        let place = top.join(narrowed.path);
        if !place.is_dir() {
            return Ok(());
        }
        let kept = narrowed.kept.iter().filter(|name| place.join(name).is_dir());
        let kept = kept.map(|name| mount::clone_trees(&place.join(name)).map(|tree| (name, tree)));
        let kept = kept.collect::<Result<Vec<_>>>()?;
        // Nobody would see them any more.
        kept.iter().try_for_each(|(name, _)| uncover(&place.join(name)))?;
        let cover = self.stage(&narrowed.path.replace('/', "-"));
        make_dir(&cover)?;
        let mut names = kept.iter().map(|(name, _)| *name).chain(narrowed.emptied);
        names.try_for_each(|name| make_dir(&cover.join(name)))?;
        self.cover(&cover, &place)?;
        kept.iter().try_for_each(|(name, tree)| mount::attach(tree.as_fd(), &place.join(name)))
    }

    fn replace(&self, proc: &Path) -> Result<()> {
        let of_boot = hidden::replaced(self.view.command_line, self.view.boot_id);
        let sizes = self.view.disks.iter().map(sectors).collect::<Result<Vec<_>>>()?;
        for file in of_boot.into_iter().chain(disks::tables(self.view.disks, &sizes)) {
            let place = proc.join(file.path);
            if !place.is_file() || mount::is_mount_point(&place)? {
                continue;
            }
            let cover = self.stage(&file.path.replace('/', "-"));
            write(&cover, file.content.as_bytes())?;
            self.cover(&cover, &place)?;
        }
        Ok(())
    }

    /// What stays of the kernel's own for each disk, while it can still be found.
    fn live<'a>(&self, sys: &Path) -> Result<Vec<Live<'a>>> {
        let of_disk = |disk: &Disk| {
            if disk.volume.is_some() {
                return Ok(Vec::new());
            }
            let place = sys.join(format!("dev/block/{}", disk.device));
            let place = fs::canonicalize(&place)
                .or_fault(format_args!("looking for {}", place.display()))?;
            let tree = |name| mount::clone_tree(&place.join(name)).map(|tree| (name, tree));
            hidden::LIVE.into_iter().map(tree).collect()
        };
        self.view.disks.iter().map(of_disk).collect()
    }

    /// Puts the instance's disks where sysfs has disks.
    fn show_disks(&self, sys: &Path, live: Vec<Live<'_>>) -> Result<()> {
        let top = sys.join("block");
        if top.is_dir() {
            uncover(&top)?;
            self.cover(&self.stage("block"), &top)?;
        }
        for (disk, live) in self.view.disks.iter().zip(live) {
            show(self.view.stage, disk)?;
            let place = sys.join(hidden::DISKS).join(&disk.name);
            for (name, tree) in live {
                mount::set_attributes(tree.as_fd(), covers(), None)?;
                mount::attach(tree.as_fd(), &place.join(name))?;
            }
        }
        Ok(())
    }

    fn cover(&self, with: &Path, place: &Path) -> Result<()> {
        let cover = mount::clone_tree(with)?;
        mount::set_attributes(cover.as_fd(), covers(), None)?;
        mount::attach(cover.as_fd(), place)
    }

    /// Mounts the trees on a copy of the instance's root mount that the latter is a slave of.
    fn hand_over(
        &self,
        root: OwnedFd,
        own_root: &OwnedFd,
        trees: &[(&str, OwnedFd)],
    ) -> Result<()> {
        let (copy, peer) = (self.stage("root"), self.stage("peer"));
        mount::attach(root.as_fd(), &copy)?;
        mount::propagate(&copy, Propagation::SHARED)?;
        mount::attach(mount::clone_tree(&copy)?.as_fd(), &peer)?;
        mount::propagate(&peer, Propagation::DOWNSTREAM)?;
        mount::join_group(&peer, own_root.as_fd())?;
        let copy = open(&copy)?;
        for (point, tree) in trees {
            mount::attach_below(
                tree.as_fd(),
                copy.as_fd(),
                Path::new(point.trim_start_matches('/')),
            )?;
        }
        Ok(())
    }
}

impl Stage {
    /// Shows these disks, of which the instance's own are those that are shown, and volumes as large
    /// as they now are.
    pub fn show(&self, before: &[Disk], after: &[Disk]) -> Result<()> {
        // The monitor's own proc.
        let stage = PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        for disk in before.iter().filter(|disk| !after.contains(disk)) {
            hide(&stage, disk)?;
        }
        for disk in after {
            if !before.contains(disk) {
                // Of a change that was broken off.
                hide(&stage, disk)?;
                show(&stage, disk)?;
            } else if disk.volume.is_some() {
                let size = staged(&stage, hidden::DISKS).join(&disk.name).join("size");
                rewrite(&size, format!("{}\n", sectors(disk)?).as_bytes())?;
            }
        }
        let sizes = after.iter().map(sectors).collect::<Result<Vec<_>>>()?;
        for file in disks::tables(after, &sizes) {
            let table = stage.join(file.path);
            if table.exists() {
                rewrite(&table, file.content.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Where on the stage that is which stands for `path`, a directory below a narrowed one.
fn staged(stage: &Path, path: &str) -> PathBuf {
    match path.rsplit_once('/') {
        Some((narrowed, name)) => stage.join(narrowed.replace('/', "-")).join(name),
        None => stage.join(path),
    }
}

/// The links to a disk on the stage, and where each leads.
fn links(stage: &Path, disk: &Disk) -> [(PathBuf, String); 3] {
    hidden::LINKS_TO_DISKS.map(|(path, link)| {
        let name = match link {
            DiskLink::Name => disk.name.clone(),
            DiskLink::Number => disk.device.to_string(),
        };
        let up = "../".repeat(path.split('/').count());
        (staged(stage, path).join(name), format!("{up}{}/{}", hidden::DISKS, disk.name))
    })
}

/// Puts a disk onto the stage.
fn show(stage: &Path, disk: &Disk) -> Result<()> {
    describe(stage, disk, &staged(stage, hidden::DISKS).join(&disk.name))?;
    links(stage, disk).iter().try_for_each(|(link, to)| make_link(to, link))
}

/// Takes a disk off the stage; absence is success.
fn hide(stage: &Path, disk: &Disk) -> Result<()> {
    let doing = || format!("hiding {}", disk.name);
    let absent = |done: io::Result<()>| match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.or_fault(doing()),
    };
    for (link, _) in links(stage, disk) {
        absent(fs::remove_file(link))?;
    }
    absent(fs::remove_dir_all(staged(stage, hidden::DISKS).join(&disk.name)))
}

fn describe(stage: &Path, disk: &Disk, dir: &Path) -> Result<()> {
    make_dir(dir)?;
    write(&dir.join("dev"), format!("{}\n", disk.device).as_bytes())?;
    // As virtio has it: without an end of the line.
    write(&dir.join("serial"), disk.serial.as_bytes())?;
    write(&dir.join("uevent"), disk.uevent().as_bytes())?;
    let mut zero = vec!["alignment_offset", "discard_alignment", "hidden", "removable"];
    match disk.volume {
        Some(VolumeDisk { read_only: true }) => write(&dir.join("ro"), b"1\n")?,
        _ => zero.push("ro"),
    }
    for name in zero {
        // One page for them all.
        fs::hard_link(stage.join("zero"), dir.join(name))
            .or_fault(format_args!("making {name}"))?;
    }
    make_link("../../../../class/block", &dir.join("subsystem"))?;
    make_dir(&dir.join("queue"))?;
    write(&dir.join("stat"), Disk::counts().as_bytes())?;
    if disk.volume.is_none() {
        return write(&dir.join("size"), b"");
    }
    // What comes and goes has no mounts: it is as it was when it came.
    for name in hidden::QUEUE {
        let value = fs::read(format!("/sys/dev/block/{}/queue/{name}", disk.device));
        // Not every kernel has each.
        if let Ok(value) = value {
            write(&dir.join("queue").join(name), &value)?;
        }
    }
    write(&dir.join("size"), format!("{}\n", sectors(disk)?).as_bytes())
}

/// What stays of the kernel's own for a disk: names, and what is to be mounted there.
type Live<'a> = Vec<(&'a str, OwnedFd)>;

/// A disk's size.
fn sectors(disk: &Disk) -> Result<u64> {
    let doing = || format!("asking for the size of {}", disk.name);
    let text =
        fs::read_to_string(format!("/sys/dev/block/{}/size", disk.device)).or_fault(doing())?;
    text.trim().parse().or_fault(doing())
}

/// The attributes of a mount that stands for something of proc or sysfs.
fn covers() -> Attributes {
    Attributes::MOUNT_ATTR_RDONLY
        | Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NODEV
        | Attributes::MOUNT_ATTR_NOEXEC
}

/// Takes away what is mounted at a place.
fn uncover(place: &Path) -> Result<()> {
    if mount::is_mount_point(place)? { mount::unmount(place) } else { Ok(()) }
}

fn open(path: &Path) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).or_fault(format_args!("opening {}", path.display()))
}

fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o555).create(path).or_fault(format_args!("making {}", path.display()))
}

fn make_link(to: &str, path: &Path) -> Result<()> {
    std::os::unix::fs::symlink(to, path).or_fault(format_args!("making {}", path.display()))
}

/// Changes a file that is there, of which there are mounts: whoever reads it meanwhile finds no less
/// than the shorter of both.
fn rewrite(path: &Path, content: &[u8]) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path);
    file.and_then(|file| {
        file.write_all_at(content, 0)?;
        file.set_len(content.len() as u64)
    })
    .or_fault(format_args!("writing {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o444).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, content))
        .or_fault(format_args!("writing {}", path.display()))
}
