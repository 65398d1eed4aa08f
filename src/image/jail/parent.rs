//! The parent's side of the jail: starts the child, feeds it, waits for its verdict.
//!
//! A child is never trusted to go on: every wait for it is bounded, what it
//! says is bounded, and it is killed when its handle goes.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::SpliceFlags;

use super::task::{COMMAND, Outcome, Task, Verdict, Work};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::refusal::printable;
use crate::sys::process::{ChildSetup, guests_oom_score_adj, spawn_alone};

/// How long a child may neither take nor give a byte: a disk that is very slow, not a hang.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a program is looked at that gives nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes that a pipe holds, as many as `pipe-max-size` lets anybody have.
const PIPE: usize = 1 << 20;
/// Most bytes of a verdict.
const MAX_VERDICT: u64 = 64 << 20;

/// The jail, by how it is entered.
#[derive(Clone, Debug)]
pub enum Jail {
    /// By starting this program with [`COMMAND`].
    Program(PathBuf),
    /// Not at all: a thread of this process does the work. For unit tests,
    /// whose program is not berth.
    #[cfg(test)]
    Thread,
}

/// A child at work.
pub struct Running {
    input: Option<Feed>,
    output: Option<PipeReader>,
    verdict: PipeReader,
    worker: Worker,
    /// Its feed waits for bytes: that it gives none is not its fault.
    starving: Arc<AtomicBool>,
}

/// The way in of a child or of a pipe.
pub struct Feed {
    input: PipeWriter,
    starving: Arc<AtomicBool>,
}

enum Worker {
    Process(Child),
    #[cfg(test)]
    Thread,
}

/// Where a child reads from.
pub enum Input {
    /// From a file, which must not be writable by the descriptor.
    File(File),
    /// From [`Running::give`].
    Pipe,
}

/// A way through this process alone, for bytes that need no child.
pub fn pipe() -> Result<(Feed, PipeReader)> {
    let (reader, writer) = new_pipe()?;
    Ok((Feed::new(writer)?, reader))
}

fn new_pipe() -> Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = std::io::pipe().or_fault("making a pipe to the jail")?;
    // Both ends wake each other less often. Not for a user above `pipe-user-pages-soft`,
    // which root is not held to.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
    Ok((reader, writer))
}

impl Feed {
    fn new(input: PipeWriter) -> Result<Feed> {
        rustix::io::ioctl_fionbio(&input, true).or_fault("making a pipe to the jail")?;
        Ok(Feed { input, starving: Arc::default() })
    }

    /// Gives bytes. False when no more are taken.
    pub fn give(&mut self, mut bytes: &[u8]) -> Result<bool> {
        while !bytes.is_empty() {
            match self.input.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock if has_come(&self.input, PollFlags::OUT)? => {}
                    ErrorKind::WouldBlock => return Err(stands_still()),
                    ErrorKind::Interrupted => {}
                    ErrorKind::BrokenPipe => return Ok(false),
                    _ => return Err(error).or_fault("feeding the jail"),
                },
            }
        }
        Ok(true)
    }

    /// Waits for bytes to give, which has a time limit of its own.
    pub fn starving<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.starving.store(true, Ordering::Relaxed);
        let result = wait();
        self.starving.store(false, Ordering::Relaxed);
        result
    }
}

impl Jail {
    /// Starts a child that works in a directory.
    pub fn start(&self, directory: PathBuf, work: Work, input: Input) -> Result<Running> {
        let task = Task { work, directory };
        let (child_input, input) = match input {
            Input::File(file) => (OwnedFd::from(file), None),
            Input::Pipe => {
                let (feed, reader) = pipe()?;
                (OwnedFd::from(reader), Some(feed))
            }
        };
        let starving = input.as_ref().map(|feed| Arc::clone(&feed.starving)).unwrap_or_default();
        let (output, child_output) = new_pipe()?;
        let (verdict, child_verdict) = new_pipe()?;
        let worker = match self {
            Jail::Program(program) => {
                let task = serde_json::to_string(&task).or_fault("describing a task")?;
                let mut command = Command::new(program);
                // Not protected as the service is, should an archive eat the memory.
                let setup =
                    ChildSetup { oom_score_adj: guests_oom_score_adj(), ..Default::default() };
                setup.apply(&mut command).or_fault("preparing the jail")?;
                command
                    .args([COMMAND, &task])
                    .env_clear()
                    .current_dir("/")
                    .stdin(child_input)
                    .stdout(child_output)
                    .stderr(Stdio::from(child_verdict));
                let child = spawn_alone(&mut command).map_err(|fault| fault.context("the jail"))?;
                Worker::Process(child)
            }
            #[cfg(test)]
            Jail::Thread => {
                in_thread(task, File::from(child_input), child_output, child_verdict);
                Worker::Thread
            }
        };
        Ok(Running { input, output: Some(output), verdict, worker, starving })
    }
}

impl Running {
    /// Gives bytes to the child. False when it takes no more; its verdict says why.
    pub fn give(&mut self, bytes: &[u8]) -> Result<bool> {
        self.input.as_mut().map_or(Ok(false), |feed| feed.give(bytes))
    }

    /// Hands its way in to somebody else.
    pub fn feed(&mut self) -> Result<Feed> {
        self.input.take().ok_or_else(|| Fault::internal("feeding the jail", "it has no way in"))
    }

    /// Takes bytes that the child gives; 0 at the end.
    pub fn take(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let Some(output) = &mut self.output else { return Ok(0) };
        while !has_come(&*output, PollFlags::IN)? {
            if !self.starving.load(Ordering::Relaxed) {
                return Err(stands_still());
            }
        }
        output.read(buffer).or_fault("reading from the jail")
    }

