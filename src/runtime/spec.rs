//! An instance's definition and its image, as an OCI runtime specification.
//!
//! Pure: values in, a value out. Limits are not in it; the cgroup module
//! writes them, so that they are the same under every runtime. Nor are
//! `noNewPrivileges` (sudo inside must work; the user namespace bounds what it
//! can gain) and resource limits (raising them needs a right that a host may
//! not have).

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, User, UserBuilder,
};

use super::dev::{self, Extra};
use super::disks::Disk;
use super::role::Role;
use super::walls::Walls;
use super::{capabilities, lxcfs, seccomp};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::layout::InstanceLayout;
use crate::sys::ids::IdBlock;
use crate::types::{Definition, ImageConfig, InitKind, ProcessUser};

/// Search path of a process whose image gives none.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a rescued instance finds its own root file system.
pub const OWN_ROOT: &str = "/mnt/instance";

/// How the instance's own cgroup is shown at `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupView {
    /// The host has a unified hierarchy, with the controllers (v2) or without
    /// (hybrid). Init programs get just this one, theirs to divide: without
    /// controllers on a hybrid host, which systemd is content with.
    Unified,
    /// The host has v1 hierarchies only. Init programs get them all, of which
    /// `name=systemd` is theirs to divide.
    V1,
}

/// All that a specification is made of.
#[derive(Clone, Copy, Debug)]
pub struct SpecInput<'a> {
    /// The instance.
    pub definition: &'a Definition,
    /// How its image starts.
    pub image: &'a ImageConfig,
    /// Whom it starts as; an init always starts as root.
    pub user: &'a ProcessUser,
    /// Where it lies: root file system, pinned namespaces, terminals, ephemeral disk.
    pub layout: &'a InstanceLayout,
    /// Its ids.
    pub block: IdBlock,
    /// Its host name.
    pub hostname: &'a str,
    /// Its cgroup, absolute from every hierarchy's root: `/{parent}/{uuid}`.
    pub cgroups_path: &'a str,
    /// What it sees of it.
    pub cgroup_view: CgroupView,
    /// What lxcfs offers ([`super::lxcfs::files`]).
    pub lxcfs: &'a [(PathBuf, PathBuf)],
    /// Whether it boots a rescue image, and has its own root file system beside.
    pub rescued: bool,
    /// Its AppArmor profile.
    pub apparmor: Option<&'a str>,
    /// Its disks.
    pub disks: &'a [Disk],
}

/// The specification.
pub fn build(input: &SpecInput<'_>) -> Result<Spec> {
    let role = Role::of(input.image, input.definition.command.as_deref());
    let arguments = arguments(input, role)?;
    let walls = Walls::from_extra_specs(&input.definition.flavor.extra_specs)?;
    assemble(input, role, walls, arguments).or_fault("making the runtime specification")
}

fn assemble(
    input: &SpecInput<'_>,
    role: Role,
    walls: Walls,
    args: Vec<String>,
) -> Result<Spec, OciSpecError> {
    SpecBuilder::default()
        // What both runc 1.1 and crun 1.8 know.
        .version("1.0.2")
        .root(RootBuilder::default().path(input.layout.rootfs()).readonly(false).build()?)
        .hostname(input.hostname)
        .process(process(input, role, args)?)
        .mounts(mounts(input, role, &Extra::of(role, walls))?)
        .linux(linux(input, role, walls)?)
        .build()
}

fn process(input: &SpecInput<'_>, role: Role, args: Vec<String>) -> Result<Process, OciSpecError> {
    let cwd = match input.image.working_dir.as_str() {
        dir if role.is_system() || dir.is_empty() => "/",
        dir => dir,
    };
    let mut process = ProcessBuilder::default()
        .terminal(true)
        .user(user(input, role)?)
        .args(args)
        .env(environment(input, role))
        .cwd(cwd)
        .capabilities(capabilities::set(role)?)
        .no_new_privileges(false)
        .build()?;
    process.set_rlimits(None);
    process.set_apparmor_profile(input.apparmor.map(str::to_owned));
    Ok(process)
}

