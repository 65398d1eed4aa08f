//! Tests of what archives are taken for, and of what is in them.

use super::*;

/// The same archive is one tree as a layer and another as a root file system.
#[test]
fn root_a_name_that_deletes_in_a_layer_is_a_file_in_a_root_file_system() {
    let store = Store::new();
    let archive = Archive::new().file("etc/.wh.x", b"data").file("etc/y", b"").bytes();
    let layer = store.import(&docker(&[&archive])).unwrap().layers;
    let root = store.import(&archive).unwrap().layers;
    assert_eq!(layer, [sha256(&archive)]);
    assert_ne!(layer, root);
    let content = |layer: &str, name: &str| fs::read(store.store.layer_dir(layer).join(name));
    assert_eq!(content(&root[0], "etc/.wh.x").unwrap(), b"data");
    assert!(content(&layer[0], "etc/.wh.x").is_err());
    // Where both are the same, they are shared.
    let plain = Archive::new().file("etc/y", b"").bytes();
    let both = [docker(&[&plain]), plain.clone()].map(|image| store.import(&image).unwrap().layers);
    assert_eq!(both[0], both[1]);
    assert_eq!(both[0], [sha256(&plain)]);
}

#[test]
fn root_a_root_below_rootfs_is_found_wherever_it_lies() {
    let store = Store::new();
    let links = (0..300).fold(Archive::new().file("metadata.yaml", &[b'#'; 2 << 20]), |a, n| {
        a.symlink(&format!("rootfs/x{n}"), "../../../out")
    });
    let archive = links.dir("rootfs/etc").file("rootfs/etc/hostname", b"box").bytes();
    let image = store.import(&archive).unwrap();
    assert_eq!(image.format, ImageFormat::RootfsTar);
    let root = store.store.layer_dir(&image.layers[0]);
    assert_eq!(fs::read_to_string(root.join("etc/hostname")).unwrap(), "box");
    assert!(!root.join("metadata.yaml").exists());
}

/// Archives around one disk: OVA, and what clouds take as `disk.raw`.
#[test]
fn root_the_one_disk_of_an_archive_is_taken() {
    let store = Store::new();
    let dir = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let mut command = std::process::Command::new("sh");
        assert!(command.args(["-ec", script]).current_dir(dir.path()).status().unwrap().success());
    };
    run("mkdir -p t/etc t/diff t/sbin && install /dev/null t/sbin/init && echo disk >t/etc/hostname && echo x >t/etc/.wh.x
         mknod t/diff/gone c 0 0 && mknod t/diff/null c 1 3");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(dir.path().join("t/diff"), "trusted.overlay.opaque", b"y", flags).unwrap();
    run("truncate -s 8M disk.raw && mke2fs -q -t ext4 -d t disk.raw
         tar --format=oldgnu -Scf sparse.tar disk.raw && tar -cf whole.tar ./disk.raw
         cp disk.raw other.raw && tar -cf two.tar disk.raw other.raw && gzip -k whole.tar");
    let mut layers = Vec::new();
    for name in ["sparse.tar", "whole.tar", "whole.tar.gz"] {
        let image = store.import(&fs::read(dir.path().join(name)).unwrap()).unwrap();
        assert_eq!(image.format, ImageFormat::Raw, "{name}");
        let root = store.store.layer_dir(&image.layers[0]);
        assert_eq!(fs::read_to_string(root.join("etc/hostname")).unwrap(), "disk\n");
        assert_eq!(fs::read_to_string(root.join("etc/.wh.x")).unwrap(), "x\n");
        assert!(fs::symlink_metadata(root.join("diff/gone")).unwrap().is_file());
        assert!(!root.join("diff/null").exists());
        let mut value = [0; 8];
        let name = "trusted.overlay.overlay.opaque";
        let length = rustix::fs::getxattr(root.join("diff"), name, &mut value).unwrap();
        assert_eq!(&value[..length], b"y");
        layers.extend(image.layers);
    }
    assert_eq!(layers.len(), 3);
    let two = store.import(&fs::read(dir.path().join("two.tar")).unwrap()).unwrap_err();
    assert!(two.detail.contains("2 disk images (disk.raw, other.raw)"), "{two}");
}

#[test]
fn programs_for_another_machine_are_refused() {
    let mut program = b"\x7fELF\x02\x02\x01".to_vec();
    program.resize(64, 0);
    program[19] = 22;
    let store = Store::new();
    let content = Archive::new().dir("etc").file("bin/sh", &program).bytes();
    for content in [docker(&[&content]), content] {
        let fault = store.import(&content).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ImageUnacceptable);
        assert!(fault.detail.contains("/bin/sh is a program for s390x"), "{fault}");
        assert!(store.is_empty());
    }
}
