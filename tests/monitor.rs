//! The monitor with real runtime programs: needs root, busybox (static), runc and crun.
//!
//! Every test runs under both programs. crun of Debian 12 refuses a hybrid
//! host while a controller sits on the unified hierarchy; a v1 hugetlb
//! hierarchy, mounted in a private place for as long as the tests run, takes
//! that controller away.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use berth::cgroup::plan::{CgroupPlan, Step};
use berth::console::{self, ConsoleFiles};
use berth::fault::{FaultKind, Result};
use berth::monitor::{
    ExitAction, ExitKind, ExitRecord, Message, Monitor, MonitorSpec, Phase, ViewSpec, launch,
};
use berth::rootfs::Rootfs;
use berth::runtime::chosen::Chosen;
use berth::runtime::cli::CliRuntime;
use berth::runtime::spec::{self, CgroupView, SpecInput};
use berth::runtime::terminals;
use berth::store::atomic;
use berth::store::layout::{InstanceLayout, Layout};
use berth::sys::ids::IdBlock;
use berth::sys::process::ProcessId;
use berth::sys::{mount, ns};
use berth::types::{ImageConfig, InitKind, ProcessUser};
use uuid::Uuid;

const CGROUPS: &str = "/sys/fs/cgroup";
const PATIENCE: Duration = Duration::from_secs(60);

/// A v1 hugetlb hierarchy where the host is hybrid and lacks one.
struct Hugetlb(PathBuf);

impl Hugetlb {
    fn shared() -> Option<Arc<Hugetlb>> {
        static SHARED: Mutex<Weak<Hugetlb>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        if let Some(held) = shared.upgrade() {
            return Some(held);
        }
        if !Path::new(CGROUPS).join("unified/cgroup.controllers").exists() {
            return None;
        }
        // runc takes the mount point's last name for the controller's.
        let dir =
            std::env::temp_dir().join(format!("berth-{}", std::process::id())).join("hugetlb");
        fs::create_dir_all(&dir).unwrap();
        run(Command::new("mount").args(["-t", "cgroup", "-o", "hugetlb", "hugetlb"]).arg(&dir));
        let held = Arc::new(Hugetlb(dir));
        *shared = Arc::downgrade(&held);
        Some(held)
    }
}

impl Drop for Hugetlb {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
        let _ = fs::remove_dir(self.0.parent().unwrap());
    }
}

/// What an instance of a test is made of.
struct Guest<'a> {
    image: ImageConfig,
    /// `/script`, run by the shell or, with an init, by that.
    script: &'a str,
    memory: Option<u64>,
    debian: bool,
    lxcfs: Vec<(PathBuf, PathBuf)>,
}

fn application(script: &str) -> Guest<'_> {
    let cmd = vec!["/bin/sh".into(), "/script".into()];
    Guest {
        image: ImageConfig { cmd, ..Default::default() },
        script,
        memory: None,
        debian: false,
        lxcfs: vec![],
    }
}

fn busybox_init(script: &str) -> Guest<'_> {
    let image = ImageConfig { init: Some(InitKind::Busybox), ..Default::default() };
    Guest { image, script, memory: None, debian: false, lxcfs: vec![] }
}

/// An instance in a directory of its own; gone when dropped.
struct Instance {
    runtime: &'static str,
    _dir: tempfile::TempDir,
    layout: InstanceLayout,
    spec: MonitorSpec,
    rootfs: Rootfs,
    parent: String,
    _hugetlb: Option<Arc<Hugetlb>>,
}

