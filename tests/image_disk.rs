//! Disk images through the real jail, made with the programs that everybody
//! makes them with. Runs as root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use berth::config::{self, KernelMounts};
use berth::image::ImageStore;
use berth::image::disk;
use berth::image::jail::Jail;
use berth::store::layout::Layout;
use berth::store::room::Room;
use berth::types::{Image, ImageFormat, ImageHash, ImageImport, ImageSource, ImageVerification};
use uuid::Uuid;

struct Store {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Store {
    fn new() -> Store {
        Store::with(config::Images::default())
    }

    fn with(config: config::Images) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("state"), dir.path().join("run"));
        let helper = Jail::Program(env!("CARGO_BIN_EXE_berth").into());
        let room = Room::open(&layout, &config::Storage::default());
        let store = ImageStore::open_with(&layout, &config, room, helper).unwrap();
        Store { dir, store }
    }

    fn import(&self, file: &str) -> berth::fault::Result<Image> {
        self.import_signed(file, false)
    }

    fn import_signed(&self, file: &str, verified: bool) -> berth::fault::Result<Image> {
        let source = ImageSource::File { path: self.dir.path().join(file) };
        let verification = verified.then(|| ImageVerification {
            certificate: "the-signer".into(),
            trusted_certificates: Vec::new(),
        });
        let content = std::fs::read(self.dir.path().join(file)).unwrap();
        let hash = openssl::sha::sha512(&content);
        let hash = ImageHash {
            algorithm: "sha512".into(),
            value: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let request =
            ImageImport { name: file.into(), source, hash: Some(hash), size: None, verification };
        self.store.import(Uuid::new_v4(), &request, &|_| {})
    }

    fn layer(&self, file: &str) -> PathBuf {
        let image = self.import(file).unwrap_or_else(|fault| panic!("{file}: {fault}"));
        assert_eq!(image.layers.len(), 1);
        self.store.layer_dir(&image.layers[0])
    }

    fn sh(&self, script: &str) {
        sh(self.dir.path(), script);
    }
}

fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}\n{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// All that is kept of a tree, as text.
fn everything(root: &Path) -> String {
    sh(
        root,
        "export LC_ALL=C
         find * -name lost+found -prune -o -type d -printf '%p %y %m %U %G %T@\\n' | sort
         find . ! -type d -printf '%P %y %m %U %G %T@ %s %n %l\\n' | sort
         find . -type f -exec sha256sum {} + | sort
         find . -name lost+found -prune -o -print | sort | python3 -c '
import os, sys
for path in sys.stdin.read().splitlines():
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        print(path, name, os.getxattr(path, name, follow_symlinks=False).hex())'
         find . -links +1 -type f -printf '%i %P\\n' | sort -k 2 | awk '!n[$1]{n[$1]=++i}{print n[$1],$2}'",
    )
}

const TREE: &str = "
    mkdir -p t/etc t/sbin t/many t/home/user t/a/b/c/d && echo box >t/etc/hostname
    printf '#!/bin/sh\\n' >t/sbin/init && chmod 755 t/sbin/init
    mkfifo t/pipe && ln -s ../etc/hostname t/home/link
    ln -s /$(printf 'long%.0s' $(seq 50)) t/home/long
    cp /bin/true t/ping && setcap cap_net_raw+ep t/ping
    chmod 4755 t/etc/hostname && ln t/etc/hostname t/a/b/hard && ln t/etc/hostname t/hard
    head -c 700000 /dev/urandom >t/random && : >t/empty && printf x >t/one
    for i in 1 3 5 7 9 11 13 15 17; do
        dd if=/dev/urandom of=t/sparse bs=64k count=1 seek=$i conv=notrunc status=none; done
    truncate -s 5M t/sparse && truncate -s 3M t/hole
    seq 700 | sed 's,^,t/many/a-rather-long-name-,' | xargs touch
    python3 -c '
import os, struct
def acl(*entries):
    return struct.pack(\"<I\", 2) + b\"\".join(struct.pack(\"<HHI\", *entry) for entry in entries)
none = 0xffffffff
os.setxattr(\"t/one\", \"user.colour\", b\"blue\")
os.setxattr(\"t/one\", \"user.long\", b\"v\" * 500)
os.setxattr(\"t/one\", \"system.posix_acl_access\", acl(
    (1, 6, none), (2, 6, 1000), (4, 4, none), (8, 4, 33), (16, 6, none), (32, 4, none)))
os.setxattr(\"t/home/user\", \"system.posix_acl_default\", acl(
    (1, 7, none), (2, 7, 1000), (4, 5, none), (16, 7, none), (32, 5, none)))'
    chown -h 1000:1000 t/home/user t/home/link && chown 65535:33 t/empty && chmod 1777 t/a
    find t -exec touch -h -d @1600000000 {} +";

#[test]
fn root_everything_is_kept_of_every_kind_of_ext() {
    let store = Store::new();
    store.sh(TREE);
    let tree = everything(&store.dir.path().join("t"));
    for (name, options) in [
        ("ext2-1k", "-t ext2 -b 1024"),
        ("ext3", "-t ext3"),
        ("ext4", "-t ext4"),
        ("ext4-1k", "-t ext4 -b 1024"),
        ("ext4-old", "-t ext4 -O ^64bit,^metadata_csum,^extent -I 128"),
        ("inline", "-t ext4 -O inline_data"),
        ("meta", "-t ext4 -O meta_bg,^resize_inode -b 1024 -g 1024"),
        ("bigalloc", "-t ext4 -O bigalloc"),
        ("ea", "-t ext4 -O ea_inode,large_dir"),
    ] {
        store.sh(&format!("mke2fs -q -F {options} -d t {name} 48M"));
        let layer = store.layer(name);
        let found = everything(&layer);
        // mke2fs cuts off the hole at this file's end when it may store data in inodes.
        let known = |line: &&str| name != "inline" || !line.contains("sparse");
        let of = |text: &str| text.lines().filter(known).collect::<Vec<_>>().join("\n");
        assert!(of(&found) == of(&tree), "{name}:\n{}", difference(&tree, &found));
        assert_eq!(sh(&layer, "stat -c %b hole").trim(), "0", "{name}: the hole is stored");
        store.sh(&format!("rm {name}"));
    }
}

fn difference(expected: &str, found: &str) -> String {
    let only = |a: &str, b: &str, sign: &str| -> String {
        let other: std::collections::HashSet<_> = b.lines().collect();
        let lines = a.lines().filter(|line| !other.contains(line)).take(10);
        lines.map(|line| format!("{sign} {}\n", &line[..line.len().min(200)])).collect()
    };
    only(expected, found, "-") + &only(found, expected, "+")
}

#[test]
fn root_the_same_disk_in_every_wrapping_has_the_same_files() {
    let store = Store::new();
    store.sh(TREE);
    store.sh("mke2fs -q -F -t ext4 -L root -d t bare 48M
         for how in '' '-c' '-c -o compression_type=zstd' '-o compat=0.10' '-c -o compat=0.10' \
            '-o cluster_size=512' '-c -o cluster_size=2M' '-o preallocation=metadata' '-o extended_l2=on'; do
            qemu-img convert -f raw -O qcow2 $how bare \"q$(echo \"$how\" | tr -c 'a-z0-9\\n' _)\"
         done
         gzip -k bare && zstd -q bare && xz -k -0 q_c");
    let wanted = everything(&store.layer("bare"));
    let files = sh(store.dir.path(), "ls -1 -d q* bare.*");
    assert_eq!(files.lines().count(), 12);
    for file in files.lines() {
        let image = store.import(file).unwrap_or_else(|fault| panic!("{file}: {fault}"));
        let found = everything(&store.store.layer_dir(&image.layers[0]));
        assert!(found == wanted, "{file}:\n{}", difference(&wanted, &found));
        let format = if file.starts_with('q') { ImageFormat::Qcow2 } else { ImageFormat::Raw };
        assert_eq!(image.format, format, "{file}");
    }
}

#[test]
fn subclusters_are_read_as_qemu_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    for options in ["cluster_size=16k", "cluster_size=64k", "cluster_size=2M,compression_type=zstd"]
    {
        // Parts of subclusters, pieces across them and across clusters, a compressed cluster of
        // which a part is written again, zeros over content, content that is discarded.
        sh(
            dir.path(),
            &format!(
                "qemu-img create -q -f qcow2 -o extended_l2=on,{options} image 9M
                 qemu-io -f qcow2 -c 'write -P 1 100 3000' -c 'write -P 2 15k 900k' \
                    -c 'write -c -P 3 2M 2M' -c 'write -P 4 2100k 700' -c 'write -z 20k 70k' \
                    -c 'write -P 5 30k 1' -c 'write -P 6 6M 2M' -c 'discard 6300k 111k' \
                    -c 'write -z 7M 512' -c 'write -P 7 9215k 1k' image >/dev/null
                 qemu-img convert -f qcow2 -O raw image raw"
            ),
        );
        let wanted = std::fs::read(dir.path().join("raw")).unwrap();
        let image = Rc::new(std::fs::read(dir.path().join("image")).unwrap());
        let disk = disk::open(image).unwrap();
        let mut found = vec![0; wanted.len()];
        assert_eq!(disk.size(), wanted.len() as u64);
        for size in [wanted.len(), 100_003] {
            found.fill(9);
            for (index, piece) in found.chunks_mut(size).enumerate() {
                disk.read_at((index * size) as u64, piece).unwrap();
            }
            assert!(found == wanted, "{options}");
        }
        let mut holes = 0;
        for at in (0..wanted.len()).step_by(512) {
            let hole = (disk.hole(at as u64) as usize).min(512);
            assert!(wanted[at..at + hole].iter().all(|byte| *byte == 0), "{options}: {at}");
            holes += hole;
        }
        assert!(holes > 3 << 20, "{options}: {holes}");
    }
}

#[test]
fn root_other_programs_disks_have_the_same_files() {
    let store = Store::new();
    store.sh(TREE);
    store.sh("mke2fs -q -F -t ext4 -d t bare 48M
         for how in vmdk 'vmdk -o subformat=streamOptimized' vpc vhdx vdi 'vdi -o static=on'; do
            qemu-img convert -f raw -O $how bare \"d-$(echo \"$how\" | tr -c 'a-z\\n' _)\"
         done");
    let wanted = everything(&store.layer("bare"));
    let files = sh(store.dir.path(), "ls -1 -d d-*");
    assert_eq!(files.lines().count(), 6);
    for file in files.lines() {
        let image = store.import(file).unwrap_or_else(|fault| panic!("{file}: {fault}"));
        let found = everything(&store.store.layer_dir(&image.layers[0]));
        assert!(found == wanted, "{file}:\n{}", difference(&wanted, &found));
        assert!(!matches!(image.format, ImageFormat::Raw | ImageFormat::Qcow2), "{file}");
    }
}

#[test]
fn root_what_cannot_be_read_says_why() {
    let store = Store::new();
    store.sh("mke2fs -q -F -t ext4 dirty 16M
         printf '\\106' | dd of=dirty bs=1 seek=1120 conv=notrunc status=none
         printf '\\0' | dd of=dirty bs=1 seek=1248 conv=notrunc status=none
         qemu-img create -q -f raw base 16M
         qemu-img create -q -f qcow2 -b base -F raw backed
         qemu-img create -q -f qcow2 -o data_file=base,data_file_raw=on external 16M
         mke2fs -q -F -t ext4 cut 16M && truncate -s 8M cut
         mkfs.xfs -q -d name=xfs,file=1,size=320m
         qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat base flat
         qemu-img convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse base split
         qemu-img convert -f raw -O vmdk base vmdk && cp vmdk hostile
         grep -abo '\"vmdk\"' hostile | cut -d: -f1 | {
             read at; printf '\"/e/s\"' | dd of=hostile bs=1 seek=$at conv=notrunc status=none; }
         mke2fs -q -F -t ext4 boot 8M
         behind() {
             truncate -s 32M $1
             printf 'label: gpt\\nstart=2048,size=16384\\nsize=16384,type=%s\\n' $2 | sfdisk -q $1
             dd if=boot of=$1 bs=1M seek=1 conv=notrunc status=none; }
         behind lvm E6D6D379-F507-44C2-A23C-238F2A3DF928
         behind raid A19D880F-05FC-4D3B-A006-743F0F84911E
         behind luks 0FC63DAF-8483-4772-8E79-3D69D8477DE4
         printf 'LUKS\\272\\276' | dd of=luks bs=1M seek=9 conv=notrunc status=none
         qemu-img convert -f raw -O vhdx base noise && cp noise child && cp noise torn
         printf '\\002' | dd of=child bs=1 seek=3211268 conv=notrunc status=none
         head -c 100000 /dev/urandom | dd of=noise bs=1k seek=64 conv=notrunc status=none
         head -c 300000 /dev/urandom | dd of=torn bs=1k seek=64 conv=notrunc status=none");
    for (file, says) in [
        ("dirty", "its journal cannot be replayed: it is on another device; run e2fsck"),
        ("backed", "has a backing file"),
        ("external", "external data file"),
        ("cut", "the image is cut off"),
        ("xfs", "an XFS file system"),
        ("lvm", "partition 2 is a physical volume of LVM"),
        ("raid", "partition 2 is a member of a RAID"),
        ("luks", "partition 2 is an encrypted volume"),
        ("flat", "are the host's"),
        ("split", "are the host's"),
        ("hostile", "its descriptor names a file of the host"),
        ("vmdk", "neither a partition table nor a file system"),
        ("noise", "converting the disk image: qemu-img"),
        ("torn", "its two tables of regions disagree"),
        ("child", "it has a parent, a file of the host"),
    ] {
        let fault = store.import(file).unwrap_err();
        assert_eq!(fault.kind, berth::fault::FaultKind::ImageUnacceptable, "{file}: {fault}");
        assert!(fault.detail.contains(says), "{file}: {fault}");
    }
}

#[test]
fn root_a_journal_is_replayed_as_e2fsck_does() {
    let store = Store::new();
    store.sh(TREE);
    for (name, options, mounted) in [
        ("ext3", "-t ext3 -b 1024 -J size=4", "data=ordered"),
        ("ext4", "-t ext4 -b 4096", "data=ordered"),
        ("wide", "-t ext4 -b 1024 -O 64bit,^metadata_csum", "data=journal"),
        ("sums", "-t ext4 -b 1024 -O ^64bit,metadata_csum", "data=journal"),
        ("commit", "-t ext4 -b 1024 -O ^metadata_csum", "data=journal,journal_checksum"),
    ] {
        // Directories are made, freed, and their blocks used for content that looks like a journal's.
        store.sh(&format!(
            "mke2fs -q -F {options} {name} 48M && mkdir -p m && unshare -m sh -ec '
                 mount -o loop,{mounted} {name} m; cp -a t/. m/; sync -f m
                 rm -r m/many; for i in 1 2 3 4 5 6 7 8; do printf \"\\300\\073\\071\\230%5000d\" $i >m/new$i; done
                 mv m/random m/etc/moved; : >m/one; sync -f m
                 xfs_io -x -c \"shutdown -f\" m; umount m'
             dumpe2fs -h {name} 2>/dev/null | grep -q needs_recovery
             cp {name} clean && e2fsck -fy clean >/dev/null 2>&1 || test $? -le 1
             ! dumpe2fs -h clean 2>/dev/null | grep -q needs_recovery"
        ));
        let (layer, clean) = (store.layer(name), store.layer("clean"));
        let (found, wanted) = (everything(&layer), everything(&clean));
        assert!(found == wanted, "{name}:\n{}", difference(&wanted, &found));
        assert!(found.contains("etc/moved") && found.contains("new8"), "{name}: {found}");
        store.sh(&format!("rm {name} clean"));
    }
}

fn kernel_mounts(kernel_mounts: KernelMounts) -> config::Images {
    config::Images { kernel_mounts, ..config::Images::default() }
}

/// Makes a file system of `t` by mounting it; `before_umount` is done at `m`.
fn filled(make: &str, name: &str, before_umount: &str) -> String {
    format!(
        "truncate -s 320M {name} && {make} {name} >/dev/null && mkdir -p m
         unshare -m sh -ec 'mount -o loop {name} m; cp -a t/. m/; {before_umount}; umount m'
         rmdir m"
    )
}

/// Puts a file system behind a master boot record, as `disk`.
fn wrap(name: &str) -> String {
    format!(
        "dd if={name} of=disk bs=1M seek=1 conv=sparse status=none && truncate -s %1M disk
         python3 -c '
import os, struct
sectors = os.path.getsize(\"disk\") // 512 - 2048
with open(\"disk\", \"r+b\") as disk:
    disk.write(bytes(446) + struct.pack(\"<8BII\", 0, 0, 0, 0, 0x83, 0, 0, 0, 2048, sectors)
               + bytes(48) + b\"U\\xaa\")'"
    )
}

#[test]
fn root_everything_is_kept_of_what_the_kernel_reads() {
    let store = Store::with(kernel_mounts(KernelMounts::All));
    store.sh(TREE);
    let tree = everything(&store.dir.path().join("t"));
    for (name, make) in [
        ("xfs", filled("mkfs.xfs -q", "xfs", ":")),
        // What is only in its log is replayed, into the import's own copy.
        ("torn", filled("mkfs.xfs -q", "torn", "sync -f m; xfs_io -x -c \"shutdown -f\" m")),
        ("btrfs", filled("mkfs.btrfs -q", "btrfs", ":")),
        ("fedora", {
            let inside = "btrfs subvolume create m/root; mv m/[!r]* m/random m/root/; mkdir m/home";
            filled("mkfs.btrfs -q", "fedora", inside)
        }),
        ("squashfs", "mksquashfs t squashfs -quiet -no-progress".into()),
        ("erofs", "mkfs.erofs erofs t 2>&1 >/dev/null".into()),
    ] {
        store.sh(&make);
        let layer = store.layer(name);
        let found = everything(&layer);
        // SquashFS has no access lists.
        let known = |line: &&str| name != "squashfs" || !line.contains("system.posix_acl");
        let of = |text: &str| text.lines().filter(known).collect::<Vec<_>>().join("\n");
        assert!(of(&found) == of(&tree), "{name}:\n{}", difference(&of(&tree), &found));
        assert_eq!(sh(&layer, "stat -c %b hole").trim(), "0", "{name}: the hole is stored");
        if name == "xfs" || name == "squashfs" {
            // The same out of a qcow2 and behind a partition table.
            store.sh(&format!("{} && qemu-img convert -f raw -O qcow2 disk wrapped", wrap(name)));
            let wrapped = everything(&store.layer("wrapped"));
            assert!(wrapped == found, "{name}:\n{}", difference(&found, &wrapped));
        }
        store.sh(&format!("rm -f {name} disk wrapped"));
    }
    let devices = sh(store.dir.path(), "losetup --raw -n -O BACK-FILE -a");
    let own = store.dir.path().display().to_string();
    assert!(!devices.contains(&own), "{devices}");
    assert_eq!(sh(store.dir.path(), "ls state/images/tmp"), "");
}

#[test]
fn root_the_kernel_reads_only_what_the_operator_allows() {
    for (allowed, verified, read) in [
        (KernelMounts::None, true, false),
        (KernelMounts::Signed, false, false),
        (KernelMounts::Signed, true, true),
        // Nothing says that a file is public.
        (KernelMounts::Public, true, false),
        (KernelMounts::All, false, true),
    ] {
        let store = Store::with(kernel_mounts(allowed));
        store.sh("mkdir -p t/sbin && install /dev/null t/sbin/init && mksquashfs t image -quiet -no-progress");
        let result = store.import_signed("image", verified);
        assert_eq!(result.is_ok(), read, "{allowed:?} {verified}");
        if let Err(fault) = result {
            assert_eq!(fault.kind, berth::fault::FaultKind::ImageUnacceptable);
            for word in ["SquashFS", "images.kernel_mounts", allowed.name(), "ext4"] {
                assert!(fault.detail.contains(word), "{word}: {fault}");
            }
        }
    }
}

#[test]
fn root_what_the_kernel_cannot_read_is_a_fault_and_leaves_nothing() {
    let store = Store::with(kernel_mounts(KernelMounts::All));
    store.sh("mkdir -p t/etc && head -c 300000 /dev/urandom >t/etc/file
         mksquashfs t broken -quiet -no-progress -noD && printf xxxxxxxx | dd of=broken bs=1 seek=64 conv=notrunc status=none
         mksquashfs t cut -quiet -no-progress -noD && truncate -s 100000 cut
         truncate -s 320M two && mkfs.btrfs -q two && printf '\\002' | dd of=two bs=1 seek=65672 conv=notrunc status=none
         truncate -s 320M xfs && mkfs.xfs -q xfs && printf 'xxxx' | dd of=xfs bs=1 seek=4 conv=notrunc status=none");
    for (file, says) in [
        ("broken", "SquashFS"),
        ("cut", "kernel"),
        ("two", "2 devices"),
        ("xfs", "does not mount an XFS file system"),
    ] {
        let fault = store.import(file).unwrap_err();
        assert_eq!(fault.kind, berth::fault::FaultKind::ImageUnacceptable, "{file}: {fault}");
        assert!(fault.detail.contains(says), "{file}: {fault}");
    }
    let left = sh(store.dir.path(), "ls state/images/tmp state/images/layers/sha256");
    assert!(!left.contains('-'), "{left}");
}
