//! Tests of the store, from whole images to crashes. The jail is a thread here,
//! since the test program is not berth; `tests/image_jail.rs` has the real one.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use super::super::digest::{Algorithm, Digest};
use super::super::recognise::host_architecture;
use super::super::testing::Archive;
use super::*;
use crate::types::{ImageFormat, ImageHash, ImageSource, ImageVerification, InitKind};

struct Store {
    dir: tempfile::TempDir,
    config: config::Images,
    store: ImageStore,
}

impl Store {
    fn new() -> Store {
        Store::with(config::Images::default())
    }

    fn with(config: config::Images) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, &config).unwrap();
        Store { dir, config, store }
    }

    fn reopen(self) -> Store {
        let Store { dir, config, store } = self;
        drop(store);
        let store = open(&dir, &config).unwrap();
        Store { dir, config, store }
    }

    fn request(&self, content: &[u8]) -> ImageImport {
        let path = self.dir.path().join(Uuid::new_v4().to_string());
        fs::write(&path, content).unwrap();
        ImageImport {
            name: "test".into(),
            source: ImageSource::File { path },
            hash: None,
            size: None,
            verification: None,
        }
    }

    fn import(&self, content: &[u8]) -> Result<Image> {
        self.store.import(Uuid::new_v4(), &self.request(content), &|_| {})
    }

    fn layers(&self) -> usize {
        fs::read_dir(self.store.layout.image_layers()).unwrap().count()
    }

    /// Nothing of an import is left: no layer, no record, no temporary file.
    fn is_empty(&self) -> bool {
        let count = |path: PathBuf| fs::read_dir(path).unwrap().count();
        self.layers() == 0
            && count(self.store.layout.image_records()) == 0
            && count(self.store.layout.images_temporary()) == 0
    }
}

fn open(dir: &tempfile::TempDir, config: &config::Images) -> Result<ImageStore> {
    let layout = Layout::new(dir.path().join("state"), dir.path().join("run"));
    let room = Room::open(&layout, &config::Storage::default());
    ImageStore::open_with(&layout, config, room, Jail::Thread)
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).unwrap().to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).unwrap()
}

fn rootfs() -> Vec<u8> {
    Archive::new().dir("etc").file("etc/hostname", b"box\n").bytes()
}

fn config_of(diff_ids: &[String], architecture: &str) -> Vec<u8> {
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Cmd": ["/bin/app"], "Env": ["PATH=/bin"], "StopSignal": "SIGQUIT"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    serde_json::to_vec(&config).unwrap()
}

/// An image as older `docker save` writes it.
fn docker(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| sha256(layer)).collect();
    let config = config_of(&diff_ids, host_architecture());
    let name = format!("{}.json", sha256(&config).trim_start_matches("sha256:"));
    let names: Vec<_> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": name, "RepoTags": ["x:1"], "Layers": names}]);
    let mut archive = Archive::new();
    for (name, layer) in names.iter().zip(layers) {
        archive = archive.file(name, layer);
    }
    archive
        .file(&name, &config)
        .file("manifest.json", &serde_json::to_vec(&manifest).unwrap())
        .bytes()
}

/// A layer's plain archive, and how it is packed.
type Packed<'a> = (&'a [u8], fn(&[u8]) -> Vec<u8>);

