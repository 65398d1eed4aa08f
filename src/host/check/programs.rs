//! The programs that berth calls: runtimes, file system tools, lxcfs, nft, the monitor.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::advisories::{self, Known};
use super::outcome::{failed, ok, warning};
use super::trials::Trials;
use crate::cgroup::{Group, Hierarchy};
use crate::config::Config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::runtime::PROGRAMS;
use crate::runtime::lxcfs::{ANSWER as ANSWERS, ask, within};
use crate::runtime::native::NAME;
use crate::types::Check;

/// Where system programs are, besides PATH, which a service's may leave out.
const SYSTEM_PATH: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// How long a runtime program may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// What the trial's container would run: a runtime that gets as far as missing
/// it has passed namespaces and cgroups.
const MISSING_PROGRAM: &str = "/no-such-program";

pub(super) fn checks(config: &Config, trials: &Trials<'_>) -> Vec<Check> {
    let mut checks = runtimes(config, trials);
    checks.push(monitor(config));
    checks.extend(filesystem_tools(config));
    checks.push(lxcfs(
        &config.instances.lxcfs,
        &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
    ));
    checks.push(tool("nft", "apt install nftables: it keeps instances out of the host's network"));
    checks
}

/// Looks a program up: an absolute path as it is, a name in PATH and the
/// system's directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let executable = |path: &Path| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| executable(path));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(SYSTEM_PATH.map(PathBuf::from));
    dirs.filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|path| executable(path))
}

/// One check for each runtime there is, or one that says there is none.
fn runtimes(config: &Config, trials: &Trials<'_>) -> Vec<Check> {
    let configured = config.runtime.program.as_str();
    let all = [&[NAME][..], &PROGRAMS].concat();
    // As the service looks for one.
    let wanted = match configured {
        "auto" if config.runtime.args.is_empty() => all.clone(),
        "auto" => PROGRAMS.to_vec(),
        name => vec![name],
    };
    let others = all.into_iter().filter(|name| !wanted.contains(name));
    let tried: Vec<Tried> = wanted
        .iter()
        .map(|name| Tried::new(name, true, trials))
        .chain(others.map(|name| Tried::new(name, false, trials)))
        .collect();
    judge(&tried, configured)
}

/// A runtime that was looked for.
struct Tried {
    name: String,
    /// Whether the configuration would use it.
    wanted: bool,
    /// `None`: not installed.
    outcome: Option<Result<String>>,
}

impl Tried {
    fn new(name: &str, wanted: bool, trials: &Trials<'_>) -> Tried {
        if name == NAME {
            let outcome = Some((trials.native)());
            return Tried { name: name.to_owned(), wanted, outcome };
        }
        let outcome = find_program(name).map(|path| {
            (trials.runtime)(&path).map(|version| format!("{version}, {}", path.display()))
        });
        Tried { name: name.to_owned(), wanted, outcome }
    }
}

/// A wanted runtime that refuses is a failure only if no wanted one works.
fn judge(tried: &[Tried], configured: &str) -> Vec<Check> {
    let used = tried.iter().position(|t| t.wanted && matches!(t.outcome, Some(Ok(_))));
    let works = used.is_some();
    let mut checks: Vec<Check> = tried
        .iter()
        .enumerate()
        .filter_map(|(index, t)| {
            let name = format!("runtime {}", t.name);
            Some(match t.outcome.as_ref()? {
                Ok(found) => match advisories::known(found) {
                    Some(known) if used == Some(index) => with_known_escapes(&name, found, &known),
                    _ => ok(&name, found),
                },
                Err(fault) if works || !t.wanted => {
                    warning(&name, &fault.detail, runtime_remedy(fault))
                }
                Err(fault) => failed(&name, &fault.detail, runtime_remedy(fault)),
            })
        })
        .collect();
    if !works && tried.iter().all(|t| !t.wanted || t.outcome.is_none()) {
        let (found, remedy) = match configured {
            "auto" => (format!("none of {}", PROGRAMS.join(", ")), "apt install crun".into()),
            name => (
                format!("{name} is not installed"),
                format!("install {name}, or correct runtime.program"),
            ),
        };
        checks.push(failed("runtime", found, remedy));
    }
    checks
}

