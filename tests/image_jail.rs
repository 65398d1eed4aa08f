//! The image store with its real jail: the `berth` program as the child. Runs as root.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use berth::config;
use berth::fault::{Fault, FaultKind};
use berth::image::ImageStore;
use berth::image::jail::{COMMAND, Input, Jail, Task, USER, Work};
use berth::image::recognise::DiskFormat;
use berth::image::unpack::{TreeKind, UnpackLimits};
use berth::store::layout::Layout;
use berth::store::room::Room;
use berth::sys::process::spawn_alone;
use berth::types::{Image, ImageImport, ImageSource};
use uuid::Uuid;

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

fn room(layout: &Layout) -> Arc<Room> {
    Room::open(layout, &config::Storage::default())
}

fn store(dir: &Path, config: &config::Images) -> ImageStore {
    let layout = Layout::new(dir.join("state"), dir.join("run"));
    ImageStore::open_with(&layout, config, room(&layout), Jail::Program(BERTH.into())).unwrap()
}

fn import(dir: &Path, store: &ImageStore, file: &str) -> berth::fault::Result<Image> {
    let source = ImageSource::File { path: dir.join(file) };
    let request =
        ImageImport { name: file.into(), source, hash: None, size: None, verification: None };
    store.import(Uuid::new_v4(), &request, &|_| {})
}

fn sh(dir: &Path, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(dir).status().unwrap();
    assert!(status.success(), "{script}");
}

#[test]
fn root_a_tree_with_everything_in_every_compression() {
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        "mkdir -p t/etc t/dev t/home/user && echo box >t/etc/hostname
         mknod t/dev/null c 1 3 && mkfifo t/pipe && ln -s ../etc/hostname t/home/link
         cp /bin/true t/ping && setcap cap_net_raw+ep t/ping && chown 1000:1000 t/home/user
         chmod 700 t/home/user && echo private >t/home/user/file && chmod 4755 t/etc/hostname
         ln t/etc/hostname t/hard && truncate -s 5M t/sparse && echo end >>t/sparse
         tar -C t --xattrs --xattrs-include='*' -cSf plain.tar .
         gzip -k plain.tar && xz -k -1 plain.tar && zstd -q plain.tar",
    );
    let store = store(dir.path(), &config::Images::default());
    let mut layers = Vec::new();
    for file in ["plain.tar", "plain.tar.gz", "plain.tar.xz", "plain.tar.zst"] {
        layers.extend(
            import(dir.path(), &store, file).unwrap_or_else(|f| panic!("{file}: {f}")).layers,
        );
    }
    layers.dedup();
    assert_eq!(layers.len(), 1);
    let root = store.layer_dir(&layers[0]);
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert!(stat("dev/null").file_type().is_char_device());
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!((stat("home/user").uid(), stat("home/user").mode() & 0o7777), (1000, 0o700));
    assert_eq!((stat("etc/hostname").mode() & 0o7777, stat("hard").nlink()), (0o4755, 2));
    assert!(stat("sparse").blocks() * 512 < 1 << 20);
    let capability = Command::new("getcap").arg(root.join("ping")).output().unwrap();
    assert!(String::from_utf8_lossy(&capability.stdout).contains("cap_net_raw"));
    sh(dir.path(), &format!("diff -r --no-dereference -x null -x pipe t {}", root.display()));
}

#[test]
fn root_an_opaque_directory_is_marked_though_the_jail_could_not() {
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        r#"mkdir -p t/etc/d && touch t/etc/d/.wh..wh..opq t/etc/.wh.gone && tar -C t -cf l.tar .
           printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["x"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
               $(sha256sum l.tar | cut -d' ' -f1) >c.json
           echo '[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]}]' >manifest.json
           tar -cf i.tar manifest.json c.json l.tar"#,
    );
    let store = store(dir.path(), &config::Images::default());
    let image = import(dir.path(), &store, "i.tar").unwrap();
    let root = store.layer_dir(&image.layers[0]);
    let mut value = [0; 4];
    let path = root.join("etc/d");
    assert_eq!(rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value[..]).unwrap(), 1);
    assert_eq!(fs::symlink_metadata(root.join("etc/gone")).unwrap().rdev(), 0);
}

#[test]
fn root_hostile_content_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        "mkdir -p t/etc && echo x >secret && tar -C t -cPf up.tar etc ../secret
         tar -C t -cf bomb.tar etc && truncate -s 200M zeros && tar -rf bomb.tar zeros
         zstd -q -1 bomb.tar && rm bomb.tar zeros
         tar -C t -czf cut.tar.gz etc && truncate -s -5 cut.tar.gz
         printf 'QFI\\373' >disk.qcow2",
    );
    let config = config::Images { max_unpacked_bytes: 64 << 20, ..config::Images::default() };
    let store = store(dir.path(), &config);
    for (file, kind, reason) in [
        ("up.tar", FaultKind::ImageUnacceptable, "'..'"),
        ("bomb.tar.zst", FaultKind::ImageUnacceptable, "max_unpacked_bytes"),
        ("cut.tar.gz", FaultKind::ImageCorrupt, "gzip"),
        ("disk.qcow2", FaultKind::ImageUnacceptable, "qcow2"),
    ] {
        let fault = import(dir.path(), &store, file).expect_err(file);
        assert_eq!(fault.kind, kind, "{file}: {fault}");
        assert!(fault.detail.contains(reason), "{file}: {fault}");
    }
    let images = dir.path().join("state/images");
    for below in ["tmp", "records", "layers/sha256"] {
        assert_eq!(fs::read_dir(images.join(below)).unwrap().count(), 0, "{below}");
    }
}

