//! Disk images through the real jail, made with the programs that everybody
//! makes them with. Runs as root.

use std::path::{Path, PathBuf};
use std::process::Command;

use berth::config;
use berth::image::ImageStore;
use berth::image::helper::Helper;
use berth::store::layout::Layout;
use berth::types::{Image, ImageFormat, ImageImport, ImageSource};
use uuid::Uuid;

struct Store {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Store {
    fn new() -> Store {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("state"), dir.path().join("run"));
        let helper = Helper::Program(env!("CARGO_BIN_EXE_berth").into());
        let store = ImageStore::open_with(&layout, &config::Images::default(), helper).unwrap();
        Store { dir, store }
    }

    fn import(&self, file: &str) -> berth::fault::Result<Image> {
        let source = ImageSource::File { path: self.dir.path().join(file) };
        let request = ImageImport { name: file.into(), source, hash: None, size: None };
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
fn root_the_same_disk_in_every_wrapping_is_the_same_layer() {
    let store = Store::new();
    store.sh(TREE);
    store.sh("mke2fs -q -F -t ext4 -L root -d t bare 48M
         for how in '' '-c' '-c -o compression_type=zstd' '-o compat=0.10' '-c -o compat=0.10' \
            '-o cluster_size=512' '-c -o cluster_size=2M' '-o preallocation=metadata'; do
            qemu-img convert -f raw -O qcow2 $how bare \"q$(echo \"$how\" | tr -c 'a-z0-9\\n' _)\"
         done
         gzip -k bare && zstd -q bare && xz -k -0 q_c");
    let layer = store.layer("bare");
    let files = sh(store.dir.path(), "ls -1 -d q* bare.*");
    assert_eq!(files.lines().count(), 11);
    for file in files.lines() {
        let image = store.import(file).unwrap_or_else(|fault| panic!("{file}: {fault}"));
        assert_eq!(store.store.layer_dir(&image.layers[0]), layer, "{file}");
        let format = if file.starts_with('q') { ImageFormat::Qcow2 } else { ImageFormat::Raw };
        assert_eq!(image.format, format, "{file}");
    }
}

#[test]
fn root_what_cannot_be_read_says_why() {
    let store = Store::new();
    store.sh("mke2fs -q -F -t ext4 dirty 16M
         printf '\\106' | dd of=dirty bs=1 seek=1120 conv=notrunc status=none
         qemu-img create -q -f raw base 16M
         qemu-img create -q -f qcow2 -b base -F raw backed
         qemu-img create -q -f qcow2 -o data_file=base,data_file_raw=on external 16M
         mke2fs -q -F -t ext4 cut 16M && truncate -s 8M cut
         mkfs.xfs -q -d name=xfs,file=1,size=320m
         qemu-img convert -f raw -O vmdk base vmdk && qemu-img convert -f raw -O vdi base vdi
         qemu-img convert -f raw -O vhdx base vhdx && qemu-img convert -f raw -O vpc base vhd");
    for (file, says) in [
        ("dirty", "run e2fsck"),
        ("backed", "has a backing file"),
        ("external", "external data file"),
        ("cut", "the image is cut off"),
        ("xfs", "an XFS file system"),
        ("vmdk", "qemu-img convert"),
        ("vdi", "qemu-img convert"),
        ("vhdx", "qemu-img convert"),
        ("vhd", "qemu-img convert"),
    ] {
        let fault = store.import(file).unwrap_err();
        assert_eq!(fault.kind, berth::fault::FaultKind::ImageUnacceptable, "{file}: {fault}");
        assert!(fault.detail.contains(says), "{file}: {fault}");
    }
}