fn user(input: &SpecInput<'_>, role: Role) -> Result<User, OciSpecError> {
    let user = UserBuilder::default();
    if role.is_system() {
        return user.uid(0u32).gid(0u32).build();
    }
    let user = user.uid(input.user.uid).gid(input.user.gid);
    if input.user.additional_gids.is_empty() {
        return user.build();
    }
    user.additional_gids(input.user.additional_gids.clone()).build()
}

/// Entrypoint and command; an image without either boots its init.
fn arguments(input: &SpecInput<'_>, role: Role) -> Result<Vec<String>> {
    let command = input.definition.command.as_ref().unwrap_or(&input.image.cmd);
    let mut arguments: Vec<String> =
        input.image.entrypoint.iter().chain(command).cloned().collect();
    if arguments.is_empty() && role.is_system() {
        match input.image.inits.first() {
            Some(init) => arguments.extend(init.command.iter().cloned()),
            None => arguments.push("/sbin/init".into()),
        }
    }
    match role {
        Role::System(kind) => arguments.extend(super::init::arguments(kind)),
        Role::Application if !arguments.is_empty() => {}
        Role::Application => {
            let detail = "the image names no command and has no init; give the instance a command";
            let fault = Fault::new(FaultKind::ImageUnacceptable, detail);
            return Err(Fault { field: Some("command".into()), ..fault });
        }
    }
    Ok(arguments)
}