/// An xz stream may ask for a window of gigabytes; the child refuses or dies, the parent does not.
#[test]
fn root_a_greedy_stream_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        "mkdir -p t/etc && head -c 70000 /dev/urandom >t/etc/r && tar -C t -cf i.tar .
         xz -k --lzma2=dict=300MiB,mf=hc3,mode=fast i.tar",
    );
    let store = store(dir.path(), &config::Images::default());
    let fault = import(dir.path(), &store, "i.tar.xz").unwrap_err();
    assert!(fault.detail.contains("xz"), "{fault}");
}

/// What the kernel says about the child while it waits for input.
#[test]
fn root_the_child_has_given_up_its_privileges() {
    let dir = tempfile::tempdir().unwrap();
    let work = Work::Layer {
        kind: TreeKind::Layer,
        limits: UnpackLimits { entries: 10, bytes: 1 << 20, ids: 65_536 },
    };
    let task = Task { work, directory: dir.path().to_owned() };
    let mut command = Command::new(BERTH);
    command
        .args([OsString::from(COMMAND), serde_json::to_string(&task).unwrap().into()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = spawn_alone(&mut command).unwrap();
    let proc = format!("/proc/{}", child.id());
    let field = |name: &str| {
        let status = fs::read_to_string(format!("{proc}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.split_once(':').unwrap().1.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    // The last thing is the filter.
    while field("Seccomp") != ["2"] {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
    assert_eq!(field("NoNewPrivs"), ["1"]);
    assert_eq!(field("Uid"), ["65529", "65529", "65529", "0"]);
    assert_eq!(field("NSpid")[1..], ["1"]);
    assert_eq!(field("Groups"), [""; 0]);
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP.
    let caps = (1_u64 << 0) | (1 << 1) | (1 << 3) | (1 << 4) | (1 << 27) | (1 << 31);
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(u64::from_str_radix(&field(set)[0], 16).unwrap(), caps, "{set}");
    }
    for set in ["CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set)[0], 16).unwrap(), 0, "{set}");
    }
    for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
        let link = |process: &str| fs::read_link(format!("{process}/ns/{namespace}")).unwrap();
        assert_ne!(link(&proc), link("/proc/self"), "{namespace}");
    }
    let mounts = fs::read_to_string(format!("{proc}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    for option in ["nodev", "nosuid", "noexec"] {
        assert!(mounts.contains(option), "{mounts}");
    }
    let descriptors = fs::read_dir(format!("{proc}/fd")).unwrap();
    let outside: Vec<_> = descriptors
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .filter(|to| to.is_absolute() && to != Path::new("/") && to != Path::new("/dev/null"))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_child_that_is_no_jail_is_a_fault_not_a_hang() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), "mkdir -p t/etc && tar -C t -cf i.tar .");
    let layout = Layout::new(dir.path().join("state"), dir.path().join("run"));
    for program in ["/bin/true", "/bin/false", "/nonexistent"] {
        let helper = Jail::Program(program.into());
        let store =
            ImageStore::open_with(&layout, &config::Images::default(), room(&layout), helper)
                .unwrap();
        let fault = import(dir.path(), &store, "i.tar").unwrap_err();
        assert_eq!(fault.kind, FaultKind::Internal, "{program}: {fault}");
    }
}

#[test]
fn root_a_conversion_ends_once_it_may_not_go_on() {
    const DISK: u64 = 512 << 20;
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    sh(
        dir.path(),
        &format!(
            "yes | head -c {DISK} >raw && qemu-img convert -f raw -O vmdk raw image && chmod 444 image"
        ),
    );
    let path = |name: &str| dir.path().join(name);
    fs::File::create(path("disk")).unwrap();
    std::os::unix::fs::chown(path("disk"), Some(USER), Some(USER)).unwrap();
    fs::create_dir(path("jail")).unwrap();
    let work = Work::Convert {
        image: path("image"),
        format: DiskFormat::Vmdk,
        disk: path("disk"),
        limits: UnpackLimits { entries: u64::MAX, bytes: 2 * DISK, ids: 65_536 },
    };
    let input = Input::File(fs::File::open(path("image")).unwrap());
    let jail = Jail::Program(BERTH.into()).start(path("jail"), work, input).unwrap();
    // It has shown progress by then.
    let written = || fs::metadata(path("disk")).unwrap().blocks() * 512;
    let watch = || match written() {
        0 => Ok(()),
        _ => Err(Fault::new(FaultKind::ResourcesExhausted, "no more")),
    };
    assert_eq!(jail.finish_program(&watch).unwrap_err().kind, FaultKind::ResourcesExhausted);
    // Nobody writes any more.
    let left = written();
    assert!(left < DISK, "{left}");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(written(), left);
}