/// The monitor under test; `BERTH_TEST_MONITOR` names another build of it.
fn program() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_berth-monitor").into();
    std::env::var_os("BERTH_TEST_MONITOR").map_or(built, PathBuf::from)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Instance {
    fn new(runtime: &'static str, guest: &Guest<'_>) -> Instance {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let block = IdBlock { first: 2_000_027_648 + number * 65_536, size: 65_536 };
        let hugetlb = if runtime == "crun" { Hugetlb::shared() } else { None };
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let (state, run_dir) = (dir.path().join("state"), dir.path().join("run"));
        let id = Uuid::new_v4();
        let layout = Layout::new(&state, &run_dir).instance(id);
        let layer = dir.path().join("layer");
        for path in [layout.state(), &layout.bundle(), &layout.disk_mount(), &layer] {
            fs::create_dir_all(path).unwrap();
        }
        ns::create_pinned(block, &layout.user_ns(), &layout.net_ns()).unwrap();
        fill(&layer, guest);
        mount::make_shared_mount_point(&layout.disk_mount()).unwrap();
        let rootfs = Rootfs::new(vec![layer], block, layout.clone());
        rootfs.mount().unwrap();
        let parent = format!("berth-monitor-test-{}", std::process::id());
        let definition = serde_json::from_value(serde_json::json!({
            "name": "test", "image_id": Uuid::nil(),
            "flavor": {"vcpus": 1, "memory_mb": 512, "root_gb": 1},
        }))
        .unwrap();
        let specification = spec::build(&SpecInput {
            definition: &definition,
            image: &guest.image,
            user: &ProcessUser::default(),
            layout: &layout,
            block,
            hostname: "guest",
            cgroups_path: &format!("/{parent}/{id}"),
            cgroup_view: CgroupView::Unified,
            lxcfs: &guest.lxcfs,
            rescued: false,
            apparmor: None,
            disks: &[],
        })
        .unwrap();
        specification.save(layout.bundle().join("config.json")).unwrap();
        terminals::mount(&layout.terminals(), block).unwrap();
        let spec = MonitorSpec {
            device_cgroup: PathBuf::new(),
            lxcfs: PathBuf::new(),
            instance: id,
            state_dir: state,
            run_dir: run_dir.clone(),
            runtime: Chosen::Program(CliRuntime {
                program: run(Command::new("which").arg(runtime)).trim().into(),
                args: vec![],
                root: run_dir.join("runtime"),
            }),
            plan: plan(&parent, id, block, guest.memory),
            own_cgroups: vec![],
            join_cgroups: unified(&parent, id)
                .into_iter()
                .map(|p| p.join("cgroup.procs"))
                .collect(),
            oom_counters: memory_group(&parent, id)
                .into_iter()
                .flat_map(|dir| [dir.join("memory.oom_control"), dir.join("memory.events")])
                .collect(),
            console_log_bytes: 131_072,
            block,
            systemd_memory_mb: None,
            init: None,
            disks: Vec::new(),
            devices: Vec::new(),
            view: Some(ViewSpec { command_line: "init=test".into(), locked: true }),
        };
        Instance { runtime, _dir: dir, layout, spec, rootfs, parent, _hugetlb: hugetlb }
    }

    fn launch(&self) -> Result<Monitor> {
        launch(&self.spec, &program())
    }

    fn started(&self) -> Monitor {
        let monitor = self.launch().unwrap();
        let status = monitor.start().unwrap();
        assert_eq!(status.phase, Phase::Running);
        monitor
    }

    fn log(&self) -> String {
        let bytes = console::read(&ConsoleFiles::of(&self.layout), None).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn wait_log(&self, text: &str) -> String {
        eventually(&format!("{text:?} on the console of {}", self.runtime), || {
            let log = self.log();
            log.contains(text).then_some(log)
        })
    }

    fn exit(&self) -> Option<ExitRecord> {
        atomic::read_json(&self.layout.exit()).unwrap()
    }

    /// Waits until the monitor has ended and checks that it cleaned up.
    fn wait_end(&self, monitor: &Monitor) -> Option<ExitRecord> {
        let process = monitor.process();
        eventually("the monitor's end", || (!process.is_alive()).then_some(()));
        assert!(Monitor::connect(&self.layout.monitor_socket()).unwrap().is_none());
        assert!(!self.layout.monitor_socket().exists());
        let left = fs::read_dir(self.spec.run_dir.join("runtime")).unwrap().count();
        assert_eq!(left, 0, "{} still knows the container", self.runtime);
        self.exit()
    }

    /// The tests' cgroup in every hierarchy.
    fn parents(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir(CGROUPS).unwrap().map(|entry| entry.unwrap().path());
        let all = hierarchies.chain([CGROUPS.into()]);
        all.map(|dir| dir.join(&self.parent)).filter(|dir| dir.is_dir()).collect()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: console: {}", self.runtime, self.log());
            eprintln!("monitor.log: {:?}", fs::read_to_string(self.layout.monitor_log()));
        }
        if let Ok(Some(monitor)) = Monitor::connect(&self.layout.monitor_socket()) {
            let _ = monitor.quit();
        }
        if let Ok(pid) = fs::read_to_string(self.layout.init_pid())
            && let Some(init) = ProcessId::of(pid.trim().parse().unwrap())
            && fs::read_to_string(format!("/proc/{}/cgroup", init.pid))
                .is_ok_and(|text| text.contains(&self.parent))
        {
            let _ = init.signal(libc::SIGKILL);
            while init.is_alive() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for parent in self.parents() {
            remove_group(&parent.join(self.spec.instance.to_string()));
            // Another test may still use it.
            let _ = fs::remove_dir(parent);
        }
        let _ = self.rootfs.unmount();
        let _ = mount::unmount(&self.layout.disk_mount());
        let _ = mount::unmount(&self.layout.terminals());
        let _ = ns::unpin(&self.layout.user_ns());
        let _ = ns::unpin(&self.layout.net_ns());
    }
}

fn remove_group(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Where the unified hierarchy is.
fn unified(parent: &str, id: Uuid) -> Option<PathBuf> {
    let hybrid = Path::new(CGROUPS).join("unified");
    let root = if hybrid.join("cgroup.controllers").exists() { hybrid } else { return None };
    Some(root.join(parent).join(id.to_string()))
}

fn memory_group(parent: &str, id: Uuid) -> Option<PathBuf> {
    let v1 = Path::new(CGROUPS).join("memory");
    let root = if v1.exists() { v1 } else { CGROUPS.into() };
    Some(root.join(parent).join(id.to_string()))
}

/// A small cgroup plan: delegation and, if asked for, a memory limit.
fn plan(parent: &str, id: Uuid, block: IdBlock, memory: Option<u64>) -> CgroupPlan {
    let mut steps = Vec::new();
    let (uid, gid) = (block.first, block.first);
    if let Some(dir) = unified(parent, id) {
        steps.push(Step::MakeDir { path: dir.parent().unwrap().into(), owner: None });
        steps.push(Step::MakeDir { path: dir.clone(), owner: Some((uid, gid)) });
        for file in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            steps.push(Step::Chown { path: dir.join(file), uid, gid, optional: false });
        }
    }
    if let (Some(limit), Some(dir)) = (memory, memory_group(parent, id)) {
        steps.push(Step::MakeDir { path: dir.parent().unwrap().into(), owner: None });
        steps.push(Step::MakeDir { path: dir.clone(), owner: None });
        let path = dir.join("memory.limit_in_bytes");
        steps.push(Step::Write { path, value: limit.to_string(), optional: false });
    }
    CgroupPlan { steps }
}

/// A layer as the image store has it: owned by real ids.
fn fill(root: &Path, guest: &Guest<'_>) {
    if guest.debian {
        let tar = std::env::var("BERTH_TEST_DEBIAN").expect("BERTH_TEST_DEBIAN: a tar of Debian");
        run(Command::new("tar").args(["--exclude=./dev/*", "-xf", &tar, "-C"]).arg(root));
        return;
    }
    for dir in ["bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "run", "root"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in
        ["sh", "cat", "seq", "sleep", "stty", "reboot", "poweroff", "tail", "grep", "mount", "dd"]
    {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    symlink("../bin/busybox", root.join("sbin/init")).unwrap();
    fs::write(root.join("etc/inittab"), "::once:/bin/sh /script\n").unwrap();
    fs::write(root.join("script"), guest.script).unwrap();
}

fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads a console until it has shown a text.
fn read_until(stream: &mut UnixStream, text: &str) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("the console ended; it showed {seen:?}"),
            Ok(n) => seen.push_str(&String::from_utf8_lossy(&buffer[..n])),
            Err(e) => panic!("{e}; the console showed {seen:?}, not {text:?}"),
        }
    }
    seen
}

