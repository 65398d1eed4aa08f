//! The container behind a monitor: made, started, ended and made again.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{Mode, OFlags, symlinkat};
use rustix::io::Errno;
use rustix::termios::tcgetsid;

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::runtime::disks::Disk;
use crate::runtime::view::{self, Stage, View};
use crate::runtime::{Create, Created, Runtime, dev, lines, native, targets, tmpfs};
use crate::store::layout::InstanceLayout;
use crate::sys::fs::open_in_root;
use crate::sys::ids::IdBlock;
use crate::sys::process::{ChildSetup, ProcessId};
use crate::sys::{mount, pty, scm, thread};
use crate::types::InitKind;

use super::log::log;
use super::memory::Memory;
use super::spec::MonitorSpec;

/// Size of a terminal that nobody has sized: columns, rows.
const SIZE: (u16, u16) = (80, 24);

/// The container's present incarnation.
pub(super) struct Container {
    /// Its first process.
    pub init: ProcessId,
    /// Its console.
    pub console: Console,
    /// Terminals that nobody looks at.
    pub idle: Vec<Idle>,
    /// Its want of memory.
    pub memory: Memory,
    created: Created,
    /// What it is shown of the kernel's files; none: of a kernel of its own.
    stage: Option<Stage>,
}

/// The console's master, non-blocking.
pub(super) struct Console {
    master: File,
    /// Held open so that the master reports no hang-up while no process has
    /// the console open: an init may close it between two messages.
    peer: Option<OwnedFd>,
}

/// A terminal that is there for a getty to wait at: what comes is thrown away.
pub(super) struct Idle {
    master: File,
    /// As of the [`Console`].
    _peer: OwnedFd,
}

/// Makes the container anew; its first process waits to be started.
pub(super) fn create(spec: &MonitorSpec, setup: &ChildSetup) -> Result<Container> {
    let layout = spec.layout();
    delete(spec)?;
    spec.plan.apply()?;
    let memory = Memory::watch(&spec.oom_counters);
    let created = make(spec, &layout, setup, memory).and_then(|container| {
        // Some runtimes reset limits that the specification does not name
        // (crun 1.8 on v1: memory.limit_in_bytes).
        if !spec.runtime.is_native() {
            spec.plan.apply()?;
        }
        Ok(container)
    });
    created.inspect_err(|_| {
        // The fault that counts is the first one.
        let _ = delete(spec);
        let _ = mount::unmount(&layout.dev());
    })
}

fn make(
    spec: &MonitorSpec,
    layout: &InstanceLayout,
    setup: &ChildSetup,
    memory: Memory,
) -> Result<Container> {
    let socket = layout.console_socket();
    let _ = fs::remove_file(&socket);
    let listener =
        UnixListener::bind(&socket).or_fault(format_args!("binding {}", socket.display()))?;
    let id = spec.instance.to_string();
    // Each time: the instance may have changed its files since the last.
    targets::check(&layout.bundle())?;
    dev::mount(&layout.dev(), spec.block, &spec.disks, &spec.devices)?;
    let created = spec.runtime.create(&Create {
        id: &id,
        bundle: &layout.bundle(),
        console_socket: Some(&socket),
        pid_file: &layout.init_pid(),
        log: &layout.runtime_log(),
        setup,
    });
    let _ = fs::remove_file(&socket);
    let mut created = created?;
    let master = match created.console.take() {
        Some(master) => master,
        None => receive(&listener)?,
    };
    let console = Console::new(master)?;
    let init = ProcessId::of(created.pid).ok_or_else(|| {
        let detail = "the first process ended before it was started";
        Fault::new(FaultKind::RuntimeFailed, detail)
    })?;
    let mut stage = None;
    if let Some(shown) = &spec.view {
        stage = view::complete(
            init.pid,
            &View {
                command_line: &shown.command_line,
                // Of this boot: logs are told apart by it.
                boot_id: uuid::Uuid::new_v4(),
                user_ns: &layout.user_ns(),
                stage: &layout.bundle(),
                locked: shown.locked,
                disks: &spec.disks,
            },
        )?;
    }
    if stage.is_none() && spec.disks.iter().any(|disk| disk.volume.is_some()) {
        return Err(no_volumes());
    }
    if let Some(memory_mb) = spec.systemd_memory_mb
        && let Err(fault) = tmpfs::bound(init, spec.block, memory_mb)
    {
        // What it mounts is then as large as the host's memory says.
        log(fault.in_full());
    }
    let lines = spec.init.map_or(Ok(Vec::new()), |kind| console.be_lines(init, kind, spec.block));
    let idle = lines.unwrap_or_else(|fault| {
        // The instance only lacks a login.
        log(fault.in_full());
        Vec::new()
    });
    Ok(Container { init, console, idle, memory, created, stage })
}

/// First what keeps a disk from being opened, then what shows that it is gone; of one that comes, the
/// other way round.
fn change(spec: &MonitorSpec, stage: &Stage, before: &[Disk], after: &[Disk]) -> Result<()> {
    let layout = spec.layout();
    let doing = "changing its disks";
    dev::renew_rules(&layout.bundle(), after, &spec.devices)?;
    let rules = |disks| dev::rules(disks, &spec.devices).or_fault(doing);
    let (old, new) = (rules(before)?, rules(after)?);
    native::change_devices(&spec.device_cgroup, &old, &new)?;
    for disk in before.iter().filter(|disk| !after.contains(disk)) {
        dev::unplug(&layout.dev(), disk)?;
    }
    stage.show(before, after)?;
    for disk in after.iter().filter(|disk| !before.contains(disk)) {
        dev::plug(&layout.dev(), spec.block, disk)?;
    }
    Ok(())
}

