//! Any OCI runtime program, by the command line that runc made the standard.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde::{Deserialize, Serialize};

use super::{Create, Created, Exec, Runtime};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::process::{ChildSetup, PidFd, children, guests_oom_score_adj, pass_on, wait_child};

/// Longest that a call of the program may take. It normally takes milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Time for the program to end once what it ran has.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Most bytes that are kept of what a program says.
const MOST_WORDS: u64 = 64 << 10;

/// What a command that ran inside a container left.
#[derive(Debug)]
pub struct Said {
    /// How it ended; the runtime program's own failure looks the same.
    pub status: ExitStatus,
    /// The beginning of its output.
    pub words: String,
}

/// A runtime program and how it is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CliRuntime {
    /// The program, absolute.
    pub program: PathBuf,
    /// Arguments before the verb.
    pub args: Vec<String>,
    /// Its state directory (`--root`).
    pub root: PathBuf,
}

impl CliRuntime {
    /// The program's name, for people.
    pub fn name(&self) -> String {
        self.program.file_name().unwrap_or(self.program.as_os_str()).display().to_string()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg("--root").arg(&self.root).current_dir("/");
        command
    }

    /// A command whose errors go to `log` as JSON.
    fn logged(&self, log: &Path) -> Command {
        // An old log's errors must not be taken for this call's.
        let _ = fs::remove_file(log);
        let mut command = self.command();
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        command
    }

    fn run(&self, verb: &str, mut command: Command, log: &Path, setup: &ChildSetup) -> Result<()> {
        let doing = format!("running {} {verb}", self.name());
        let mut output = Output::new().or_fault(&doing)?;
        setup.apply(&mut command).or_fault(&doing)?;
        let mut child = output.attach(&mut command).and_then(|c| c.spawn()).map_err(|e| {
            Fault::new(
                FaultKind::RuntimeFailed,
                format!("{doing} ({}): {e}", self.program.display()),
            )
        })?;
        drop(child.stdin.take());
        let Some(status) = wait_child(&mut child, DEADLINE).or_fault(&doing)? else {
            let detail =
                format!("{doing}: it hung for {} seconds and was killed", DEADLINE.as_secs());
            return Err(Fault::new(FaultKind::RuntimeFailed, detail));
        };
        if status.success() {
            return Ok(());
        }
        let said = errors_of(log).or_else(|| output.text()).unwrap_or_else(|| status.to_string());
        Err(Fault::new(kind_of(&said), format!("{} {verb}: {said}", self.name())))
    }

    /// Whether the program may know a container: every one keeps its state
    /// under `--root` by the container's name.
    fn may_know(&self, id: &str) -> bool {
        match fs::read_dir(&self.root) {
            Ok(entries) => entries
                .flatten()
                .any(|entry| entry.file_name().as_encoded_bytes().starts_with(id.as_bytes())),
            Err(e) => e.kind() != ErrorKind::NotFound,
        }
    }
}

impl Runtime for CliRuntime {
    fn create(&self, create: &Create<'_>) -> Result<Created> {
        let mut command = self.logged(create.log);
        command.arg("create").arg("--bundle").arg(create.bundle);
        if let Some(socket) = create.console_socket {
            command.arg("--console-socket").arg(socket);
        }
        command.arg("--pid-file").arg(create.pid_file).arg(create.id);
        let _ = fs::remove_file(create.pid_file);
        self.run("create", command, create.log, create.setup)?;
        let doing = format!("reading {}", create.pid_file.display());
        let pid = fs::read_to_string(create.pid_file).or_fault(&doing)?;
        let pid = pid.trim().parse().or_fault(&doing)?;
        Ok(Created { pid, console: None, line: None })
    }

    fn start(&self, _: &Created, id: &str, log: &Path) -> Result<()> {
        let mut command = self.logged(log);
        command.args(["start", id]);
        self.run("start", command, log, &ChildSetup::default())
    }

    fn delete(&self, id: &str, log: &Path) -> Result<()> {
        if !self.may_know(id) {
            return Ok(());
        }
        let mut command = self.logged(log);
        command.args(["delete", "--force", id]);
        let deleted = self.run("delete", command, log, &ChildSetup::default());
        // A state that the program itself cannot read (it was killed while
        // writing it) must not keep the instance from ever starting again.
        // Processes that may be left are found by their cgroup.
        deleted.or_else(|fault| fs::remove_dir_all(self.root.join(id)).map_err(|_| fault))
    }