/// Not a failure: distributions mend versions and leave their numbers, and only they know.
fn with_known_escapes(name: &str, found: &str, known: &Known) -> Check {
    let names = known.names.join(", ");
    warning(
        name,
        format!("{found}: by its number it has known ways out of a container: {names}"),
        format!(
            "take {} or later, or make sure that your distribution's package has these mended \
             (its changelog or security tracker names them)",
            known.mended
        ),
    )
}

fn runtime_remedy(fault: &Fault) -> String {
    let hybrid = fault.detail.contains("hybrid");
    let unified = Hierarchy::detect().map(|h| h.unified_controllers().clone()).unwrap_or_default();
    if !hybrid || unified.is_empty() {
        return "use another runtime program, or a later version of this one".into();
    }
    let mounts = unified.iter().map(|name| {
        format!(
            "mkdir /sys/fs/cgroup/{name} && mount -t cgroup -o {name} {name} /sys/fs/cgroup/{name}"
        )
    });
    mounts.collect::<Vec<_>>().join(" && ")
}

/// A light trial of a runtime program: what it says of itself, and whether it
/// gets through namespaces and cgroups on this host. No process of a container
/// ever runs: its program does not exist.
pub fn runtime_trial(program: &Path) -> Result<String> {
    let scratch = Scratch::new()?;
    let said = scratch.run(Command::new(program).arg("--version"))?;
    let version = said.lines().next().unwrap_or_default().trim().to_owned();
    scratch.make_bundle()?;
    let mut command = Command::new(program);
    command.arg("--root").arg(scratch.dir.join("state")).arg("run");
    command.arg("--bundle").arg(&scratch.dir).arg(&scratch.name);
    let said = scratch.run(&mut command)?;
    if said.contains(MISSING_PROGRAM) {
        return Ok(version);
    }
    let reason = said.lines().last().unwrap_or("it gave no reason").trim();
    Err(Fault::new(FaultKind::HostUnsupported, format!("{version} refuses this host: {reason}")))
}

/// A bundle and a state directory of the trial's own, gone with it.
struct Scratch {
    dir: PathBuf,
    name: String,
    hierarchy: Hierarchy,
    group: Group,
}

impl Scratch {
    fn new() -> Result<Scratch> {
        let hierarchy = Hierarchy::detect()?;
        let dir = nix::unistd::mkdtemp(&env::temp_dir().join("berth-check-XXXXXX"))
            .or_fault("making a directory for the trial")?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let group = Group::new(&hierarchy, &name, Uuid::new_v4());
        Ok(Scratch { dir, name, hierarchy, group })
    }

