//! What an instance is doing, written to its console: for when nobody gets in any more.
//!
//! It is read of proc from outside, so that nothing inside has to work for it, and nothing inside is
//! disturbed: a signal (SIGQUIT) would end many a server, and is not handed to an init that has
//! no use for it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono::Utc;

use crate::fault::{Fault, FaultKind, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::monitor::Monitor;
use crate::runtime::lxcfs;
use crate::sys::ids::IdBlock;

/// Longest that the kernel may take to say it all: one of its files waits for a process's memory.
const LONGEST: Duration = Duration::from_secs(10);
/// Most processes that are told of.
const PROCESSES: usize = 512;
/// Of how many, those with the most memory, the open files are told.
const WITH_FILES: usize = 5;
/// Most files of each.
const FILES: usize = 32;
/// Most characters of a command and of a file's path.
const COMMAND: usize = 120;
/// Most calls of a stack.
const CALLS: usize = 24;
/// Most bytes of all: a part of the console's log that leaves room for what the instance said.
const WHOLE: usize = 64 << 10;

/// A process.
#[derive(Debug)]
struct Process {
    pid: i32,
    /// The number that it has inside.
    inside: i32,
    parent: i32,
    uid: u32,
    state: char,
    threads: u32,
    memory_kb: u64,
    name: String,
}

/// Writes what a running instance does to its console.
pub fn dump(parts: &HostParts, record: &Record) -> Result<()> {
    let monitor = Monitor::connect(&parts.paths(record).monitor_socket())?
        .ok_or_else(|| Fault::new(FaultKind::InstanceInvalidState, "the instance has ended"))?;
    let group = parts.group(record);
    let pids = group.pids()?;
    let memory = group.stats()?.memory;
    let block = record.id_block;
    let mut text = format!(
        "\n[dump at {}: {} processes, {} MiB of memory]\n",
        Utc::now().format("%FT%TZ"),
        pids.len(),
        memory.usage >> 20,
    );
    let said = lxcfs::within(LONGEST, move || describe(&pids, block));
    let told = said.ok_or_else(|| {
        Fault::new(FaultKind::Timeout, "the kernel does not say what the instance's processes do")
    })?;
    text += &told;
    let mut end = WHOLE.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text += "\n[end of the dump]\n";
    monitor.note(&text.replace('\n', "\r\n")).map_err(|fault| match fault.kind {
        FaultKind::InvalidInput => Fault::new(
            FaultKind::InstanceUnsupported,
            "it was started by an earlier berth; stop and start it",
        ),
        _ => fault,
    })
}

fn describe(pids: &[i32], block: IdBlock) -> String {
    let mut all: Vec<Process> =
        pids.iter().take(PROCESSES).filter_map(|pid| Process::read(*pid, block)).collect();
    all.sort_unstable_by_key(|process| process.inside);
    let mut text =
        String::from("  PID  PPID   UID S THR  RSS KiB WAITS IN                 COMMAND\n");
    for process in &all {
        process.line(&all, &mut text);
    }
    let more = pids.len().saturating_sub(PROCESSES);
    if more > 0 {
        let _ = writeln!(text, "and {more} more");
    }
    for process in all.iter().filter(|process| process.state == 'D') {
        let _ = writeln!(text, "kernel stack of {} ({}):", process.inside, process.name);
        for line in process.file("stack").split(|byte| *byte == b'\n').take(CALLS) {
            let _ = writeln!(text, "  {}", clean(line, COMMAND));
        }
    }
    all.sort_by_key(|process| std::cmp::Reverse(process.memory_kb));
    for process in all.iter().take(WITH_FILES) {
        let files = process.files();
        let _ = writeln!(text, "open in {} ({}): {files}", process.inside, process.name);
    }
    text
}

impl Process {
    fn read(pid: i32, block: IdBlock) -> Option<Process> {
        let status = fs::read(format!("/proc/{pid}/status")).ok()?;
        let mut process = Process::parse(&String::from_utf8_lossy(&status), block)?;
        process.pid = pid;
        Some(process)
    }

    /// Of the lines of `status`.
    fn parse(status: &str, block: IdBlock) -> Option<Process> {
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let number = |name: &str| field(name)?.split_whitespace().next()?.parse::<u64>().ok();
        let uid = u32::try_from(number("Uid")?).ok()?;
        Some(Process {
            pid: 0,
            // The first is the host's; those of containers inside follow.
            inside: field("NSpid")?.split_whitespace().nth(1)?.parse().ok()?,
            parent: i32::try_from(number("PPid")?).ok()?,
            uid: uid.wrapping_sub(block.first),
            state: field("State")?.chars().next()?,
            threads: u32::try_from(number("Threads")?).ok()?,
            // One of the kernel's, or a zombie, has none.
            memory_kb: number("VmRSS").unwrap_or(0),
            name: clean(field("Name")?.as_bytes(), COMMAND),
        })
    }

    fn line(&self, all: &[Process], text: &mut String) {
        let parent = all.iter().find(|other| other.pid == self.parent);
        // Who waits where nothing wakes it may hold what its command line is read by.
        let command = match self.state {
            'D' | 'Z' => String::new(),
            _ => clean(&self.file("cmdline"), COMMAND),
        };
        let command = if command.is_empty() { format!("[{}]", self.name) } else { command };
        let Process { inside, uid, state, threads, memory_kb, .. } = self;
        let parent = parent.map_or(0, |parent| parent.inside);
        let waits = clean(&self.file("wchan"), 24);
        let _ = writeln!(
            text,
            "{inside:>5} {parent:>5} {uid:>5} {state} {threads:>3} {memory_kb:>8} {waits:<24} {command}"
        );
    }

    /// A file of proc's; empty once the process is gone.
    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(format!("/proc/{}/{name}", self.pid)).unwrap_or_default()
    }

    fn files(&self) -> String {
        let directory = format!("/proc/{}/fd", self.pid);
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        let shown = |path: &Path| clean(path.as_os_str().as_encoded_bytes(), COMMAND);
        let mut names: Vec<String> = links.take(FILES + 1).map(|path| shown(&path)).collect();
        if names.len() > FILES {
            names[FILES] = "…".into();
        }
        names.join(" ")
    }
}