    fn exec_command(&self, id: &str, exec: &Exec) -> Result<Command> {
        let doing = "preparing the command";
        if exec.process.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(Fault::invalid("command", "needs at least the program's name"));
        }
        let process = serde_json::to_vec(&exec.process).or_fault(doing)?;
        let mut command = self.command();
        // Arguments are for all of the host to read, and an environment has passwords in it.
        let file = pass_on(&mut command, &process).or_fault(doing)?;
        command.arg("exec").arg("--process").arg(file).arg(id);
        // Never a file or device of the host: some runtimes give their stdio to
        // the instance's user, /dev/null included.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The service is the last that the kernel kills for want of memory; a
        // command inside an instance is not.
        let setup =
            ChildSetup { cgroups: exec.cgroups.clone(), oom_score_adj: guests_oom_score_adj() };
        setup.apply(&mut command).or_fault(doing)?;
        Ok(command)
    }
}

/// Runs a command that an [`Exec`] became to its end and gives what it said: its status and its
/// first words. `input` is its standard input; a command that is not done with it after `limit`
/// is ended.
pub(super) fn run_to_end(
    mut command: Command,
    exec: &Exec,
    input: &[u8],
    limit: Duration,
) -> Result<Said> {
    let doing = "running a command in the instance";
    let mut output = Output::new().or_fault(doing)?;
    let mut child = output
        .attach(&mut command)
        .and_then(|c| c.spawn())
        .or_kind(FaultKind::RuntimeFailed, doing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that reads nothing is not at fault for that.
        let _ = stdin.write_all(input);
    }
    let ended = PidFd::of_child(&child).and_then(|fd| fd.wait(limit)).or_fault(doing)?;
    if !ended {
        for inside in children(child.id()) {
            // It may have ended.
            let _ = inside.signal(libc::SIGKILL);
        }
    }
    let status = wait_child(&mut child, LAST_WORDS).or_fault(doing)?;
    match status.filter(|_| ended) {
        Some(status) => Ok(Said { status, words: output.text().unwrap_or_default() }),
        None => {
            let program = exec.process.args().iter().flatten().next().map_or("", String::as_str);
            let detail = format!("{program} did not end within {} seconds", limit.as_secs());
            Err(Fault::new(FaultKind::Timeout, detail))
        }
    }
}

/// Where the program's own words go: memory, so that it can neither block on a
/// full pipe nor change the owner of anything of the host (crun gives its stdio
/// to the instance's root, be it the host's /dev/null). It does not grow.
struct Output(File);

impl Output {
    fn new() -> std::io::Result<Output> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd: OwnedFd = memfd_create(c"runtime", flags)?;
        ftruncate(&fd, MOST_WORDS)?;
        fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK)?;
        Ok(Output(File::from(fd)))
    }

    fn attach<'c>(&self, command: &'c mut Command) -> std::io::Result<&'c mut Command> {
        let (out, err) = (self.0.try_clone()?, self.0.try_clone()?);
        Ok(command.stdin(Stdio::piped()).stdout(out).stderr(err))
    }

    fn text(&mut self) -> Option<String> {
        self.0.seek(SeekFrom::Start(0)).ok()?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut self.0).take(4096).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ', '\n', '\r']).to_owned();
        (!text.is_empty()).then_some(text)
    }
}

#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The errors in a JSON log, without repetitions; `None` when it has none.
fn errors_of(log: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(log).ok()?.take(64 * 1024).read_to_string(&mut text).ok()?;
    let mut errors: Vec<String> = Vec::new();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<LogLine>(line) else { continue };
        if matches!(line.level.as_str(), "error" | "fatal" | "panic") && !errors.contains(&line.msg)
        {
            errors.push(line.msg);
        }
    }
    (!errors.is_empty()).then(|| errors.join("; "))
}

/// A full host is another fault than a failing program, and so is a command that the image
/// has not, or may not run: Nova tries another host for the first two, and for it none would do.
fn kind_of(said: &str) -> FaultKind {
    let said = said.to_ascii_lowercase();
    let exhausted = ["no space left on device", "cannot allocate memory", "too many open files"];
    if exhausted.iter().any(|text| said.contains(text)) {
        FaultKind::ResourcesExhausted
    } else if is_about_the_command(&said) {
        FaultKind::InstanceUnsupported
    } else {
        FaultKind::RuntimeFailed
    }
}