/// An OCI layout; with `docker_too`, as newer `docker save` writes it.
fn oci(layers: &[Packed<'_>], docker_too: bool) -> Vec<u8> {
    let blob = |digest: &str| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    let mut archive = Archive::new().dir("blobs").dir("blobs/sha256");
    let mut put = |bytes: &[u8], kind: &str| {
        let digest = sha256(bytes);
        archive = archive.clone().long_name(&blob(&digest)).file("x", bytes);
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let diff_ids: Vec<_> = layers.iter().map(|(layer, _)| sha256(layer)).collect();
    let config =
        put(&config_of(&diff_ids, host_architecture()), "application/vnd.oci.image.config.v1+json");
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(layer, pack)| put(&pack(layer), "application/vnd.oci.image.layer.v1.tar"))
        .collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": descriptors});
    let manifest =
        put(&serde_json::to_vec(&manifest).unwrap(), "application/vnd.oci.image.manifest.v1+json");
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    let mut archive = archive.file("index.json", &serde_json::to_vec(&index).unwrap());
    if docker_too {
        let name = |descriptor: &serde_json::Value| blob(descriptor["digest"].as_str().unwrap());
        let names: Vec<_> = descriptors.iter().map(name).collect();
        let manifest = json!([{"Config": name(&config), "RepoTags": ["x:1"], "Layers": names}]);
        archive = archive.file("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    }
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).bytes()
}

#[test]
fn root_root_file_systems_in_every_compression_are_one_layer() {
    let store = Store::new();
    let plain = rootfs();
    for content in [plain.clone(), gzip(&plain), xz(&plain), zstd(&plain)] {
        let image = store.import(&content).unwrap();
        assert_eq!(image.format, ImageFormat::RootfsTar);
        assert_eq!(image.layers, [sha256(&plain)]);
        assert_eq!(image.size, content.len() as u64);
        assert_eq!(image.hash.algorithm, "sha512");
        assert_eq!(image.unpacked_size, 4);
        let root = store.store.layer_dir(&image.layers[0]);
        assert_eq!(fs::read(root.join("etc/hostname")).unwrap(), b"box\n");
    }
    assert_eq!((store.layers(), store.store.list().len()), (1, 4));
    assert_eq!(fs::metadata(store.store.layout.images()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn root_a_docker_archive_with_two_layers() {
    let store = Store::new();
    let lower = Archive::new().file("bin/app", b"1").file("etc/old", b"x").bytes();
    let upper = Archive::new().file("etc/.wh.old", b"").file("sbin/init", b"#!/bin/sh").bytes();
    let image = store.import(&docker(&[&lower, &upper])).unwrap();
    assert_eq!(image.format, ImageFormat::DockerArchive);
    assert_eq!(image.layers, [sha256(&lower), sha256(&upper)]);
    assert_eq!(image.config.cmd, ["/bin/app"]);
    assert_eq!(image.config.stop_signal, "SIGQUIT");
    assert_eq!(image.config.init, None, "not executable");
    let whiteout = store.store.layer_dir(&image.layers[1]).join("etc/old");
    assert_eq!(fs::symlink_metadata(whiteout).unwrap().rdev(), 0);
    // Another image shares the lower layer.
    let other = store.import(&docker(&[&lower])).unwrap();
    assert_eq!((other.layers.as_slice(), store.layers()), (&image.layers[..1], 2));
    // And the whole archive may be compressed.
    assert_eq!(store.import(&gzip(&docker(&[&lower, &upper]))).unwrap().layers, image.layers);
}

#[test]
fn root_an_oci_layout_with_every_compression_and_an_init_across_layers() {
    let store = Store::new();
    let one = Archive::new().symlink("sbin", "usr/sbin").dir("usr/sbin").bytes();
    let mut program = super::super::testing::header(::tar::EntryType::Regular, "bin/busybox", 1);
    program.set_mode(0o755);
    let two = Archive::new().raw(program, b"x").bytes();
    let three = Archive::new().symlink("usr/sbin/init", "/bin/busybox").bytes();
    let content = oci(&[(&one, gzip), (&two, zstd), (&three, <[u8]>::to_vec)], false);
    let image = store.import(&content).unwrap();
    assert_eq!(image.format, ImageFormat::OciArchive);
    assert_eq!(image.layers, [sha256(&one), sha256(&two), sha256(&three)]);
    assert_eq!(image.config.init, Some(InitKind::Busybox));
    let both = store.import(&oci(&[(&one, gzip), (&two, zstd)], true)).unwrap();
    assert_eq!(both.format, ImageFormat::DockerArchive);
    assert_eq!(both.layers, image.layers[..2]);
}

#[test]
fn root_a_layer_that_occurs_twice_counts_where_it_is_highest() {
    let store = Store::new();
    let (a, b) = (Archive::new().file("a", b"").bytes(), Archive::new().file("b", b"").bytes());
    let image = store.import(&docker(&[&a, &b, &a])).unwrap();
    assert_eq!(image.layers, [sha256(&b), sha256(&a)]);
}

#[test]
fn root_a_layer_with_an_opaque_root_stands_alone() {
    let store = Store::new();
    let low = Archive::new().file("a", b"").bytes();
    let opaque = Archive::new().file(".wh..wh..opq", b"").file("b", b"").bytes();
    let image = store.import(&docker(&[&low, &opaque])).unwrap();
    assert_eq!(image.layers, [sha256(&opaque)]);
    // The same when the layer is there already.
    assert_eq!(store.import(&docker(&[&low, &opaque])).unwrap().layers, image.layers);
}

#[test]
fn root_opaque_directories_are_marked_on_disk() {
    let store = Store::new();
    let layer = Archive::new().file("d/.wh..wh..opq", b"").file("etc/x", b"").bytes();
    let image = store.import(&docker(&[&layer])).unwrap();
    let path = store.store.layer_dir(&image.layers[0]).join("d");
    let mut value = [0; 8];
    let n = rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value[..]).unwrap();
    assert_eq!(&value[..n], b"y");
}

#[test]
fn refused_content_leaves_nothing() {
    let layer = rootfs();
    let mut lying = docker(&[&layer]);
    // Changes the layer's content, not its length, and no header.
    let at = lying.windows(4).position(|window| window == b"box\n").unwrap();
    lying[at] = b'f';
    let mut cut = gzip(&layer);
    cut.truncate(cut.len() - 20);
    let foreign = {
        let config = config_of(&[sha256(&layer)], "vax");
        let manifest = br#"[{"Config":"c","Layers":["l"]}]"#;
        Archive::new().file("c", &config).file("l", &layer).file("manifest.json", manifest).bytes()
    };
    let named = Archive::new()
        .file("manifest.json", br#"[{"Config":"../../../../etc/passwd","Layers":["l"]}]"#)
        .bytes();
    let hostile = Archive::new().dir("etc").file("../x", b"").bytes();
    for (what, content, kind) in [
        ("nothing", vec![], FaultKind::ImageUnacceptable),
        ("LVM", [&[0; 512][..], b"LABELONE"].concat(), FaultKind::ImageUnacceptable),
        (
            "Incus' words alone",
            Archive::new().file("metadata.yaml", b"").bytes(),
            FaultKind::ImageUnacceptable,
        ),
        ("zeros", vec![0; 4096], FaultKind::ImageUnacceptable),
        ("qcow2", b"QFI\xfb\0\0\0\x03".to_vec(), FaultKind::ImageUnacceptable),
        ("compressed qcow2", gzip(b"QFI\xfb\0\0\0\x03"), FaultKind::ImageUnacceptable),
        ("compressed twice", gzip(&gzip(&layer)), FaultKind::ImageUnacceptable),
        ("bzip2", b"BZh91AY".to_vec(), FaultKind::ImageUnacceptable),
        ("no image", Archive::new().file("readme", b"").bytes(), FaultKind::ImageUnacceptable),
        ("OVA", Archive::new().file("vm.ovf", b"").bytes(), FaultKind::ImageUnacceptable),
        ("wrong diff_id", lying, FaultKind::ImageCorrupt),
        ("cut gzip", cut, FaultKind::ImageCorrupt),
        ("cut tar", layer[..700].to_vec(), FaultKind::ImageCorrupt),
        ("architecture", foreign, FaultKind::ImageUnacceptable),
        ("a name outside", named, FaultKind::ImageUnacceptable),
        ("a hostile member", hostile, FaultKind::ImageUnacceptable),
    ] {
        let store = Store::new();
        let fault = store.import(&content).expect_err(what);
        assert_eq!(fault.kind, kind, "{what}: {fault}");
        assert!(store.is_empty(), "{what}");
    }
}

#[test]
fn other_content_than_declared_leaves_nothing() {
    let store = Store::new();
    let content = rootfs();
    let good = |algorithm: &str| ImageHash {
        algorithm: algorithm.to_owned(),
        value: Digest::of(Algorithm::named(algorithm).unwrap(), &content[..])
            .unwrap()
            .hex()
            .to_owned(),
    };
    for algorithm in ["sha256", "sha384", "sha512"] {
        let mut wrong = good(algorithm);
        wrong.value = wrong.value.chars().rev().collect();
        let request = ImageImport { hash: Some(wrong), ..store.request(&content) };
        let fault = store.store.import(Uuid::new_v4(), &request, &|_| {}).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ImageCorrupt, "{algorithm}");
        assert!(store.is_empty(), "{algorithm}");
    }
    for size in [content.len() as u64 - 1, content.len() as u64 + 1] {
        let request = ImageImport { size: Some(size), ..store.request(&content) };
        let fault = store.store.import(Uuid::new_v4(), &request, &|_| {}).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ImageCorrupt, "{size}");
        assert!(store.is_empty(), "{size}");
    }
    for (algorithm, value, field) in [
        ("md5", "aa", "hash.algorithm"),
        ("sha512", "aa", "hash.value"),
        ("sha256", &"A".repeat(64), "hash.value"),
    ] {
        let hash = ImageHash { algorithm: algorithm.into(), value: value.into() };
        let request = ImageImport { hash: Some(hash), ..store.request(&content) };
        let fault = store.store.import(Uuid::new_v4(), &request, &|_| {}).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some(field));
    }
    for algorithm in ["sha256", "sha384", "sha512"] {
        let request = ImageImport { hash: Some(good(algorithm)), ..store.request(&content) };
        let id = Uuid::new_v4();
        let image = store.store.import(id, &request, &|_| {}).unwrap();
        assert_eq!(image.hash, good("sha512"));
        // Again, it is there; with another hash it is another image.
        assert_eq!(store.store.import(id, &request, &|_| {}).unwrap().created_at, image.created_at);
        let mut other = request.clone();
        other.hash.as_mut().unwrap().value = "0".repeat(good(algorithm).value.len());
        let fault = store.store.import(id, &other, &|_| {}).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ImageExists, "{algorithm}");
    }
}

#[test]
fn limits_of_the_configuration() {
    let mut data = vec![0; 3 << 20];
    data.fill(7);
    let content = Archive::new().dir("etc").file("etc/big", &data).bytes();
    let most = |change: fn(&mut config::Images)| {
        let mut config = config::Images::default();
        change(&mut config);
        Store::with(config)
    };
    for (store, reason) in [
        (most(|c| c.max_bytes = 1 << 20), "max_bytes"),
        (most(|c| c.max_unpacked_bytes = 1 << 20), "max_unpacked_bytes"),
        (most(|c| c.max_entries = 1), "max_entries"),
    ] {
        for content in [content.clone(), docker(&[&content])] {
            let fault = store.import(&content).unwrap_err();
            assert!(fault.detail.contains(reason), "{reason}: {fault}");
            assert!(store.is_empty());
        }
    }
    // The layers' sum counts, not each.
    let layer = |n: u8| Archive::new().file("f", &vec![n; 700_000]).bytes();
    let store = most(|c| c.max_unpacked_bytes = 3 << 20);
    store.import(&docker(&[&layer(1), &layer(2)])).unwrap();
    let five: Vec<_> = (1..6).map(layer).collect();
    let five: Vec<_> = five.iter().map(Vec::as_slice).collect();
    assert!(store.import(&docker(&five)).is_err());
}

#[test]
fn root_imports_of_one_image_at_once_are_one() {
    let store = Store::new();
    let request = store.request(&rootfs());
    let ImageSource::File { path } = &request.source else { unreachable!() };
    let (id, started, calls) = (Uuid::new_v4(), Barrier::new(2), AtomicU32::new(0));
    // The first import waits until the others have joined: three handles of its
    // flight are theirs, its own and the store's. Its source is gone by then.
    let first = |progress: Progress| {
        if progress.stage == "reading" && calls.fetch_add(1, Ordering::SeqCst) == 0 {
            fs::remove_file(path).unwrap();
            started.wait();
            while Arc::strong_count(&store.store.layers.lock().flights[&id]) < 4 {
                std::thread::yield_now();
            }
        }
    };
    std::thread::scope(|scope| {
        let one = scope.spawn(|| store.store.import(id, &request, &first));
        started.wait();
        assert_eq!(store.store.delete(id).unwrap_err().kind, FaultKind::ImageInUse);
        let two = scope.spawn(|| store.store.import(id, &request, &|_| {}));
        let other = ImageImport { size: Some(1), ..request.clone() };
        let fault = store.store.import(id, &other, &|_| {}).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ImageExists, "it joined, and the size is another");
        let (one, two) = (one.join().unwrap().unwrap(), two.join().unwrap().unwrap());
        assert_eq!(one.created_at, two.created_at);
    });
    assert_eq!(store.store.list().len(), 1);
    store.store.delete(id).unwrap();
}

