//! The child's side of the jail: it does one task.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitCode};

use super::confine::confine;
use super::decompress::decompress;
use super::task::{COMMAND, Outcome, Task, Verdict, Work};
use crate::fault::{Fault, OrFault, Result};
use crate::image::disk::{self, foreign, part};
use crate::image::recognise::DiskFormat;
use crate::image::stage;
use crate::image::unpack::{self, TreeKind, UnpackLimits};

/// The child's entry: to be called first in `main`, with the arguments after
/// the program's name. `None` when the program is not the jail.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != COMMAND {
        return None;
    }
    let verdict = verdict(parse(arguments.next()).and_then(|task| run_jailed(&task)));
    let written = serde_json::to_vec(&verdict)
        .map_err(std::io::Error::from)
        .and_then(|json| std::io::stderr().write_all(&json));
    Some(match (verdict, written) {
        (Verdict::Done(_), Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// A result as the child says it, never longer than a pipe takes at once when it is a failure.
pub(super) fn verdict(result: Result<Outcome>) -> Verdict {
    match result {
        Ok(outcome) => Verdict::Done(outcome),
        Err(fault) => {
            let detail = fault.detail.chars().take(1000).collect();
            Verdict::Failed { kind: fault.kind, detail }
        }
    }
}

fn parse(argument: Option<OsString>) -> Result<Task> {
    let text = argument.and_then(|argument| argument.into_string().ok()).unwrap_or_default();
    serde_json::from_str(&text).map_err(|error| {
        Fault::invalid(COMMAND, format!("this command is berth's own and takes a task: {error}"))
    })
}

fn run_jailed(task: &Task) -> Result<Outcome> {
    let subvolumes = confine(task)?;
    let root = rustix::fs::open(
        "/",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .or_fault("opening the jail's root")?;
    // As files, since the standard library's own handles buffer small pieces and lines.
    let file = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    let input = file(std::io::stdin().as_fd()).or_fault("taking standard input")?;
    let output = file(std::io::stdout().as_fd()).or_fault("taking standard output")?;
    if let Work::Convert { format, limits, .. } = &task.work {
        disk::check_foreign(input, *format, limits.bytes)?;
        return Err(become_converter(*format));
    }
    run(&task.work, root, subvolumes, input, output)
}

/// Does the work in the directory `root`, with no jail around it. `subvolumes`: the directory with
/// all of a Btrfs.
pub(super) fn run(
    work: &Work,
    root: OwnedFd,
    subvolumes: Option<OwnedFd>,
    input: File,
    output: impl Write,
) -> Result<Outcome> {
    match work {
        Work::Decompress { compression, size } => {
            let input = input.take(size.unwrap_or(u64::MAX));
            decompress(*compression, input, output).map(|()| Outcome::Decompressed)
        }
        Work::Look => Ok(Outcome::Looked(stage::is_root_file_system(input))),
        Work::Disk { limits } => disk::write_tar(input, output, *limits).map(|()| Outcome::Disk),
        Work::FindRoot => Ok(Outcome::Root(disk::find_root(input))),
        Work::DiskPart { start, size } => {
            part::write(input, *start, *size, output).map(|()| Outcome::DiskPart)
        }
        Work::Mounted { limits, .. } => {
            disk::write_mounted(root, subvolumes, output, *limits).map(Outcome::Mounted)
        }
        Work::Convert { .. } => Err(Fault::internal("converting a disk", "it takes a jail")),
        Work::Frame => disk::write_frame(input, output).map(Outcome::Frame),
        Work::Grow { start, by } => disk::grow(input, *start, *by).map(Outcome::Grown),
        Work::Fill { .. } => fill(root, input).map(|()| Outcome::Filled),
        Work::Stage { limits } => stage::stage(&root, input, *limits).map(Outcome::Staged),
        Work::Layer { kind, limits } => {
            unpack::extract(root, input, *kind, *limits).map(Outcome::Layer)
        }
    }
}

/// Only returns when that failed.
fn become_converter(format: DiskFormat) -> Fault {
    use std::os::unix::process::CommandExt;
    let driver = foreign::driver(format).unwrap_or_default();
    let error = Command::new(foreign::PROGRAM)
        .env_clear()
        // The progress it shows tells its parent that it lives.
        .args(["convert", "-p", "-f", driver, "-O", "raw", foreign::IMAGE, foreign::DISK])
        .exec();
    Fault::internal(format_args!("starting {}", foreign::PROGRAM), error)
}

/// Unpacks an archive that berth made of an instance's files.
fn fill(root: OwnedFd, input: File) -> Result<()> {
    let doing = "filling the disk";
    // Opened before anything is written: it then tells of every write that fails later.
    let whole = root.try_clone().or_fault(doing)?;
    let limits = UnpackLimits { entries: u64::MAX, bytes: u64::MAX, ids: u64::MAX };
    unpack::extract(root, input, TreeKind::FileSystem, limits)?;
    rustix::fs::syncfs(&whole).or_fault(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_arguments_are_not_the_jails() {
        assert!(main([OsString::from("serve")].into_iter()).is_none());
        assert!(main(std::iter::empty()).is_none());
        assert!(parse(Some("{".into())).is_err());
    }
}