fn next_message(stream: &mut BufReader<UnixStream>) -> Option<Message> {
    stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
}

/// Each test under each runtime program.
macro_rules! under_both {
    ($($name:ident)*) => {
        mod runc { $(#[test] fn $name() { super::$name("runc") })* }
        mod crun { $(#[test] fn $name() { super::$name("crun") })* }
    };
}

under_both! {
    an_application_runs_and_its_exit_code_is_kept
    the_console_is_two_way_and_can_be_sized
    power_off_inside_ends_it
    reboot_inside_starts_it_again
    a_stop_is_the_end_even_if_the_guest_reboots
    a_soft_stop_and_a_soft_reboot_go_through_the_init
    a_killed_monitor_is_noticed_and_replaced
    much_output_and_a_client_that_does_not_read
    what_the_runtime_says_is_in_the_fault
    out_of_memory_is_told
    one_that_cannot_be_completed_leaves_nothing
    one_that_never_started_leaves_no_exit
    the_host_is_left_as_it_was
    applications_are_walled_in
    lxcfs_shows_the_instance
}

fn an_application_runs_and_its_exit_code_is_kept(runtime: &'static str) {
    let instance = Instance::new(runtime, &application("echo hello $container; exit 7"));
    let monitor = instance.launch().unwrap();
    let status = monitor.status().unwrap();
    assert_eq!(status.phase, Phase::Created);
    assert!(status.init.unwrap().is_alive());
    assert!(instance.exit().is_none());
    let (_, stream) = monitor.subscribe().unwrap();
    let mut messages = BufReader::new(stream);
    monitor.start().unwrap();
    assert_eq!(next_message(&mut messages), Some(Message::Started { init: status.init.unwrap() }));
    let exit = instance.wait_end(&monitor).unwrap();
    assert_eq!((exit.status.code, exit.status.signal), (Some(7), None));
    assert_eq!(exit.kind, ExitKind::Exited);
    assert!(!exit.status.oom_killed);
    assert_eq!(next_message(&mut messages), Some(Message::Exited { exit: Some(exit) }));
    assert_eq!(next_message(&mut messages), None);
    assert_eq!(instance.log(), "hello oci\r\n");
}

fn the_console_is_two_way_and_can_be_sized(runtime: &'static str) {
    let script = "echo ready; read x; echo got $x; stty size; read x; stty size; exec sleep 1000";
    let instance = Instance::new(runtime, &application(script));
    let monitor = instance.started();
    instance.wait_log("ready");
    let mut console = monitor.attach(0, 0).unwrap();
    let mut watcher = monitor.attach(0, 0).unwrap();
    console.write_all(b"ping\n").unwrap();
    assert!(read_until(&mut console, "24 80").contains("got ping"));
    monitor.resize(132, 43).unwrap();
    // The service dies and another takes over: it finds the monitor by its socket.
    drop(monitor);
    let monitor = Monitor::connect(&instance.layout.monitor_socket()).unwrap().unwrap();
    console.write_all(b"\n").unwrap();
    read_until(&mut console, "43 132");
    read_until(&mut watcher, "43 132");
    assert!(instance.log().contains("43 132"));
    drop(console);
    assert_eq!(monitor.status().unwrap().phase, Phase::Running);
    monitor.quit().unwrap();
    let exit = instance.wait_end(&monitor).unwrap();
    assert_eq!((exit.kind, exit.status.signal), (ExitKind::Killed, Some(libc::SIGKILL)));
    assert_eq!(watcher.read(&mut [0]).unwrap(), 0, "a console ends with its instance");
}

fn power_off_inside_ends_it(runtime: &'static str) {
    let instance = Instance::new(runtime, &busybox_init("echo up >/dev/console; poweroff"));
    let monitor = instance.started();
    let exit = instance.wait_end(&monitor).unwrap();
    assert_eq!(exit.kind, ExitKind::PowerOff);
    assert_eq!(exit.guest_reboots, 0);
    assert!(instance.log().contains("up"));
}

/// Reboots at the first boot only; the root file system remembers.
const REBOOTS_ONCE: &str =
    "echo boot >/dev/console; [ -e /again ] && exec sleep 1000; touch /again; exec reboot";

fn reboot_inside_starts_it_again(runtime: &'static str) {
    let script = REBOOTS_ONCE.replace("touch /again", "echo >/again");
    let instance = Instance::new(runtime, &busybox_init(&script));
    let monitor = instance.launch().unwrap();
    let mut console = monitor.attach(0, 0).unwrap();
    let (_, stream) = monitor.subscribe().unwrap();
    let mut messages = BufReader::new(stream);
    let first = monitor.start().unwrap().init.unwrap();
    assert_eq!(next_message(&mut messages), Some(Message::Started { init: first }));
    let Some(Message::Restarted { init, guest: true, guest_reboots: 1 }) =
        next_message(&mut messages)
    else {
        panic!("no restart was told");
    };
    assert!(init.is_alive() && !first.is_alive());
    let status = monitor.status().unwrap();
    assert_eq!((status.phase, status.guest_reboots), (Phase::Running, 1));
    assert_eq!(status.init, Some(init));
    // An attached console lives through a reboot.
    read_until(&mut console, "Requesting system reboot\r\nboot\r\n");
    assert!(instance.exit().is_none());
    eventually("two boots in the log", || {
        (instance.log().matches("boot\r\n").count() >= 2).then_some(())
    });
    monitor.quit().unwrap();
    assert_eq!(instance.wait_end(&monitor).unwrap().guest_reboots, 1);
}

fn a_stop_is_the_end_even_if_the_guest_reboots(runtime: &'static str) {
    let instance = Instance::new(runtime, &busybox_init("exec reboot"));
    let monitor = instance.launch().unwrap();
    monitor.on_exit(ExitAction::End).unwrap();
    monitor.start().unwrap();
    assert_eq!(instance.wait_end(&monitor).unwrap().kind, ExitKind::Reboot);
}

fn a_soft_stop_and_a_soft_reboot_go_through_the_init(runtime: &'static str) {
    let instance = Instance::new(runtime, &busybox_init("echo up >/dev/console"));
    let monitor = instance.started();
    instance.wait_log("up");
    let (_, stream) = monitor.subscribe().unwrap();
    let mut messages = BufReader::new(stream);
    monitor.on_exit(ExitAction::Restart).unwrap();
    monitor.signal(libc::SIGTERM).unwrap();
    let message = next_message(&mut messages);
    assert!(
        matches!(message, Some(Message::Restarted { guest: false, guest_reboots: 0, .. })),
        "{message:?}"
    );
    assert_eq!(monitor.status().unwrap().on_exit, ExitAction::Guest);
    eventually("a second boot", || (instance.log().matches("up\r\n").count() == 2).then_some(()));
    monitor.on_exit(ExitAction::End).unwrap();
    monitor.signal(libc::SIGUSR2).unwrap();
    assert_eq!(instance.wait_end(&monitor).unwrap().kind, ExitKind::PowerOff);
    assert!(monitor.signal(libc::SIGTERM).is_err());
}

fn a_killed_monitor_is_noticed_and_replaced(runtime: &'static str) {
    let instance = Instance::new(runtime, &application("trap '' HUP; echo up; exec sleep 1000"));
    let monitor = instance.started();
    instance.wait_log("up");
    let init = monitor.status().unwrap().init.unwrap();
    let (_, mut stream) = monitor.subscribe().unwrap();
    let watch = monitor.process().open().unwrap().unwrap();
    assert!(monitor.process().signal(libc::SIGKILL).unwrap());
    assert!(watch.wait(PATIENCE).unwrap());
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "the stream ends without a message");
    assert!(Monitor::connect(&instance.layout.monitor_socket()).unwrap().is_none());
    assert!(instance.exit().is_none(), "nobody knows how it ended");
    assert!(init.is_alive());
    // What a service does that finds an instance without a monitor.
    init.signal(libc::SIGKILL).unwrap();
    eventually("the end of the orphan", || (!init.is_alive()).then_some(()));
    let monitor = instance.started();
    eventually("a second start", || (instance.log().matches("up").count() == 2).then_some(()));
    monitor.quit().unwrap();
    instance.wait_end(&monitor).unwrap();
}

fn much_output_and_a_client_that_does_not_read(runtime: &'static str) {
    let instance = Instance::new(runtime, &application("read x; seq 1 300000; echo the end"));
    let monitor = instance.started();
    let mut console = monitor.attach(0, 0).unwrap();
    console.write_all(b"go\n").unwrap();
    // `console` is not read while two million bytes pass.
    let exit = instance.wait_end(&monitor).unwrap();
    assert_eq!(exit.status.code, Some(0));
    let log = instance.log();
    assert!(log.starts_with("go\r\n1\r\n2\r\n"), "{:?}", &log[..40]);
    assert!(log.contains(" bytes dropped \u{2026}]"));
    assert!(log.ends_with("299999\r\n300000\r\nthe end\r\n"));
    assert!(log.len() <= 131_072 + 64);
    let tail = console::read(&ConsoleFiles::of(&instance.layout), Some(9)).unwrap();
    assert_eq!(tail, b"the end\r\n");
}

fn what_the_runtime_says_is_in_the_fault(runtime: &'static str) {
    let mut guest = application("");
    guest.image.cmd = vec!["/no/such/program".into()];
    let instance = Instance::new(runtime, &guest);
    let fault = instance.launch().unwrap_err();
    assert_eq!(fault.kind, FaultKind::InstanceUnsupported);
    assert!(fault.detail.starts_with(&format!("{runtime} create: ")), "{fault}");
    assert!(fault.detail.contains("/no/such/program"), "{fault}");
    assert!(!instance.layout.monitor_socket().exists());
    assert_eq!(fs::read_dir(instance.spec.run_dir.join("runtime")).unwrap().count(), 0);
    assert!(instance.exit().is_none());
}

fn one_that_cannot_be_completed_leaves_nothing(runtime: &'static str) {
    let mut instance = Instance::new(runtime, &application("exec sleep 1000"));
    let mounts = || {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = instance.layout.state().parent().unwrap().parent().unwrap().to_owned();
        let mut points: Vec<_> = all
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| {
                Path::new(point).starts_with(&own)
                    || Path::new(point).starts_with(&instance.spec.run_dir)
            })
            .map(str::to_owned)
            .collect();
        points.sort();
        points
    };
    let before = mounts();
    let shown = instance.spec.view.as_ref().unwrap().locked;
    // More than the file system for what the view covers with holds: it is told after the
    // container was created.
    let view = ViewSpec { command_line: "x".repeat(16 << 20), locked: shown };
    let spec = MonitorSpec { view: Some(view), ..instance.spec.clone() };
    let fault = launch(&spec, &program()).unwrap_err();
    assert!(fault.detail.contains("No space left on device"), "{fault}");
    assert_eq!(mounts(), before);
    assert_eq!(fs::read_dir(instance.spec.run_dir.join("runtime")).unwrap().count(), 0);
    for socket in [instance.layout.monitor_socket(), instance.layout.console_socket()] {
        assert!(!socket.exists(), "{}", socket.display());
    }
    let id = instance.spec.instance.to_string();
    // The monitor answers before it ends.
    eventually("the end of all its processes", || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_its = |pid: &i32| {
            let text = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let has = |name| String::from_utf8_lossy(&text(name)).contains(&id);
            has("cgroup") || has("cmdline")
        };
        pids.filter(is_its).all(|pid| ProcessId::of(pid).is_none()).then_some(())
    });
    // What is in its way next time is nothing either.
    instance.spec.view = None;
    let monitor = instance.started();
    monitor.quit().unwrap();
    instance.wait_end(&monitor).unwrap();
}

fn out_of_memory_is_told(runtime: &'static str) {
    let mut guest = application("exec tail /dev/zero");
    guest.memory = Some(32 << 20);
    let instance = Instance::new(runtime, &guest);
    let monitor = instance.launch().unwrap();
    let limit = memory_group(&instance.parent, instance.spec.instance).unwrap();
    let limit = fs::read_to_string(limit.join("memory.limit_in_bytes")).unwrap();
    assert_eq!(limit.trim(), (32 << 20).to_string(), "{runtime} reset the limit");
    monitor.start().unwrap();
    let exit = instance.wait_end(&monitor).unwrap();
    assert_eq!(exit.status.signal, Some(libc::SIGKILL));
    assert!(exit.status.oom_killed);
}

fn one_that_never_started_leaves_no_exit(runtime: &'static str) {
    let instance = Instance::new(runtime, &application("exit 3"));
    let monitor = instance.launch().unwrap();
    let (_, stream) = monitor.subscribe().unwrap();
    monitor.quit().unwrap();
    assert_eq!(next_message(&mut BufReader::new(stream)), Some(Message::Exited { exit: None }));
    assert!(instance.wait_end(&monitor).is_none());
}

fn the_host_is_left_as_it_was(runtime: &'static str) {
    let script =
        "grep SigBlk /proc/self/status; cat /proc/self/oom_score_adj; umask; exec sleep 1000";
    let instance = Instance::new(runtime, &application(script));
    let monitor = instance.started();
    let log = instance.wait_log("0022");
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(log, format!("SigBlk:\t0000000000000000\r\n{}\r\n0022\r\n", own.trim()));
    for device in ["/dev/null", "/dev/zero", "/dev/tty", "/dev/full"] {
        let owner = fs::metadata(device).unwrap().uid();
        let own =
            instance.rootfs.block.first..instance.rootfs.block.first + instance.rootfs.block.size;
        assert!(!own.contains(&owner), "{runtime} gave away the host's {device}");
    }
    let mode = fs::metadata(instance.layout.monitor_socket()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let process = monitor.process();
    let fds = fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap().count();
    assert!(fds < 16, "the monitor holds {fds} descriptors");
    let session =
        run(Command::new("ps").args(["-o", "ppid=,sess=", "-p", &process.pid.to_string()]));
    let fields: Vec<&str> = session.split_whitespace().collect();
    assert_ne!(fields[0], std::process::id().to_string(), "it is nobody's child here");
    assert_eq!(fields[1], process.pid.to_string(), "it has a session of its own");
    monitor.quit().unwrap();
    instance.wait_end(&monitor).unwrap();
}

fn applications_are_walled_in(runtime: &'static str) {
    let script = "mount -t tmpfs x /tmp; echo mount $?
busybox unshare -U true; echo unshare $?
echo 1 >/proc/sysrq-trigger; echo sysrq $?
echo x >/proc/sys/kernel/core_pattern; echo core $?
dd if=/proc/kcore bs=1 count=1 2>/dev/null | busybox wc -c
busybox mknod /tmp/d b 8 0; echo mknod $?
echo 1 >/sys/fs/cgroup/memory/memory.limit_in_bytes; echo cgroup $?
echo done";
    let script = script.replace("busybox ", "/bin/busybox ");
    let instance = Instance::new(runtime, &application(&script));
    let monitor = instance.started();
    instance.wait_end(&monitor).unwrap();
    let log = instance.log();
    for wall in ["mount", "unshare", "sysrq", "core", "mknod", "cgroup"] {
        let line = log.lines().find(|l| l.starts_with(&format!("{wall} "))).unwrap();
        assert_ne!(line, format!("{wall} 0"), "{log}");
    }
    assert!(log.contains("\r\n0\r\nmknod") || log.lines().any(|l| l == "0"), "kcore: {log}");
    assert!(log.ends_with("done\r\n"));
}

/// An lxcfs of the test's own.
struct Lxcfs {
    child: std::process::Child,
    dir: tempfile::TempDir,
}

impl Lxcfs {
    fn start() -> Lxcfs {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        fs::create_dir(&mount).unwrap();
        let mut command = Command::new("lxcfs");
        command.arg("-f").arg("-p").arg(dir.path().join("pid")).arg(&mount);
        let child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        let lxcfs = Lxcfs { child, dir };
        eventually("lxcfs", || lxcfs.mount().join("proc/meminfo").exists().then_some(()));
        lxcfs
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mount")
    }
}

impl Drop for Lxcfs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = mount::unmount(&self.mount());
    }
}