#[test]
fn root_an_image_that_is_there_remembers_who_verified_its_content() {
    let store = Store::new();
    let content = Archive::new().file("etc/a", b"x").bytes();
    let id = Uuid::new_v4();
    let image = store.store.import(id, &store.request(&content), &|_| {}).unwrap();
    assert!(image.verifications.is_empty(), "nobody said so");
    let by = |trusted: &[&str]| ImageVerification {
        certificate: "signer".into(),
        trusted_certificates: trusted.iter().map(ToString::to_string).collect(),
    };
    let verified = |verification: ImageVerification, hash: ImageHash| ImageImport {
        hash: Some(hash),
        verification: Some(verification),
        ..store.request(b"of no interest: the content is here")
    };
    for trusted in [&["a"][..], &["b", "c"], &["a"]] {
        store.store.import(id, &verified(by(trusted), image.hash.clone()), &|_| {}).unwrap();
    }
    let kept = [by(&["a"]), by(&["b", "c"])];
    assert_eq!(store.store.get(id).unwrap().verifications, kept, "each once");

    let other = ImageHash { value: "0".repeat(128), ..image.hash.clone() };
    let refused = store.store.import(id, &verified(by(&["d"]), other), &|_| {}).unwrap_err();
    assert_eq!(refused.kind, FaultKind::ImageExists, "that is another content");
    let vague = ImageImport { hash: None, ..verified(by(&["d"]), image.hash.clone()) };
    let refused = store.store.import(id, &vague, &|_| {}).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("hash"), "of which content is not said");
    for n in 0..VERIFICATIONS {
        let many = verified(by(&[&n.to_string()]), image.hash.clone());
        store.store.import(id, &many, &|_| {}).unwrap();
    }
    let kept = store.store.get(id).unwrap().verifications;
    assert_eq!(kept.len(), VERIFICATIONS, "the latest");
    let store = store.reopen();
    assert_eq!(store.store.get(id).unwrap().verifications, kept);
}

