//! The service's side: launching a monitor and talking to it.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::plan::CgroupPlan;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::runtime::cli::DEADLINE;
use crate::runtime::disks::Disk;
use crate::store::{atomic, volatile};
use crate::sys::mount;
use crate::sys::process::{ProcessId, readable};

use super::protocol::{Answer, ExitAction, MonitorStatus, Request, line};
use super::spec::MonitorSpec;

/// The console's bytes, both ways. Reading 0 bytes means that the instance ended.
pub type ConsoleStream = UnixStream;

/// Longest that an answer takes: a restart of the instance (delete, create,
/// start) may be under way in the monitor, each bounded by [`DEADLINE`].
const ANSWER: Duration = DEADLINE.saturating_mul(4);

/// A running monitor. Every call is a connection of its own, so it may be
/// used from several threads and outlives a restart of the service.
#[derive(Clone, Debug)]
pub struct Monitor {
    socket: PathBuf,
    process: ProcessId,
}

/// Starts a monitor, which creates the instance's first process; returns once
/// it waits for [`Monitor::start`]. On a fault nothing runs any more and the
/// runtime's state is removed; cgroups that the plan made stay for the caller.
pub fn launch(spec: &MonitorSpec, program: &Path) -> Result<Monitor> {
    let layout = spec.layout();
    volatile::write_json(&layout.monitor_spec(), spec)?;
    atomic::remove_file(&layout.exit())?;
    let mut child = spawn(spec, program)?;
    let answer = read_answer(&mut child);
    // The first process of the monitor ends at once; the one that stays is nobody's child here.
    let _ = child.wait();
    match answer {
        Ok(answer) => answer
            .into_result()
            .map(|status| Monitor { socket: layout.monitor_socket(), process: status.monitor }),
        Err(fault) => {
            kill_recorded(&layout.monitor_pid());
            let said = last_lines(&layout.monitor_log());
            Err(Fault { detail: format!("{}{said}", fault.detail), ..fault })
        }
    }
}

fn spawn(spec: &MonitorSpec, program: &Path) -> Result<Child> {
    let layout = spec.layout();
    let doing = format!("starting {}", program.display());
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(layout.monitor_log())
        .or_fault(&doing)?;
    // From within, /proc/1/exe is the program of the monitor until the first process executes
    // its own, and longer if that is a script for /proc/self/exe.
    let closed = mount::read_only_copy(program).or_kind(
        FaultKind::HostUnsupported,
        format_args!("{doing}: install berth-monitor there or set instances.monitor"),
    )?;
    let mut command = Command::new(format!("/proc/self/fd/{}", closed.as_raw_fd()));
    command
        .arg0("berth-monitor")
        .arg(layout.monitor_spec())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| crate::runtime::spec::PATH.into()))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    command.spawn().or_fault(doing)
}