fn lxcfs_shows_the_instance(runtime: &'static str) {
    let lxcfs = Lxcfs::start();
    let mut guest = application("grep MemTotal /proc/meminfo; cat /proc/uptime; echo done");
    guest.lxcfs = berth::runtime::lxcfs::files(&lxcfs.mount());
    assert!(guest.lxcfs.len() >= 7, "{:?}", guest.lxcfs);
    guest.memory = Some(64 << 20);
    let instance = Instance::new(runtime, &guest);
    let monitor = instance.started();
    instance.wait_end(&monitor).unwrap();
    let log = instance.log();
    assert!(log.contains("MemTotal:          65536 kB"), "{log}");
    drop(instance);
}

/// A stock Debian with systemd comes up without a failed unit, goes down when
/// asked to, and both are seen as what they are.
fn systemd_boots(runtime: &'static str) {
    let image = ImageConfig { init: Some(InitKind::Systemd), ..Default::default() };
    let guest =
        Guest { image: image.clone(), script: "", memory: None, debian: true, lxcfs: vec![] };
    let instance = Instance::new(runtime, &guest);
    let monitor = instance.started();
    let id = instance.spec.instance.to_string();
    let inside = |command: &[&str]| {
        let bundle = instance.layout.bundle().join("config.json");
        let bundle = oci_spec::runtime::Spec::load(bundle).unwrap();
        let mut process = bundle.process().clone().unwrap();
        process.set_args(Some(command.iter().map(ToString::to_string).collect()));
        process.set_terminal(Some(false));
        let exec = berth::runtime::Exec { process, cgroups: Vec::new() };
        let command = berth::runtime::Runtime::exec_command(&instance.spec.runtime, &id, &exec);
        let output = command.unwrap().output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let state = eventually("the end of the boot", || {
        let state = inside(&["systemctl", "is-system-running", "--wait"]);
        ["running", "degraded"].contains(&state.trim()).then_some(state)
    });
    assert_eq!(state.trim(), "running", "{}", inside(&["systemctl", "--failed", "--no-pager"]));
    let asking = berth::runtime::init::asking(
        berth::runtime::role::Role::System(InitKind::Systemd),
        &image,
        berth::runtime::init::Ask::PowerOff,
    )
    .unwrap();
    let (_, stream) = monitor.subscribe().unwrap();
    let mut messages = BufReader::new(stream);
    inside(&["systemctl", "--no-block", "reboot"]);
    let message = next_message(&mut messages);
    assert!(matches!(message, Some(Message::Restarted { guest: true, .. })), "{message:?}");
    eventually("the second boot", || {
        (inside(&["systemctl", "is-system-running"]).trim() == "running").then_some(())
    });
    monitor.on_exit(ExitAction::End).unwrap();
    monitor.signal(asking.signals[0]).unwrap();
    assert_eq!(instance.wait_end(&monitor).unwrap().kind, ExitKind::PowerOff);
}

#[test]
#[ignore = "needs BERTH_TEST_DEBIAN, a tar of a Debian with systemd and dbus"]
fn systemd_boots_under_runc() {
    systemd_boots("runc");
}

#[test]
#[ignore = "needs BERTH_TEST_DEBIAN, a tar of a Debian with systemd and dbus"]
fn systemd_boots_under_crun() {
    systemd_boots("crun");
}

/// Memory of a process in KiB: proportional set size, and what it shares with nobody.
fn memory_of(pid: i32) -> (u64, u64) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    (field("Pss:"), field("Private_Dirty:"))
}