/// Later ones win: defaults, the image's, the request's.
fn environment(input: &SpecInput<'_>, role: Role) -> Vec<String> {
    let home = match input.user.home.as_str() {
        home if role.is_system() || home.is_empty() => "/root",
        home => home,
    };
    let home = if !role.is_system() && input.user.uid != 0 && input.user.home.is_empty() {
        "/"
    } else {
        home
    };
    let terminal = if role.is_system() { "linux" } else { "xterm" };
    let mut variables: Vec<(String, String)> = [
        ("PATH", PATH),
        ("HOME", home),
        ("TERM", terminal),
        // systemd and others look for this name to know where they are.
        ("container", "oci"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    let of_image = input.image.env.iter().filter_map(|variable| variable.split_once('='));
    let of_request = input.definition.environment.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    for (name, value) in of_image.chain(of_request) {
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1 = value.into(),
            None => variables.push((name.into(), value.into())),
        }
    }
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn mounts(input: &SpecInput<'_>, role: Role, extras: &[Extra]) -> Result<Vec<Mount>, OciSpecError> {
    let memory = input.definition.flavor.memory_mb;
    // Half of the flavor's memory, as half of a machine's is the kernel's own default.
    let shm = format!("size={}m", (memory / 2).max(1));
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        bind(&input.layout.dev(), Path::new("/dev"), &["bind", "nosuid", "noexec", "rw"])?,
        bind(
            &input.layout.terminals(),
            Path::new("/dev/pts"),
            &["bind", "nosuid", "noexec", "rw"],
        )?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "nodev", "mode=1777", &shm])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        cgroup_mount(input.cgroup_view, role)?,
    ];
    if extras.contains(&Extra::Uncovered) {
        for (path, kind) in [(dev::PROC, "proc"), (dev::SYS, "sysfs")] {
            let to = format!("/dev/{path}");
            mounts.push(mount(&to, kind, kind, &["nosuid", "noexec", "nodev"])?);
        }
    }
    if let Role::System(InitKind::Systemd | InitKind::Openrc | InitKind::Sysvinit) = role {
        // These mount it themselves otherwise, sized after the host's memory.
        let size = format!("size={}m", (memory / 5).max(4));
        mounts.push(mount("/run", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755", &size])?);
    }
    mounts.extend(lxcfs::mounts(input.lxcfs)?);
    if input.rescued {
        // As when it boots from it: a program run there by chroot(1) is no less than it was.
        let source = input.layout.own_rootfs();
        mounts.push(bind(&source, Path::new(OWN_ROOT), &["bind", "nodev", "rw"])?);
    }
    if input.definition.flavor.ephemeral_gb > 0 {
        let source = input.layout.ephemeral_mount();
        // At its usual place it would be in the way of the root file system.
        let place = if input.rescued { "/mnt/ephemeral" } else { "/mnt" };
        mounts.push(bind(&source, Path::new(place), &["bind", "nosuid", "nodev", "rw"])?);
    }
    Ok(mounts)
}

fn cgroup_mount(view: CgroupView, role: Role) -> Result<Mount, OciSpecError> {
    let (kind, access) = match (view, role) {
        // Mounted as itself, without the runtime's own idea of a hybrid host.
        (CgroupView::Unified, Role::System(_)) => ("cgroup2", "rw"),
        (CgroupView::V1, Role::System(_)) => ("cgroup", "rw"),
        // Programs look here for their limits, wherever the controllers are.
        (_, Role::Application) => ("cgroup", "ro"),
    };
    let options = ["nosuid", "noexec", "nodev", "relatime", access];
    mount("/sys/fs/cgroup", kind, "cgroup", &options)
}

fn mount(to: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(to)
        .typ(kind)
        .source(source)
        .options(strings(options))
        .build()
}

fn bind(source: &Path, destination: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(strings(options))
        .build()
}

fn linux(input: &SpecInput<'_>, role: Role, walls: Walls) -> Result<Linux, OciSpecError> {
    let devices = dev::rules(input.disks, &Extra::of(role, walls))?;
    let resources = LinuxResourcesBuilder::default().devices(devices).build()?;
    let mapping = vec![mapping(input.block)?];
    LinuxBuilder::default()
        .namespaces(namespaces(input.layout)?)
        // The joined namespace has its mapping; runtimes want it told all the same.
        .uid_mappings(mapping.clone())
        .gid_mappings(mapping)
        .cgroups_path(input.cgroups_path)
        .resources(resources)
        .seccomp(seccomp::profile(role, walls)?)
        .masked_paths(strings(&MASKED))
        .readonly_paths(strings(&READ_ONLY))
        .build()
}

fn mapping(block: IdBlock) -> Result<LinuxIdMapping, OciSpecError> {
    LinuxIdMappingBuilder::default()
        .container_id(0u32)
        .host_id(block.first)
        .size(block.size)
        .build()
}

fn namespaces(layout: &InstanceLayout) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let new = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ];
    let joined = [
        (LinuxNamespaceType::User, layout.user_ns()),
        (LinuxNamespaceType::Network, layout.net_ns()),
    ];
    let new = new.into_iter().map(|typ| LinuxNamespaceBuilder::default().typ(typ).build());
    let joined = joined
        .into_iter()
        .map(|(typ, path)| LinuxNamespaceBuilder::default().typ(typ).path(path).build());
    new.chain(joined).collect()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// What must not be seen: the kernel's memory, keys, timers and hardware.
/// [`super::hidden`] is what must not be seen of others.
pub(super) const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/kernel/debug",
];