fn read_answer(child: &mut Child) -> Result<Answer> {
    let Some(mut pipe) = child.stdout.take() else {
        return Err(Fault::internal("reading the monitor's answer", "it has no pipe"));
    };
    let deadline = Instant::now() + ANSWER;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if !readable(pipe.as_fd(), left).or_fault("waiting for the monitor")? {
            return Err(Fault::new(FaultKind::Timeout, "the monitor was not ready in time"));
        }
        match pipe.read(&mut buffer).or_fault("reading the monitor's answer")? {
            0 => return Err(Fault::internal("starting the monitor", "it ended without a word")),
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    serde_json::from_slice(&answer).or_fault("reading the monitor's answer")
}

/// Kills the monitor that a pid file names, if it still is that process.
fn kill_recorded(path: &Path) {
    if let Ok(Some(process)) = atomic::read_json::<ProcessId>(path) {
        let _ = process.signal(libc::SIGKILL);
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    match text.lines().next_back() {
        Some(last) => format!("; it said last: {last}"),
        None => String::new(),
    }
}

impl Monitor {
    /// The monitor behind a socket; `None` when none listens there, because it
    /// ended (see `exit.json`) or was killed (then there is none).
    pub fn connect(socket: &Path) -> Result<Option<Monitor>> {
        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(e) => return Err(e).or_fault(format_args!("connecting to {}", socket.display())),
        };
        let mut connection = Connection::over(stream)?;
        match connection.request(&Request::Status) {
            Ok(status) => Ok(Some(Monitor { socket: socket.into(), process: status.monitor })),
            // It ended while it was being asked.
            Err(_) if UnixStream::connect(socket).is_err() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The monitor's process, to be watched by pidfd: it ends with its instance.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Lets the created first process run.
    pub fn start(&self) -> Result<MonitorStatus> {
        self.request(&Request::Start)
    }

    /// How things are.
    pub fn status(&self) -> Result<MonitorStatus> {
        self.request(&Request::Status)
    }

    /// Says what shall follow when the first process ends.
    pub fn on_exit(&self, action: ExitAction) -> Result<()> {
        self.request(&Request::OnExit { action }).map(drop)
    }

    /// Replaces the cgroup plan that a restart applies (after a change of limits).
    pub fn update_plan(&self, plan: &CgroupPlan) -> Result<()> {
        self.request(&Request::Plan { plan: plan.clone() }).map(drop)
    }

    /// Replaces its disks: volumes come, go and change their sizes.
    pub fn update_disks(&self, disks: &[Disk]) -> Result<()> {
        let told = self.request(&Request::Disks { disks: disks.to_vec() });
        told.map(drop).map_err(|fault| match fault.kind {
            // A request that it does not know.
            FaultKind::InvalidInput => Fault::new(
                FaultKind::InstanceInvalidState,
                "the instance was started by an earlier version, which knows no volumes: reboot it \
                 hard, then try again",
            ),
            _ => fault,
        })
    }

    /// Sends a signal to the first process, 1 to 64.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.request(&Request::Signal { signal }).map(drop)
    }

    /// Writes a text to the console and its log.
    pub fn note(&self, text: &str) -> Result<()> {
        self.request(&Request::Note { text: text.into() }).map(drop)
    }

    /// Sets the size of the terminal.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.request(&Request::Resize { columns, rows }).map(drop)
    }

    /// The status now, and a stream on which one JSON [`super::Message`] a line
    /// follows for everything after it. The stream's end without an `exited`
    /// message means that the monitor was killed.
    pub fn subscribe(&self) -> Result<(MonitorStatus, UnixStream)> {
        let mut connection = self.connection()?;
        let status = connection.request(&Request::Subscribe)?;
        Ok((status, connection.into_stream()?))
    }

    /// The console. A size of 0 leaves the terminal's as it is.
    pub fn attach(&self, columns: u16, rows: u16) -> Result<ConsoleStream> {
        let mut connection = self.connection()?;
        connection.request(&Request::Attach { columns, rows })?;
        connection.into_stream()
    }

    /// Kills the first process, has everything cleaned up, and waits until the monitor has ended.
    /// A frozen instance must be thawed first.
    pub fn quit(&self) -> Result<()> {
        let mut connection = self.connection()?;
        connection.request(&Request::Quit)?;
        let mut stream = connection.into_stream()?;
        stream.set_read_timeout(Some(ANSWER)).or_fault("waiting for the monitor's end")?;
        match stream.read(&mut [0; 64]) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(e) => Err(e).or_kind(FaultKind::Timeout, "waiting for the monitor's end"),
        }
    }

    fn connection(&self) -> Result<Connection> {
        let stream = UnixStream::connect(&self.socket)
            .or_fault(format_args!("connecting to the monitor at {}", self.socket.display()))?;
        Connection::over(stream)
    }

    fn request(&self, request: &Request) -> Result<MonitorStatus> {
        self.connection()?.request(request)
    }
}

struct Connection(UnixStream);

impl Connection {
    fn over(stream: UnixStream) -> Result<Connection> {
        stream.set_read_timeout(Some(ANSWER)).or_fault("talking to the monitor")?;
        stream.set_write_timeout(Some(ANSWER)).or_fault("talking to the monitor")?;
        Ok(Connection(stream))
    }

    fn request(&mut self, request: &Request) -> Result<MonitorStatus> {
        self.0.write_all(&line(request)).or_fault("asking the monitor")?;
        // Byte by byte where a stream follows the answer: nothing of it may be taken.
        let stream_follows = matches!(request, Request::Subscribe | Request::Attach { .. });
        let capacity = if stream_follows { 1 } else { 4096 };
        let mut answer = Vec::new();
        BufReader::with_capacity(capacity, &self.0)
            .read_until(b'\n', &mut answer)
            .or_fault("waiting for the monitor's answer")?;
        if answer.is_empty() {
            return Err(Fault::internal("asking the monitor", "it ended"));
        }
        serde_json::from_slice::<Answer>(&answer).or_fault("reading the answer")?.into_result()
    }

    fn into_stream(self) -> Result<UnixStream> {
        self.0.set_read_timeout(None).or_fault("talking to the monitor")?;
        self.0.set_write_timeout(None).or_fault("talking to the monitor")?;
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_earlier_versions_monitor_knows_no_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("monitor.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let process = ProcessId::own().unwrap();
        let answer = line(&Answer::from(Fault::invalid("op", "unknown variant `disks`")));
        let fault = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
                stream.write_all(&answer).unwrap();
            });
            Monitor { socket: socket.clone(), process }.update_disks(&[]).unwrap_err()
        });
        assert_eq!(fault.kind, FaultKind::InstanceInvalidState);
        assert!(fault.detail.contains("reboot it hard"), "{fault}");
    }
}
