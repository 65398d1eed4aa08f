//! What `berth-monitor` does, from its start to its end.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::cgroup::Entrance;
use crate::fault::{Fault, OrFault, Result};
use crate::runtime::native;
use crate::store::{atomic, volatile};
use crate::sys::child::{self, Birth};
use crate::sys::process::{self, ChildSetup, ProcessId};

use super::container;
use super::log::log;
use super::protocol::{Answer, line};
use super::serve::Server;
use super::spec::MonitorSpec;

/// The kernel's last resort kills everything else first; -1000 would be never.
const OOM_SCORE_ADJ: i32 = -999;

/// `berth-monitor MONITOR.JSON`: the program's whole life, unless it is called for
/// [`native::command`].
///
/// Its standard output takes one line, the [`Answer`] to the launch, and is
/// then closed; its standard error is the log. Must be called while the
/// process has a single thread.
pub fn main(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let usage = || {
        eprintln!("usage: berth-monitor MONITOR.JSON (it is started by `berth serve`)");
        ExitCode::from(2)
    };
    let Some(path) = arguments.nth(1) else { return usage() };
    let others: Vec<String> = arguments.map(|text| text.to_string_lossy().into_owned()).collect();
    if !others.is_empty() {
        let done = native::command(&path.to_string_lossy(), &others);
        return done.unwrap_or_else(usage);
    }
    let begun = prepare(Path::new(&path)).and_then(|(spec, cgroups)| {
        // Born in its cgroup of version 2: to move there would wait for the kernel.
        let birth = Birth { cgroup: cgroups.unified(), ..Birth::default() };
        child::start(&birth, || live(spec, &cgroups)).or_fault("leaving the service's process")
    });
    match begun {
        // The one that stays is nobody's child, or its reaper's.
        Ok(_) => ExitCode::SUCCESS,
        Err(fault) => {
            failed(fault);
            ExitCode::FAILURE
        }
    }
}

/// The life of the process that stays.
fn live(spec: MonitorSpec, cgroups: &Entrance) -> i32 {
    match launch(spec, cgroups) {
        Ok(mut server) => {
            report(&Answer::Done(server.status()));
            server.serve();
            0
        }
        Err(fault) => {
            failed(fault);
            1
        }
    }
}

fn failed(fault: Fault) {
    log(fault.in_full());
    report(&Answer::from(fault));
}

/// Reads the specification, and opens what the monitor is to enter.
fn prepare(path: &Path) -> Result<(MonitorSpec, Entrance)> {
    process::keep_standard_descriptors_only();
    let spec: MonitorSpec = atomic::read_json(path)?.ok_or_else(|| {
        Fault::internal(format_args!("reading {}", path.display()), "no such file")
    })?;
    let mut cgroups = Entrance::default();
    spec.own_cgroups
        .iter()
        .filter_map(|file| file.parent())
        .try_for_each(|dir| cgroups.add(dir))?;
    Ok((spec, cgroups))
}

fn launch(spec: MonitorSpec, cgroups: &Entrance) -> Result<Server> {
    process::ignore_broken_pipes();
    rustix::process::setsid().or_fault("leaving the service's session")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let layout = spec.layout();
    let own = ProcessId::own()
        .ok_or_else(|| Fault::internal("looking at /proc/self/stat", "not readable"))?;
    volatile::write_json(&layout.monitor_pid(), &own)?;
    let _ = process::set_name(&format!("berth:{:08x}", spec.instance.as_fields().0));
    cgroups.enter()?;
    process::become_subreaper().or_fault("becoming the reaper")?;
    let signals = block_signals().or_fault("blocking signals")?;
    let setup = ChildSetup {
        cgroups: spec.join_cgroups.clone(),
        oom_score_adj: process::guests_oom_score_adj(),
    };
    // Where that is not permitted it lives with what it was given.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ.to_string());
    let listener = listen(&layout.monitor_socket())?;
    let begun = container::create(&spec, &setup)
        .and_then(|container| Server::new(spec, own, setup, signals, listener, container));
    begun.inspect_err(|_| {
        let _ = fs::remove_file(layout.monitor_socket());
        let _ = fs::remove_file(layout.monitor_pid());
    })
}

/// Has SIGCHLD come through a descriptor, and nothing else end the monitor:
/// whoever stops the service must not stop instances.
fn block_signals() -> nix::Result<SignalFd> {
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        blocked.add(signal);
    }
    blocked.thread_block()?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

fn listen(socket: &Path) -> Result<UnixListener> {
    let doing = format!("listening on {}", socket.display());
    match fs::remove_file(socket) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).or_fault(doing),
        _ => {}
    }
    let listener = UnixListener::bind(socket).or_fault(&doing)?;
    // The directory is root's alone; this is the second lock on the door.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).or_fault(&doing)?;
    listener.set_nonblocking(true).or_fault(&doing)?;
    Ok(listener)
}

/// Answers the launch and lets the service's pipe go.
fn report(answer: &Answer) {
    // A service that died meanwhile does not matter: the next one connects.
    let _ = std::io::stdout().write_all(&line(answer));
    let _ = std::io::stdout().flush();
    if let Ok(null) = fs::File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}