/// Whether a runtime says, in small letters, that it could not run the first process: crun
/// in the first two ways, runc in the last.
fn is_about_the_command(said: &str) -> bool {
    said.contains("executable file") && said.contains("not found in $path")
        || said.starts_with("open executable:")
        || said.contains("container process") && said.contains(": exec: \"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Process;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_command_that_is_not_there_is_the_images_fault_and_a_full_host_is_not() {
        for (said, kind) in [
            (
                "executable file `nosuch` not found in $PATH: No such file or directory",
                FaultKind::InstanceUnsupported,
            ),
            ("open executable: Permission denied", FaultKind::InstanceUnsupported),
            (
                "runc create failed: unable to start container process: exec: \"nosuch\": executable file not found in $PATH",
                FaultKind::InstanceUnsupported,
            ),
            (
                "runc create failed: unable to start container process: exec: \"/etc/passwd\": permission denied",
                FaultKind::InstanceUnsupported,
            ),
            (
                "runc create failed: unable to start container process: error during container init",
                FaultKind::RuntimeFailed,
            ),
            ("open executable: No space left on device", FaultKind::ResourcesExhausted),
            ("mount `proc`: Permission denied", FaultKind::RuntimeFailed),
        ] {
            assert_eq!(kind_of(said), kind, "{said}");
        }
    }

    /// A runtime program that is a shell script.
    fn script(body: &str) -> (tempfile::TempDir, CliRuntime, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("rt");
        fs::write(&program, format!("#!/bin/sh\nlog=$4\n{body}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let log = dir.path().join("log");
        (dir, CliRuntime { program, args: vec![], root }, log)
    }

    fn created() -> Created {
        Created { pid: 1, console: None, line: None }
    }

    #[test]
    fn a_fault_says_what_the_runtime_said() {
        let (_dir, runtime, log) = script(
            r#"echo '{"level":"warning","msg":"odd"}' >>$log
               echo '{"level":"error","msg":"no such file: /sbin/init"}' >>$log
               echo '{"level":"error","msg":"no such file: /sbin/init"}' >>$log; exit 1"#,
        );
        let fault = runtime.start(&created(), "x", &log).unwrap_err();
        assert_eq!(fault.kind, FaultKind::RuntimeFailed);
        assert_eq!(fault.detail, "rt start: no such file: /sbin/init");
    }

    #[test]
    fn without_a_log_its_standard_error_counts() {
        let (_dir, runtime, log) = script("echo 'mkdir: No space left on device' >&2; exit 1");
        fs::write(&log, r#"{"level":"error","msg":"of an earlier call"}"#).unwrap();
        let fault = runtime.start(&created(), "x", &log).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ResourcesExhausted);
        assert_eq!(fault.detail, "rt start: mkdir: No space left on device");
    }

    #[test]
    fn an_unknown_container_is_deleted_without_a_call() {
        let (_dir, runtime, log) = script("exit 1");
        runtime.delete("x", &log).unwrap();
    }

    #[test]
    fn a_state_that_the_program_cannot_read_is_removed() {
        let (_dir, runtime, log) = script("exit 1");
        fs::create_dir(runtime.root.join("x")).unwrap();
        runtime.delete("x", &log).unwrap();
        assert!(!runtime.root.join("x").exists());
        // What it calls otherwise is its own business, and its failure is told.
        fs::create_dir(runtime.root.join("x-state")).unwrap();
        runtime.delete("x", &log).unwrap_err();
    }

    #[test]
    fn an_absent_program_is_named() {
        let (_dir, mut runtime, log) = script("");
        runtime.program = "/nonexistent/rt".into();
        let fault = runtime.start(&created(), "x", &log).unwrap_err();
        assert!(fault.detail.contains("/nonexistent/rt"), "{fault}");
    }

    #[test]
    fn exec_names_nothing_of_the_process_in_its_arguments() {
        let (dir, runtime, _) = script("cat $5 >>seen");
        let mut process = Process::default();
        process.set_args(Some(vec!["ls".into(), "-l".into()]));
        process.set_env(Some(vec!["A=a secret".into()]));
        let exec = Exec { process, cgroups: Vec::new() };
        let mut command = runtime.exec_command("i", &exec).unwrap();
        let args: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).skip(2).collect();
        assert_eq!((args[0], args[1], args[3]), ("exec", "--process", "i"));
        assert!(args[2].starts_with("/proc/self/fd/"), "{args:?}");
        command.current_dir(dir.path()).stdin(Stdio::null()).spawn().unwrap().wait().unwrap();
        let seen = Process::clone(&exec.process);
        let text = fs::read(dir.path().join("seen")).unwrap();
        assert_eq!(serde_json::from_slice::<Process>(&text).unwrap(), seen);
        let none = Exec { process: Process::default(), cgroups: Vec::new() };
        let none = Exec {
            process: {
                let mut p = none.process;
                p.set_args(None);
                p
            },
            ..none
        };
        let fault = runtime.exec_command("i", &none).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("command"));
    }
}