#[test]
fn imports_with_another_hash_do_not_join() {
    let hash =
        |digit: &str| Some(ImageHash { algorithm: "sha256".into(), value: digit.repeat(64) });
    let request = |hash| ImageImport {
        name: String::new(),
        source: ImageSource::File { path: "/x".into() },
        hash,
        size: None,
        verification: None,
    };
    let flight = Flight::new(request(hash("a")));
    assert!(flight.serves(&request(hash("a"))) && flight.serves(&request(None)));
    assert!(!flight.serves(&request(hash("b"))));
}

#[test]
fn root_no_more_imports_at_once_than_configured() {
    let store = Store::with(config::Images { concurrency: 1, ..config::Images::default() });
    let (running, most) = (AtomicU32::new(0), AtomicU32::new(0));
    let contents: Vec<_> =
        (0..4).map(|n| Archive::new().file(&format!("etc/{n}"), b"x").bytes()).collect();
    std::thread::scope(|scope| {
        for content in &contents {
            scope.spawn(|| {
                let inside = Mutex::new(std::cell::Cell::new(false));
                let progress = |progress: Progress| {
                    let inside = inside.lock().unwrap();
                    if progress.stage == "reading" && !inside.replace(true) {
                        most.fetch_max(
                            running.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                    } else if progress.stage == "unpacking" && inside.replace(false) {
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                };
                store.store.import(Uuid::new_v4(), &store.request(content), &progress).unwrap();
            });
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert_eq!(store.store.list().len(), 4);
}

#[test]
fn root_held_images_stay_and_released_layers_go() {
    let store = Store::new();
    let (low, high) = (rootfs(), Archive::new().file("etc/x", b"").bytes());
    let base = store.import(&low).unwrap();
    let image = store.import(&docker(&[&low, &high])).unwrap();
    let instance = Uuid::new_v4();
    assert_eq!(store.store.hold(image.id, instance).unwrap().users, [instance]);
    store.store.hold(image.id, instance).unwrap();
    assert_eq!(store.store.get(image.id).unwrap().users, [instance]);
    assert_eq!(store.store.delete(image.id).unwrap_err().kind, FaultKind::ImageInUse);
    store.store.delete(base.id).unwrap();
    store.store.collect().unwrap();
    assert_eq!(store.layers(), 2, "the base's layer is the image's too");
    store.store.release(image.id, instance);
    store.store.release(image.id, instance);
    let last = store.store.get(image.id).unwrap().last_used_at;
    assert!(last > image.last_used_at, "it was used until now");
    let store = store.reopen();
    assert_eq!(store.store.get(image.id).unwrap().last_used_at, last, "and that is kept");
    store.store.delete(image.id).unwrap();
    store.store.collect().unwrap();
    assert!(store.is_empty());
    for fault in [
        store.store.get(image.id).unwrap_err(),
        store.store.delete(image.id).unwrap_err(),
        store.store.hold(image.id, instance).unwrap_err(),
    ] {
        assert_eq!(fault.kind, FaultKind::ImageNotFound);
    }
}

#[test]
fn root_a_restart_keeps_images_and_removes_what_a_crash_left() {
    let store = Store::new();
    let image = store.import(&rootfs()).unwrap();
    let layout = store.store.layout.clone();
    let half = layout.images_temporary().join("half");
    fs::create_dir_all(half.join("fs/etc")).unwrap();
    fs::write(half.join("content"), b"x").unwrap();
    // Put in place, but the crash came before the image's record.
    let orphan = layout.image_layer(&"ab".repeat(32));
    fs::create_dir_all(orphan.join("fs")).unwrap();
    fs::write(layout.image_records().join("x.json.new"), b"{").unwrap();
    let store = store.reopen();
    assert_eq!(serde_json::to_value(store.store.list()).unwrap(), json!([image]));
    assert!(!half.exists() && !orphan.exists());
    assert_eq!(fs::read_dir(layout.image_records()).unwrap().count(), 1);
}

#[test]
fn root_an_unreadable_record_costs_no_layer_and_no_other_image() {
    let store = Store::new();
    let good = store.import(&rootfs()).unwrap();
    let bad = store.import(&Archive::new().file("etc/bad", b"").bytes()).unwrap();
    fs::write(store.store.layout.image_record(bad.id), b"{").unwrap();
    let store = store.reopen();
    assert_eq!(store.store.list().len(), 1);
    store.store.get(good.id).unwrap();
    store.store.delete(good.id).unwrap();
    store.store.collect().unwrap();
    assert_eq!(store.layers(), 2, "the unreadable record may need any of them");
}

#[test]
fn root_an_image_that_lost_a_layer_can_be_imported_again() {
    let store = Store::new();
    let request = store.request(&rootfs());
    let id = Uuid::new_v4();
    let image = store.store.import(id, &request, &|_| {}).unwrap();
    let layer = store.store.layer_dir(&image.layers[0]);
    fs::remove_dir_all(layer.parent().unwrap()).unwrap();
    let store = store.reopen();
    assert!(store.store.get(id).is_err());
    store.store.import(id, &request, &|_| {}).unwrap();
    assert!(layer.join("etc/hostname").exists());
}

#[test]
fn a_layers_directory_is_never_outside() {
    let store = Store::new();
    for bad in ["", "..", "sha256:../../..", "sha256:", "/etc"] {
        let path = store.store.layer_dir(bad);
        assert!(path.starts_with(store.store.layout.images()) && !path.exists(), "{bad}");
    }
}

#[test]
fn progress_tells_every_stage() {
    let store = Store::new();
    let stages = Mutex::new(BTreeSet::new());
    let progress = |progress: Progress| {
        assert!(progress.total.is_none_or(|total| progress.done <= total), "{progress:?}");
        stages.lock().unwrap().insert(progress.stage);
    };
    let request = store.request(&docker(&[&rootfs()]));
    store.store.import(Uuid::new_v4(), &request, &progress).unwrap();
    let stages: Vec<_> = stages.into_inner().unwrap().into_iter().collect();
    assert_eq!(stages, ["reading", "recognising", "unpacking"]);
}

#[test]
fn root_an_altered_layer_is_noticed_and_fetched_again() {
    let store = Store::new();
    let id = Uuid::new_v4();
    let request = store.request(&docker(&[&rootfs()]));
    let image = store.store.import(id, &request, &|_| {}).unwrap();
    let file = |store: &Store| store.store.layer_dir(&image.layers[0]).join("etc/hostname");
    let alter = |store: &Store| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(file(store), "fox\n").unwrap();
    };
    alter(&store);
    let store = store.reopen();
    assert_eq!(store.store.get(id).unwrap_err().kind, FaultKind::ImageNotFound);
    assert!(store.is_empty());
    store.store.import(id, &request, &|_| {}).unwrap();
    assert_eq!(fs::read(file(&store)).unwrap(), b"box\n");
    // So does an image that another one's import finds the layer of.
    alter(&store);
    let store = store.reopen();
    let other = store.import(&docker(&[&rootfs()])).unwrap();
    assert_eq!(fs::read(file(&store)).unwrap(), b"box\n");
    assert_eq!(store.store.list().iter().map(|image| image.id).collect::<Vec<_>>(), [other.id]);
    // What an instance stands on stays, whatever it is.
    alter(&store);
    let store = store.reopen();
    store.store.hold(other.id, Uuid::new_v4()).unwrap();
    assert_eq!(store.store.get(other.id).unwrap().id, other.id);
    assert_eq!(fs::read(file(&store)).unwrap(), b"fox\n");
}

#[test]
fn root_unused_images_make_room_the_longest_unused_first() {
    let content = |byte: u8| {
        let data: Vec<u8> = (0..=255).cycle().take(300_000).map(|b: u8| b ^ byte).collect();
        Archive::new().dir("etc").file("etc/data", &data).bytes()
    };
    let store = Store::with(config::Images { cache_bytes: 700_000, ..Default::default() });
    let [first, second] = [1, 2].map(|byte| store.import(&content(byte)).unwrap().id);
    let ids =
        |store: &Store| store.store.list().iter().map(|image| image.id).collect::<BTreeSet<_>>();
    assert_eq!(ids(&store), BTreeSet::from([first, second]));
    // The first is older, but in use.
    store.store.hold(first, Uuid::nil()).unwrap();
    let third = store.import(&content(3)).unwrap().id;
    assert_eq!(ids(&store), BTreeSet::from([first, third]));
    assert_eq!(store.layers(), 2);
    // The third was let go later: it is the younger.
    store.store.hold(third, Uuid::nil()).unwrap();
    store.store.release(first, Uuid::nil());
    store.store.release(third, Uuid::nil());
    let fourth = store.import(&content(4)).unwrap().id;
    assert_eq!(ids(&store), BTreeSet::from([third, fourth]));
}

#[test]
fn root_images_that_nobody_used_for_long_enough_go() {
    let mut store =
        Store::with(config::Images { unused_seconds: 3600, ..config::Images::default() });
    let [used, asked, old, young] = [1, 2, 3, 4]
        .map(|n| store.import(&Archive::new().dir("etc").file("etc/n", &[n]).bytes()).unwrap().id);
    for id in [used, asked, old] {
        let path = store.store.layout.image_record(id);
        let mut record: ImageRecord = atomic::read_json(&path).unwrap().unwrap();
        record.image.last_used_at -= TimeDelta::hours(2);
        atomic::write_json(&path, &record).unwrap();
    }
    store = store.reopen();
    store.store.hold(used, Uuid::nil()).unwrap();
    // An instance of it may be on its way.
    store.store.get(asked).unwrap();
    let ids = |store: &Store| store.store.list().iter().map(|i| i.id).collect::<BTreeSet<_>>();
    store.store.expire().unwrap();
    assert_eq!(ids(&store), BTreeSet::from([used, asked, young]));
    assert_eq!(store.layers(), 3);
    assert!(!store.store.layout.image_record(old).exists());
    // Without an age it is Nova that says so.
    let config = config::Images::default();
    let store = Store { config, ..store }.reopen();
    store.store.expire().unwrap();
    assert_eq!(ids(&store), BTreeSet::from([used, asked, young]));
}

#[test]
fn root_of_a_failed_import_no_layer_stays() {
    let store = Store::new();
    let (good, bad) = (rootfs(), Archive::new().file("../x", b"").bytes());
    assert!(store.import(&docker(&[&good, &bad])).is_err());
    assert!(store.is_empty());
}

#[test]
fn root_an_altered_layer_is_not_taken_for_another_image_of_the_same_content() {
    let store = Store::new();
    let first = store.import(&rootfs()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let file = store.store.layer_dir(&first.layers[0]).join("etc/hostname");
    fs::write(&file, "fox\n").unwrap();
    let store = store.reopen();
    let second = store.import(&rootfs()).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"box\n");
    assert_eq!(store.store.get(second.id).unwrap().layers, first.layers);
}

#[test]
fn root_a_root_file_system_is_written_once_and_all_else_twice() {
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let plain = Archive::new().dir("etc").file("etc/data", &data).bytes();
    for (content, kept) in [
        (plain.clone(), false),
        (gzip(&plain), false),
        (zstd(&plain), false),
        (docker(&[&plain]), true),
        (gzip(&docker(&[&plain])), true),
        (oci(&[(&plain, gzip)], false), true),
    ] {
        let store = Store::new();
        let temporary = store.store.layout.images_temporary();
        let copied = std::sync::atomic::AtomicBool::new(false);
        let progress = |progress: Progress| {
            let below = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
            for entry in below(&temporary).flat_map(|workspace| below(&workspace.path())) {
                copied.fetch_or(entry.file_name() == "content", Ordering::SeqCst);
                // Members stay in the archive, compressed ones too.
                if entry.file_name() == "staged" {
                    assert_eq!(below(&entry.path()).count(), 0, "{progress:?}");
                }
            }
        };
        let request = store.request(&content);
        store.store.import(Uuid::new_v4(), &request, &progress).unwrap();
        assert_eq!(copied.into_inner(), kept);
    }
}

#[test]
fn root_a_root_file_system_that_shows_late_is_one_all_the_same() {
    let store = Store::new();
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let content = Archive::new().file("strange", &data).dir("etc").bytes();
    for content in [content.clone(), zstd(&content)] {
        let image = store.import(&content).unwrap();
        assert_eq!(image.format, ImageFormat::RootfsTar);
        let root = store.store.layer_dir(&image.layers[0]);
        assert_eq!(fs::read(root.join("strange")).unwrap(), data);
    }
}

#[test]
fn of_what_is_refused_the_wrong_hash_is_told_first() {
    let store = Store::new();
    let hash = Some(ImageHash { algorithm: "sha256".into(), value: "0".repeat(64) });
    let hostile = Archive::new().dir("etc").file("../x", b"").bytes();
    for content in [hostile.clone(), gzip(&hostile), gzip(&hostile)[..60].to_vec()] {
        let request = ImageImport { hash: hash.clone(), ..store.request(&content) };
        let fault = store.store.import(Uuid::new_v4(), &request, &|_| {}).unwrap_err();
        assert!(fault.detail.contains("sha256 is"), "{fault}");
        assert!(store.is_empty());
    }
}

#[path = "store_format_tests.rs"]
mod formats;