/// What berth adds to each idle instance, beside the 670 KB that a lecture of
/// 2015 gave for a container's whole cost. Measure a release build
/// (`BERTH_TEST_MONITOR=target/release/berth-monitor`).
#[test]
#[ignore = "a measurement: fifty instances"]
fn fifty_idle_monitors_are_small() {
    let guests = application("exec sleep 1000");
    let instances: Vec<_> = (0..50).map(|_| Instance::new("runc", &guests)).collect();
    let mut launches = Vec::new();
    let monitors: Vec<_> = instances
        .iter()
        .map(|instance| {
            let begun = Instant::now();
            let monitor = instance.launch().unwrap();
            launches.push(begun.elapsed());
            monitor.start().unwrap();
            monitor
        })
        .collect();
    launches.sort();
    let memory: Vec<_> = monitors.iter().map(|m| memory_of(m.process().pid)).collect();
    let count = memory.len() as u64;
    let pss = memory.iter().map(|m| m.0).sum::<u64>() / count;
    let dirty = memory.iter().map(|m| m.1).sum::<u64>() / count;
    eprintln!("{count} monitors, each: {pss} KiB PSS, {dirty} KiB private and dirty");
    eprintln!("launch with create, median: {:?}", launches[launches.len() / 2]);
    for (instance, monitor) in instances.iter().zip(&monitors) {
        monitor.quit().unwrap();
        instance.wait_end(monitor).unwrap();
    }
    assert!(pss <= 670, "{pss} KiB");
}

#[test]
fn no_monitor_is_no_monitor() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    assert!(Monitor::connect(&socket).unwrap().is_none());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(Monitor::connect(&socket).unwrap().is_none(), "a stale socket is nobody");
    assert_eq!(UnixStream::connect(&socket).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