    /// Moves bytes that the child gives into another, without looking at them: how many, 0 at the
    /// end. `None` when the other takes no more; its verdict says why.
    pub fn forward(&mut self, to: &mut Running) -> Result<Option<usize>> {
        let (Some(output), Some(feed)) = (&self.output, &to.input) else { return Ok(None) };
        if !has_come(output, PollFlags::IN)? {
            return Err(stands_still());
        }
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            match rustix::pipe::splice(output, None, &feed.input, None, PIPE, flags) {
                Ok(n) => return Ok(Some(n)),
                Err(rustix::io::Errno::AGAIN) if has_come(&feed.input, PollFlags::OUT)? => {}
                Err(rustix::io::Errno::AGAIN) => return Err(stands_still()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::PIPE) => return Ok(None),
                Err(error) => return Err(error).or_fault("feeding the jail"),
            }
        }
    }

    /// Ends the input and waits for the verdict.
    pub fn finish(mut self) -> Result<Outcome> {
        drop(self.input.take());
        drop(self.output.take());
        let said = self.said()?;
        match serde_json::from_slice(&said) {
            Ok(Verdict::Done(outcome)) => Ok(outcome),
            Ok(Verdict::Failed { kind, detail }) => Err(Fault::new(kind, detail)),
            Err(_) => Err(died(self.status(), &said)),
        }
    }

    /// Waits for the end of a program that the child became, of which only
    /// success and words are known. `watch` is asked time and again whether it
    /// may go on.
    pub fn finish_program(mut self, watch: &dyn Fn() -> Result<()>) -> Result<()> {
        drop(self.input.take());
        let mut buffer = [0; 4096];
        let mut heard = Instant::now();
        while let Some(output) = &self.output {
            watch()?;
            if !has_come_within(output, PollFlags::IN, LOOK_AGAIN)? {
                if heard.elapsed() > PATIENCE {
                    return Err(stands_still());
                }
            } else if self.take(&mut buffer)? > 0 {
                heard = Instant::now();
            } else {
                break;
            }
        }
        let said = self.said()?;
        if let Ok(Verdict::Failed { kind, detail }) = serde_json::from_slice(&said) {
            return Err(Fault::new(kind, detail));
        }
        match self.status() {
            Some(status) if status.success() => Ok(()),
            Some(status) if status.code().is_some() => {
                Err(Fault::new(FaultKind::ImageUnacceptable, last_line(&said)))
            }
            status => Err(died(status, &said)),
        }
    }

    fn said(&mut self) -> Result<Vec<u8>> {
        let mut said = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            if !has_come(&self.verdict, PollFlags::IN)? {
                return Err(stands_still());
            }
            match self.verdict.read(&mut buffer).or_fault("reading the jail's verdict")? {
                0 => return Ok(said),
                n => said.extend_from_slice(&buffer[..n]),
            }
            if said.len() as u64 > MAX_VERDICT {
                return Err(Fault::internal("reading the jail's verdict", "it does not end"));
            }
        }
    }

    /// How the child ended; one that closed its standard error and lives on is killed.
    fn status(&mut self) -> Option<ExitStatus> {
        match &mut self.worker {
            Worker::Process(child) => {
                for _ in 0..100 {
                    if let Ok(Some(status)) = child.try_wait() {
                        return Some(status);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                None
            }
            #[cfg(test)]
            Worker::Thread => None,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match &mut self.worker {
            Worker::Process(child) => {
                // Both fail only for a child that has been waited for already.
                let _ = child.kill();
                let _ = child.wait();
            }
            #[cfg(test)]
            Worker::Thread => {}
        }
    }
}

/// What a program said last, which is why it ended.
fn last_line(said: &[u8]) -> String {
    let line = said.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    printable(&line[..line.len().min(500)])
}

/// Content that makes the child die is the content's fault when a limit or a
/// crash of a library ended it.
fn died(status: Option<ExitStatus>, said: &[u8]) -> Fault {
    use std::os::unix::process::ExitStatusExt;
    let signal = status.and_then(|status| status.signal());
    match signal {
        Some(libc::SIGXCPU | libc::SIGXFSZ | libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS) => {
            Fault::new(
                FaultKind::ImageUnacceptable,
                format!(
                    "unpacking took more memory, time or space than any image needs (signal {}): {}",
                    signal.unwrap_or_default(),
                    last_line(said)
                ),
            )
        }
        Some(libc::SIGKILL) => Fault::new(
            FaultKind::ResourcesExhausted,
            "unpacking was killed, most likely because the host ran out of memory",
        ),
        _ => Fault::internal(
            "unpacking in the jail",
            format!(
                "it ended without a verdict ({}): {}",
                status.map_or("alive".to_owned(), |status| status.to_string()),
                printable(said)
            ),
        ),
    }
}

/// Waits for a pipe; false when nothing happens.
fn has_come(fd: impl AsFd, flags: PollFlags) -> Result<bool> {
    has_come_within(fd, flags, PATIENCE)
}

fn has_come_within(fd: impl AsFd, flags: PollFlags, time: Duration) -> Result<bool> {
    let timeout = Timespec::try_from(time).ok();
    loop {
        match poll(&mut [PollFd::new(&fd, flags)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|ready| ready > 0).or_fault("waiting for the jail"),
        }
    }
}

fn stands_still() -> Fault {
    Fault::internal("unpacking in the jail", "it stands still")
}

#[cfg(test)]
fn in_thread(task: Task, input: File, output: PipeWriter, mut verdict: PipeWriter) {
    std::thread::spawn(move || {
        let root = OwnedFd::from(File::open(&task.directory).unwrap());
        let result = super::child::run(&task.work, root, None, input, output);
        let said = serde_json::to_vec(&super::child::verdict(result)).unwrap();
        let _ = verdict.write_all(&said);
    });
}