/// Takes the console's master that the runtime has already sent: it has exited.
fn receive(listener: &UnixListener) -> Result<OwnedFd> {
    let doing = "receiving the console from the runtime";
    listener.set_nonblocking(true).or_fault(doing)?;
    let stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            let detail = "the runtime did not send the console";
            return Err(Fault::new(FaultKind::RuntimeFailed, detail));
        }
        Err(e) => return Err(e).or_fault(doing),
    };
    scm::receive(&stream).or_kind(FaultKind::RuntimeFailed, doing)
}

/// Removes what the runtime keeps of the container.
pub(super) fn delete(spec: &MonitorSpec) -> Result<()> {
    spec.runtime.delete(&spec.instance.to_string(), &spec.layout().runtime_log())
}

/// The fault for a runtime program whose containers have kernels of their own.
fn no_volumes() -> Fault {
    Fault::new(
        FaultKind::HostUnsupported,
        "this runtime's instances have a kernel of their own and can have no volumes: detach them, \
         or set another runtime.name",
    )
}

impl Container {
    /// Has the instance have these disks, its own among them as they are. When this fails, it has
    /// those that it had, as far as they can be given back.
    pub fn change_disks(&self, spec: &MonitorSpec, disks: &[Disk]) -> Result<()> {
        let Some(stage) = &self.stage else { return Err(no_volumes()) };
        let changed = change(spec, stage, &spec.disks, disks);
        changed.inspect_err(|_| {
            if let Err(fault) = change(spec, stage, disks, &spec.disks) {
                log(format_args!("giving its disks back: {}", fault.in_full()));
            }
        })
    }

    /// Lets the first process run.
    pub fn start(&mut self, spec: &MonitorSpec) -> Result<()> {
        let id = spec.instance.to_string();
        spec.runtime.start(&self.created, &id, &spec.layout().runtime_log())?;
        self.created.line = None;
        Ok(())
    }
}

impl Idle {
    /// The master, to poll.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Throws away what was written, so that nobody waits for a reader: a turn's worth. Gives the bytes.
    pub fn drain(&mut self) -> usize {
        let mut buffer = [0; 4096];
        self.master.read(&mut buffer).unwrap_or(0)
    }
}

impl Console {
    fn new(master: OwnedFd) -> Result<Console> {
        let doing = "taking the console";
        pty::set_size(master.as_fd(), SIZE.0, SIZE.1).or_fault("sizing the console")?;
        let peer = pty::open_peer(master.as_fd()).or_fault("opening the console")?;
        let flags = rustix::fs::fcntl_getfl(&master).or_fault(doing)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK).or_fault(doing)?;
        Ok(Console { master: File::from(master), peer: Some(peer) })
    }

    /// Has gettys at a machine's lines find the console at one of them, and at the others
    /// terminals of their own. Runtimes make the console the first process's controlling
    /// terminal, which only a process with rights over the host could take from it.
    fn be_lines(&self, init: ProcessId, kind: InitKind, block: IdBlock) -> Result<Vec<Idle>> {
        let doing = "giving the console to a getty";
        if let Some(peer) = &self.peer {
            pty::free(peer.as_fd()).or_fault(doing)?;
        }
        let root = File::open(format!("/proc/{}/root", init.pid)).or_fault(doing)?;
        let lines = lines::of(kind, root.as_fd());
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dev = open_in_root(root.as_fd(), Path::new("dev"), flags, Mode::empty());
        let dev = dev.or_fault(doing)?;
        let link = |to: &str, name: &str| match symlinkat(to, &dev, name) {
            Err(Errno::EXIST) => Ok(()),
            made => made.or_fault(doing),
        };
        // Of the instance's own root, or the kernel would not know the owner there.
        thread::as_ids(block, || {
            lines.console.iter().try_for_each(|name| link("console", name))?;
            let idle = lines.idle.iter().map(|name| {
                let (master, peer, place) = pty::open_at(dev.as_fd()).or_fault(doing)?;
                link(&place, name)?;
                Ok(Idle { master: File::from(master), _peer: peer })
            });
            idle.collect()
        })
    }

    /// Takes it from an init that it controls, for the getty to come. sysvinit has it by opening
    /// it, and says something then.
    pub fn free_from(&self, init: ProcessId) {
        let holds = tcgetsid(&self.master).is_ok_and(|id| id.as_raw_nonzero().get() == init.pid);
        if holds
            && let Some(peer) = &self.peer
            && let Err(error) = pty::free(peer.as_fd())
        {
            // The instance only lacks job control.
            log(format_args!("taking the console from the init: {error}"));
        }
    }

    /// The master, to poll.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Reads what the instance wrote; `None` when there is nothing now.
    pub fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match self.master.read(buffer) {
            Ok(n) if n > 0 => Some(n),
            // Nothing now, or (EIO) the terminal is gone with its instance.
            _ => None,
        }
    }

    /// Lets go of the other end, once the instance has: reading then gives all
    /// that it wrote, to the last byte.
    pub fn close_peer(&mut self) {
        self.peer = None;
    }

    /// Types into it as much as it takes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.master.write(bytes) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            written => written,
        }
    }

    /// Sets its size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        pty::set_size(self.as_fd(), columns, rows).or_fault("sizing the console")
    }
}