/// What must not be written: the machine's, not the instance's. All other sysctls
/// are of its own namespaces, or the host's root's anyway.
const READ_ONLY: [&str; 2] = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::DeviceNumber;
    use crate::store::layout::Layout;
    use oci_spec::runtime::{Capability, LinuxDeviceType};
    use serde_json::{Value, json};

    fn definition(extra: Value) -> Definition {
        let mut body = json!({
            "name": "instance-00000001",
            "image_id": uuid::Uuid::nil(),
            "flavor": {"vcpus": 1, "memory_mb": 256, "root_gb": 1},
        });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(body).unwrap()
    }

    fn build_with(
        definition: &Definition,
        image: &ImageConfig,
        user: &ProcessUser,
        view: CgroupView,
        lxcfs: &[(PathBuf, PathBuf)],
    ) -> Result<Spec> {
        let layout = Layout::new("/var/lib/berth", "/run/berth").instance(uuid::Uuid::nil());
        build(&SpecInput {
            definition,
            image,
            user,
            layout: &layout,
            block: IdBlock { first: 655_360, size: 65_536 },
            hostname: "host",
            cgroups_path: "/berth/x",
            cgroup_view: view,
            lxcfs,
            rescued: false,
            apparmor: None,
            disks: &[],
        })
    }

    fn built(definition: &Definition, image: &ImageConfig) -> Spec {
        build_with(definition, image, &ProcessUser::default(), CgroupView::Unified, &[]).unwrap()
    }

    fn texts(items: &[&str]) -> Vec<String> {
        strings(items)
    }

    #[test]
    fn what_an_image_names_decides_the_role() {
        let systemd = Some(InitKind::Systemd);
        for (entrypoint, cmd, init, command, role) in [
            (&[][..], &[][..], systemd, None, Role::System(InitKind::Systemd)),
            (&[], &["bash"], systemd, None, Role::Application),
            (&[], &["/sbin/init"], systemd, None, Role::System(InitKind::Systemd)),
            (&[], &["/lib/systemd/systemd"], systemd, None, Role::System(InitKind::Systemd)),
            (&[], &["init"], systemd, None, Role::System(InitKind::Systemd)),
            (&[], &["/sbin/init"], Some(InitKind::Other), None, Role::System(InitKind::Other)),
            // Named so, and no init: none is in the image, or it is another one.
            (&[], &["/lib/systemd/systemd"], None, None, Role::Application),
            (&[], &["/sbin/init"], None, None, Role::Application),
            (&["/init"], &[], systemd, None, Role::Application),
            (&["/opt/app/init"], &[], systemd, None, Role::Application),
            (&["/usr/lib/systemd/systemd"], &[], Some(InitKind::Busybox), None, Role::Application),
            (&["/entry"], &["/sbin/init"], systemd, None, Role::Application),
            (&[], &[], systemd, Some(vec!["sleep".into()]), Role::Application),
            (
                &[],
                &["x"],
                systemd,
                Some(vec!["/sbin/init".into()]),
                Role::System(InitKind::Systemd),
            ),
            (&[], &[], None, None, Role::Application),
        ] {
            let image = ImageConfig {
                entrypoint: texts(entrypoint),
                cmd: texts(cmd),
                init,
                ..Default::default()
            };
            let command: Option<Vec<String>> = command;
            assert_eq!(Role::of(&image, command.as_deref()), role, "{image:?} {command:?}");
        }
    }

    #[test]
    fn command_replaces_cmd_and_entrypoint_stays() {
        let image = ImageConfig {
            entrypoint: texts(&["/entry", "-x"]),
            cmd: texts(&["default"]),
            ..Default::default()
        };
        let args = |extra| {
            let spec = built(&definition(extra), &image);
            spec.process().as_ref().unwrap().args().clone().unwrap()
        };
        assert_eq!(args(json!({})), ["/entry", "-x", "default"]);
        assert_eq!(args(json!({"command": ["a", "b"]})), ["/entry", "-x", "a", "b"]);
        let none = build_with(
            &definition(json!({})),
            &ImageConfig::default(),
            &ProcessUser::default(),
            CgroupView::Unified,
            &[],
        );
        let fault = none.unwrap_err();
        assert_eq!(fault.kind, FaultKind::ImageUnacceptable);
        assert_eq!(fault.field.as_deref(), Some("command"));
    }

    #[test]
    fn the_requests_environment_wins_over_the_images_over_the_default() {
        let image = ImageConfig {
            cmd: texts(&["x"]),
            env: texts(&["PATH=/image", "A=image", "B=has=equals"]),
            ..Default::default()
        };
        let spec = built(&definition(json!({"environment": {"A": "request", "C": ""}})), &image);
        let env = spec.process().as_ref().unwrap().env().clone().unwrap();
        for expected in
            ["PATH=/image", "A=request", "B=has=equals", "C=", "TERM=xterm", "container=oci"]
        {
            assert_eq!(env.iter().filter(|v| *v == expected).count(), 1, "{expected} in {env:?}");
        }
    }

    #[test]
    fn an_application_runs_as_its_user_an_init_as_root() {
        let user =
            ProcessUser { uid: 33, gid: 34, additional_gids: vec![4], home: "/var/www".into() };
        let image =
            ImageConfig { cmd: texts(&["x"]), working_dir: "/srv".into(), ..Default::default() };
        let definition = definition(json!({}));
        let spec = build_with(&definition, &image, &user, CgroupView::Unified, &[]).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[4][..]));
        assert_eq!(process.cwd(), Path::new("/srv"));
        assert!(process.env().as_ref().unwrap().contains(&"HOME=/var/www".to_string()));
        let image = ImageConfig { init: Some(InitKind::Systemd), ..image };
        let image = ImageConfig { cmd: vec![], ..image };
        let spec = build_with(&definition, &image, &user, CgroupView::Unified, &[]).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.cwd().as_path()), (0, Path::new("/")));
        let (first, masks) = process.args().as_ref().unwrap().split_first().unwrap();
        assert_eq!(first, "/sbin/init");
        assert!(masks.contains(&"systemd.mask=grub-common.service".to_owned()));
        assert!(process.env().as_ref().unwrap().contains(&"HOME=/root".to_string()));
    }

    #[test]
    fn the_cgroup_mount_suits_role_and_host() {
        let app = ImageConfig { cmd: texts(&["x"]), ..Default::default() };
        let system = ImageConfig { init: Some(InitKind::Systemd), ..Default::default() };
        for (image, view, kind, access) in [
            (&app, CgroupView::Unified, "cgroup", "ro"),
            (&app, CgroupView::V1, "cgroup", "ro"),
            (&system, CgroupView::Unified, "cgroup2", "rw"),
            (&system, CgroupView::V1, "cgroup", "rw"),
        ] {
            let definition = definition(json!({}));
            let spec = build_with(&definition, image, &ProcessUser::default(), view, &[]).unwrap();
            let mounts = spec.mounts().as_ref().unwrap();
            let cgroup = mounts.iter().find(|m| m.destination().ends_with("cgroup")).unwrap();
            assert_eq!(cgroup.typ().as_deref(), Some(kind), "{view:?}");
            assert!(cgroup.options().as_ref().unwrap().iter().any(|o| o == access), "{view:?}");
        }
    }

    #[test]
    fn lxcfs_and_the_ephemeral_disk_are_bound_after_what_they_cover() {
        let image = ImageConfig { cmd: texts(&["x"]), ..Default::default() };
        let lxcfs = [("/lx/proc/meminfo".into(), PathBuf::from("/proc/meminfo"))];
        let flavor = json!({"flavor": {"vcpus":1,"memory_mb":256,"root_gb":1,"ephemeral_gb":2}});
        let definition = definition(flavor);
        let user = ProcessUser::default();
        let spec = build_with(&definition, &image, &user, CgroupView::Unified, &lxcfs).unwrap();
        let to: Vec<_> =
            spec.mounts().as_ref().unwrap().iter().map(|m| m.destination().clone()).collect();
        let place = |path: &str| to.iter().position(|p| p == Path::new(path)).unwrap();
        assert!(place("/proc") < place("/proc/meminfo"));
        let shm = &spec.mounts().as_ref().unwrap()[place("/dev/shm")];
        assert!(shm.options().as_ref().unwrap().contains(&"size=128m".to_string()));
        let ephemeral = &spec.mounts().as_ref().unwrap()[place("/mnt")];
        assert!(ephemeral.source().as_ref().unwrap().ends_with("ephemeral"));
    }

    #[test]
    fn a_rescued_instance_has_its_own_root_and_ephemeral_disk_beside() {
        let flavor = json!({"flavor": {"vcpus":1,"memory_mb":256,"root_gb":1,"ephemeral_gb":2}});
        let definition = definition(flavor);
        let image = ImageConfig { cmd: texts(&["x"]), ..Default::default() };
        let layout = Layout::new("/var/lib/berth", "/run/berth").instance(uuid::Uuid::nil());
        let device = DeviceNumber { major: 7, minor: 3 };
        let disks = [Disk { name: "vda".into(), device, serial: "root".into(), volume: None }];
        let input = SpecInput {
            definition: &definition,
            image: &image,
            user: &ProcessUser::default(),
            layout: &layout,
            block: IdBlock { first: 655_360, size: 65_536 },
            hostname: "host",
            cgroups_path: "/berth/x",
            cgroup_view: CgroupView::Unified,
            lxcfs: &[],
            rescued: true,
            apparmor: Some("berth-application"),
            disks: &disks,
        };
        let rescued = build(&input).unwrap();
        let ordinary = build(&SpecInput { rescued: false, ..input }).unwrap();
        let mounts = |spec: &Spec| -> Vec<(PathBuf, PathBuf)> {
            let mounts = spec.mounts().as_ref().unwrap().iter();
            let bound = mounts.filter(|m| m.typ().as_deref() == Some("bind"));
            bound.map(|m| (m.source().clone().unwrap(), m.destination().clone())).collect()
        };
        let (terminals, ephemeral) = (layout.terminals(), layout.ephemeral_mount());
        let pts = (terminals, PathBuf::from("/dev/pts"));
        let dev = (layout.dev(), PathBuf::from("/dev"));
        assert_eq!(
            mounts(&ordinary),
            [dev.clone(), pts.clone(), (ephemeral.clone(), "/mnt".into())]
        );
        assert_eq!(
            mounts(&rescued),
            [
                dev,
                pts,
                (layout.own_rootfs(), OWN_ROOT.into()),
                (ephemeral, "/mnt/ephemeral".into())
            ]
        );
        // Nothing else is different: the walls are those of every instance.
        assert_eq!(rescued.linux(), ordinary.linux());
        assert_eq!(rescued.process(), ordinary.process());
        let process = ordinary.process().as_ref().unwrap();
        assert_eq!(process.apparmor_profile().as_deref(), Some("berth-application"));
        assert_eq!(rescued.root(), ordinary.root());
        // The last rule: who wrote to a mounted disk's blocks would attack the host's kernel.
        let devices = ordinary.linux().as_ref().unwrap().resources().as_ref().unwrap().devices();
        let disk = devices.as_ref().unwrap().last().unwrap();
        assert_eq!(
            (disk.typ(), disk.major(), disk.minor()),
            (Some(LinuxDeviceType::B), Some(7), Some(3))
        );
        assert!(disk.allow() && disk.access().as_deref() == Some("r"));
    }

    #[test]
    fn walls() {
        let spec = built(
            &definition(json!({})),
            &ImageConfig { cmd: texts(&["x"]), ..Default::default() },
        );
        let linux = spec.linux().as_ref().unwrap();
        let namespaces = linux.namespaces().as_ref().unwrap();
        assert_eq!(namespaces.len(), 7);
        for namespace in namespaces {
            let joined =
                matches!(namespace.typ(), LinuxNamespaceType::User | LinuxNamespaceType::Network);
            assert_eq!(namespace.path().is_some(), joined, "{:?}", namespace.typ());
        }
        let resources = linux.resources().as_ref().unwrap();
        assert!(resources.memory().is_none() && resources.pids().is_none());
        let devices = resources.devices().as_ref().unwrap();
        assert!(!devices[0].allow() && devices[0].typ().is_none());
        assert!(devices[1..].iter().all(|d| d.typ() == Some(LinuxDeviceType::C)));
        assert!(!linux.readonly_paths().as_ref().unwrap().is_empty());
        assert!(linux.seccomp().is_some());
        let process = spec.process().as_ref().unwrap();
        assert!(process.rlimits().is_none());
        let bounding = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert!(!bounding.contains(&Capability::SysAdmin));
    }
}