/// Text without what would steer a terminal; arguments apart by spaces.
fn clean(bytes: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches(['\0', '\n']);
    let plain = |c: char| match c {
        '\0' | '\n' => ' ',
        c if c.is_control() => '?',
        c => c,
    };
    text.chars().map(plain).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: IdBlock = IdBlock { first: 1_000_000, size: 65_536 };

    #[test]
    fn a_process_is_told_as_it_is_inside() {
        let status = "Name:\tnginx\nState:\tS (sleeping)\nPid:\t4711\nPPid:\t4000\n\
            Uid:\t1000033\t1000033\t1000033\t1000033\nNSpid:\t4711\t12\nVmRSS:\t    2048 kB\nThreads:\t3\n";
        let process = Process::parse(status, BLOCK).unwrap();
        assert_eq!((process.inside, process.uid, process.state), (12, 33, 'S'));
        assert_eq!((process.threads, process.memory_kb, process.name.as_str()), (3, 2048, "nginx"));
        let zombie = status.replace("VmRSS:\t    2048 kB\n", "").replace("S (sl", "Z (");
        let process = Process::parse(&zombie, BLOCK).unwrap();
        assert_eq!((process.state, process.memory_kb), ('Z', 0));
    }

    #[test]
    fn nothing_steers_the_terminal_that_shows_it() {
        assert_eq!(clean(b"a\0b\x1b]0;x\x07\n", 99), "a b?]0;x?");
        assert_eq!(clean("äöü".as_bytes(), 2), "äö");
    }

    #[test]
    fn this_process_can_be_told_of() {
        let own = std::process::id().cast_signed();
        let process = fs::read_to_string(format!("/proc/{own}/status")).unwrap();
        assert!(process.contains("NSpid:"));
        // Outside of a namespace it has no number inside.
        assert!(!describe(&[own], BLOCK).contains("open in"));
    }
}