    fn make_bundle(&self) -> Result<()> {
        let namespaces =
            ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": [MISSING_PROGRAM],
                "env": [],
                "cwd": "/",
            },
            "root": { "path": "rootfs", "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": {
                "cgroupsPath": self.group.oci_path(),
                "namespaces": namespaces,
            },
        });
        // crun wants /dev too, before it looks for the program.
        ["proc", "sys", "dev"]
            .iter()
            .try_for_each(|name| fs::create_dir_all(self.dir.join("rootfs").join(name)))
            .and_then(|()| fs::write(self.dir.join("config.json"), spec.to_string()))
            .or_fault("writing the trial's bundle")
    }

    /// What a command says, on both outputs; bounded in time. The outputs are
    /// files, so that nothing it leaves behind can hold them open against us.
    fn run(&self, command: &mut Command) -> Result<String> {
        let output = self.dir.join("output");
        self.run_into(command, &output).and_then(|()| fs::read(&output)).map_or_else(
            |e| {
                let program = command.get_program().to_string_lossy().into_owned();
                Err(e).or_kind(FaultKind::HostUnsupported, format_args!("running {program}"))
            },
            |bytes| Ok(String::from_utf8_lossy(&bytes).into_owned()),
        )
    }

    fn run_into(&self, command: &mut Command, output: &Path) -> io::Result<()> {
        let file = File::create(output)?;
        let mut child =
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        let end = Instant::now() + ANSWER;
        while child.try_wait()?.is_none() {
            if Instant::now() > end {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it did not end in 10 seconds",
                ));
            }
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A runtime that refuses may have made its cgroup already, and one that
        // hangs may have put a process into it.
        let _ = self.group.kill_all(None);
        let _ = self.group.remove(&[]);
        let _ = self.hierarchy.remove_parent(&self.name);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn monitor(config: &Config) -> Check {
    let path = match config.instances.monitor.as_os_str().is_empty() {
        true => env::current_exe().unwrap_or_default().with_file_name("berth-monitor"),
        false => config.instances.monitor.clone(),
    };
    match find_program(&path.to_string_lossy()) {
        Some(path) => ok("monitor", path.display().to_string()),
        None => failed(
            "monitor",
            format!("no program {}", path.display()),
            "install berth-monitor beside berth, or set instances.monitor to it",
        ),
    }
}

fn filesystem_tools(config: &Config) -> Vec<Check> {
    match config.storage.filesystem.as_str() {
        "xfs" => vec![
            tool("mkfs.xfs", "apt install xfsprogs"),
            tool("xfs_growfs", "apt install xfsprogs"),
        ],
        _ => vec![
            tool("mkfs.ext4", "apt install e2fsprogs"),
            tool("resize2fs", "apt install e2fsprogs"),
        ],
    }
}

fn tool(name: &str, remedy: &str) -> Check {
    match find_program(name) {
        Some(path) => ok(name, path.display().to_string()),
        None => failed(name, "not found", remedy),
    }
}

/// lxcfs is a FUSE file system on its directory; a bare directory is a daemon that died.
fn lxcfs(path: &Path, mountinfo: &str) -> Check {
    const WITHOUT: &str = "until then instances see the host's /proc/meminfo and the like";
    if path.as_os_str().is_empty() {
        return ok("lxcfs", "off by instances.lxcfs = \"\"");
    }
    let mounted = mountinfo.lines().any(|line| {
        let Some((mount, source)) = line.split_once(" - ") else { return false };
        mount.split(' ').nth(4) == path.to_str() && source.starts_with("fuse")
    });
    let remedy = format!("apt install lxcfs; start it on {}; {WITHOUT}", path.display());
    if !mounted {
        return warning("lxcfs", format!("not mounted on {}", path.display()), remedy);
    }
    let asked = path.to_owned();
    match within(ANSWERS, move || ask(&asked)) {
        Some(Ok(_)) => ok("lxcfs", format!("mounted on {}", path.display())),
        Some(Err(e)) => warning("lxcfs", format!("does not answer: {e}"), remedy),
        None => warning("lxcfs", "does not answer: it hangs", remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::CheckStatus::{Failed, Ok as Fine, Warning};

    fn tried(name: &str, wanted: bool, outcome: Option<bool>) -> Tried {
        let outcome = outcome.map(|works| match works {
            true => Ok("1.0".to_owned()),
            false => Err(Fault::new(FaultKind::HostUnsupported, "refuses")),
        });
        Tried { name: name.into(), wanted, outcome }
    }

    #[test]
    fn one_working_runtime_is_enough() {
        let checks =
            judge(&[tried("crun", true, Some(false)), tried("runc", true, Some(true))], "auto");
        assert_eq!(checks.iter().map(|c| c.status).collect::<Vec<_>>(), [Warning, Fine]);
    }

    #[test]
    fn the_configured_runtime_must_work() {
        let checks =
            judge(&[tried("crun", true, Some(false)), tried("runc", false, Some(true))], "crun");
        assert_eq!(checks.iter().map(|c| c.status).collect::<Vec<_>>(), [Failed, Fine]);
        let checks = judge(&[tried("kata", true, None), tried("runc", false, Some(true))], "kata");
        assert_eq!(checks.last().unwrap().status, Failed);
        assert!(checks.last().unwrap().remedy.as_ref().unwrap().contains("runtime.program"));
        let checks = judge(&[tried("crun", true, None)], "auto");
        assert_eq!(checks[0].remedy.as_deref(), Some("apt install crun"));
    }

    #[test]
    fn known_escapes_are_told_of_a_program_that_may_be_used() {
        let tried = |wanted| Tried {
            name: "runc".into(),
            wanted,
            outcome: Some(Ok("runc version 1.1.5+ds1, /usr/sbin/runc".into())),
        };
        let checks = judge(&[tried(true)], "auto");
        assert_eq!(checks[0].status, Warning);
        assert!(checks[0].found.contains("CVE-2024-21626"), "{:?}", checks[0]);
        assert!(checks[0].remedy.as_ref().unwrap().contains("distribution"), "{:?}", checks[0]);
        assert_eq!(judge(&[tried(false)], "crun")[0].status, Fine);
        // Nor of one that comes after another that works.
        let native = self::tried(NAME, true, Some(true));
        assert_eq!(judge(&[native, tried(true)], "auto")[1].status, Fine);
    }

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("runtime");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_refusal_is_told_in_the_programs_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let refusing = script(
            dir.path(),
            "case $1 in --version) echo fake 1.2;; *) echo 'no hybrid here' >&2; exit 1;; esac",
        );
        let fault = runtime_trial(&refusing).unwrap_err();
        assert_eq!(fault.detail, "fake 1.2 refuses this host: no hybrid here");
        let fault = runtime_trial(&dir.path().join("absent")).unwrap_err();
        assert_eq!(fault.kind, FaultKind::HostUnsupported);
    }

    #[test]
    fn root_real_runtimes_answer_and_leave_nothing() {
        let mut answered = false;
        for name in ["runc", "crun"] {
            let Some(path) = find_program(name) else { continue };
            match runtime_trial(&path) {
                Ok(version) => {
                    assert!(version.starts_with(name), "{version}");
                    answered = true;
                }
                // Versions of crun refuse a hybrid host with controllers on version 2.
                Err(fault) => assert!(fault.detail.contains("cgroup"), "{fault}"),
            }
        }
        assert!(answered, "no runtime works here");
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(find_program("sh").unwrap().is_absolute());
        assert_eq!(find_program("/bin/sh"), Some("/bin/sh".into()));
        assert_eq!(find_program("no-such-program-here"), None);
        assert_eq!(find_program("/proc/uptime"), None);
        let mut config = Config::default();
        config.instances.monitor = "/absent/berth-monitor".into();
        assert_eq!(monitor(&config).status, Failed);
        config.instances.monitor = "/bin/sh".into();
        assert_eq!(monitor(&config).status, Fine);
    }

    #[test]
    fn lxcfs_must_be_mounted_and_answer() {
        let dir = tempfile::tempdir().unwrap();
        let line =
            |kind: &str| format!("9 1 0:9 / {} rw - {kind} lxcfs rw\n", dir.path().display());
        assert_eq!(lxcfs(Path::new(""), "").status, Fine);
        assert_eq!(lxcfs(dir.path(), "").status, Warning);
        assert_eq!(lxcfs(dir.path(), &line("ext4")).status, Warning);
        assert_eq!(lxcfs(dir.path(), &line("fuse.lxcfs")).status, Warning);
        fs::create_dir(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc/meminfo"), "1 1").unwrap();
        assert_eq!(lxcfs(dir.path(), &line("fuse.lxcfs")).status, Fine);
    }
}
