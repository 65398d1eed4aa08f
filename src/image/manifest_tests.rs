//! Tests of documents that are made here.

use super::*;
use serde_json::{Value, json};

const DIFF: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn read(members: &BTreeMap<String, Vec<u8>>) -> impl Fn(&str) -> Result<Vec<u8>> + '_ {
    |name| members.get(name).cloned().ok_or_else(|| unacceptable(format!("no {name}")))
}

/// Puts a document among the blobs and returns its descriptor.
fn put(members: &mut BTreeMap<String, Vec<u8>>, kind: &str, document: &Value) -> Value {
    let bytes = serde_json::to_vec(document).unwrap();
    let digest = Digest::of(Algorithm::Sha256, &bytes[..]).unwrap();
    let descriptor = json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()});
    members.insert(blob_name(&digest), bytes);
    descriptor
}

fn image_config(architecture: &str) -> Value {
    json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": null, "User": "1:2",
                   "WorkingDir": "/x", "StopSignal": "SIGINT"},
        "rootfs": {"type": "layers", "diff_ids": [DIFF]},
    })
}

fn oci_image(members: &mut BTreeMap<String, Vec<u8>>, architecture: &str) -> Value {
    let config =
        put(members, "application/vnd.oci.image.config.v1+json", &image_config(architecture));
    let layer = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                       "digest": DIFF, "size": 3});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let mut descriptor = put(members, "application/vnd.oci.image.manifest.v1+json", &manifest);
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    descriptor
}

fn index(members: &mut BTreeMap<String, Vec<u8>>, manifests: &[Value]) {
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    members.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
}

#[test]
fn an_oci_layout() {
    let mut members = BTreeMap::new();
    let manifest = oci_image(&mut members, "amd64");
    index(&mut members, &[manifest]);
    let plan = oci(&read(&members), "amd64").unwrap();
    assert_eq!(plan.config.cmd, ["sh"]);
    assert_eq!(plan.config.entrypoint, [""; 0]);
    assert_eq!((plan.config.user.as_str(), plan.config.stop_signal.as_str()), ("1:2", "SIGINT"));
    assert_eq!(plan.layers.len(), 1);
    assert_eq!(plan.layers[0].diff_id.to_string(), DIFF);
}

#[test]
fn a_nested_index_gives_this_hosts_image_and_no_attestation() {
    let mut members = BTreeMap::new();
    let arm = oci_image(&mut members, "arm64");
    let amd = oci_image(&mut members, "amd64");
    let mut note = amd.clone();
    note["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    note["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let nested = json!({"schemaVersion": 2, "manifests": [arm, note, amd]});
    let nested = put(&mut members, "application/vnd.oci.image.index.v1+json", &nested);
    index(&mut members, &[nested]);
    assert_eq!(oci(&read(&members), "amd64").unwrap().config.architecture, "amd64");
    assert_eq!(oci(&read(&members), "arm64").unwrap().config.architecture, "arm64");
    let fault = oci(&read(&members), "riscv64").unwrap_err();
    assert!(fault.detail.contains("arm64"), "{fault}");
}

#[test]
fn another_architecture_is_refused_even_without_a_platform() {
    let mut members = BTreeMap::new();
    let mut manifest = oci_image(&mut members, "s390x");
    manifest.as_object_mut().unwrap().remove("platform");
    index(&mut members, &[manifest]);
    let fault = oci(&read(&members), "amd64").unwrap_err();
    assert_eq!(fault.kind, FaultKind::ImageUnacceptable);
    assert!(fault.detail.contains("s390x"), "{fault}");
}

#[test]
fn two_images_in_one_archive_are_refused() {
    let mut members = BTreeMap::new();
    let mut one = oci_image(&mut members, "amd64");
    let mut two = put(&mut members, "application/vnd.oci.image.manifest.v1+json", &json!({}));
    one["annotations"] = json!({"org.opencontainers.image.ref.name": "one"});
    two["annotations"] = json!({"org.opencontainers.image.ref.name": "two"});
    two["platform"] = one["platform"].clone();
    index(&mut members, &[one, two]);
    assert!(oci(&read(&members), "amd64").unwrap_err().detail.contains("2 images"));
}

#[test]
fn a_changed_blob_is_corrupt() {
    let mut members = BTreeMap::new();
    let manifest = oci_image(&mut members, "amd64");
    index(&mut members, &[manifest]);
    for name in members.keys().filter(|name| name.starts_with("blobs")).cloned().collect::<Vec<_>>()
    {
        let mut changed = members.clone();
        let bytes = changed.get_mut(&name).unwrap();
        *bytes = bytes.iter().map(|b| if *b == b'2' { b'3' } else { *b }).collect();
        if *bytes == members[&name] {
            bytes.push(b' ');
        }
        assert_eq!(oci(&read(&changed), "amd64").unwrap_err().kind, FaultKind::ImageCorrupt);
    }
}

fn docker_members(config: &Value, layers: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let manifest = json!([{"Config": "c.json", "RepoTags": null, "Layers": layers}]);
    BTreeMap::from([
        ("c.json".into(), serde_json::to_vec(config).unwrap()),
        ("manifest.json".into(), serde_json::to_vec(&manifest).unwrap()),
    ])
}

#[test]
fn a_docker_archive() {
    let members = docker_members(&image_config("amd64"), &["x/layer.tar"]);
    let plan = docker(&read(&members), "amd64").unwrap();
    assert_eq!(plan.layers[0].member, "x/layer.tar");
    assert_eq!(plan.config.env, ["A=b"]);
    assert!(docker(&read(&members), "arm64").is_err());
}

#[test]
fn bad_docker_archives() {
    let with = |key: &str, value: Value| {
        let mut config = image_config("amd64");
        config["config"][key] = value;
        docker_members(&config, &["l"])
    };
    let mut named = docker_members(&image_config("amd64"), &["l"]);
    let hex = "b".repeat(64);
    let manifest = format!(r#"[{{"Config":"{hex}.json","Layers":["l"]}}]"#);
    named.insert("manifest.json".into(), manifest.into_bytes());
    named.insert(format!("{hex}.json"), serde_json::to_vec(&image_config("amd64")).unwrap());
    let mut windows = image_config("amd64");
    windows["os"] = json!("windows");
    for (what, members) in [
        ("layer count", docker_members(&image_config("amd64"), &["a", "b"])),
        ("no layers", docker_members(&json!({"rootfs": {}}), &[])),
        ("zero byte", with("Cmd", json!(["a\0b"]))),
        ("env", with("Env", json!(["=x"]))),
        ("working dir", with("WorkingDir", json!("tmp"))),
        ("types", with("Cmd", json!(5))),
        ("config hash", named),
        ("os", docker_members(&windows, &["l"])),
        ("empty", BTreeMap::from([("manifest.json".into(), b"[]".to_vec())])),
        ("json", BTreeMap::from([("manifest.json".into(), b"[".to_vec())])),
    ] {
        assert!(docker(&read(&members), "amd64").is_err(), "{what}");
    }
}

/// A variable without a value is none, as in Docker.
#[test]
fn a_variable_without_a_value_is_left_out() {
    let mut config = image_config("amd64");
    config["config"]["Env"] = json!(["PATH=/bin", "UNSET", "EMPTY="]);
    let plan = docker(&read(&docker_members(&config, &["l"])), "amd64").unwrap();
    assert_eq!(plan.config.env, ["PATH=/bin", "EMPTY="]);
}

/// Signatures, attestations and lists of parts lie beside an image, in many shapes.
#[test]
fn what_is_no_image_is_passed_over() {
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut members = BTreeMap::new();
    let mut image = oci_image(&mut members, "amd64");
    image.as_object_mut().unwrap().remove("platform");
    let config = put(&mut members, "application/vnd.oci.image.config.v1+json", &json!({}));
    let other = |of: &str| json!({"mediaType": of, "digest": DIFF, "size": 3});
    let empty = other("application/vnd.oci.empty.v1+json");
    let cosign = json!({"schemaVersion": 2, "config": config,
        "layers": [other("application/vnd.dev.cosign.simplesigning.v1+json")]});
    let notation = json!({"schemaVersion": 2, "config": empty, "subject": image,
        "artifactType": "application/vnd.cncf.notary.signature",
        "layers": [other("application/jose+json")]});
    let chart = json!({"schemaVersion": 2, "config": other("application/vnd.cncf.helm.config.v1+json"),
        "layers": [other("application/vnd.cncf.helm.chart.content.v1.tar+gzip")]});
    let others: Vec<_> =
        [cosign, notation, chart].iter().map(|m| put(&mut members, kind, m)).collect();
    for others in [others.clone(), others.iter().cloned().rev().collect()] {
        for order in
            [[&others[..], &[image.clone()]].concat(), [&[image.clone()], &others[..]].concat()]
        {
            index(&mut members, &order);
            assert_eq!(oci(&read(&members), "amd64").unwrap().config.cmd, ["sh"]);
        }
    }
    index(&mut members, &others);
    let fault = oci(&read(&members), "amd64").unwrap_err();
    assert!(fault.detail.contains("signatures"), "{fault}");
}

/// Where no descriptor has a platform, the configs tell.
#[test]
fn the_image_for_this_host_is_found_by_its_config() {
    let mut members = BTreeMap::new();
    let mut images: Vec<_> = ["s390x", "amd64"].map(|a| oci_image(&mut members, a)).into();
    for image in &mut images {
        image.as_object_mut().unwrap().remove("platform");
    }
    let nested = images.iter().map(|image| {
        let nested = json!({"schemaVersion": 2, "manifests": [image]});
        put(&mut members, "application/vnd.oci.image.index.v1+json", &nested)
    });
    let nested: Vec<_> = nested.collect();
    index(&mut members, &nested);
    for architecture in ["amd64", "s390x"] {
        let plan = oci(&read(&members), architecture).unwrap();
        assert_eq!(plan.config.architecture, architecture);
    }
    assert!(oci(&read(&members), "arm64").unwrap_err().detail.contains("amd64"));
}

/// skopeo's `dir:`: a manifest or an index, and blobs by their hash alone.
#[test]
fn a_directory_of_skopeos() {
    let mut members = BTreeMap::new();
    let manifest = oci_image(&mut members, "amd64");
    let mut flat = BTreeMap::new();
    for (name, bytes) in members {
        flat.insert(name.strip_prefix("blobs/sha256/").unwrap().to_owned(), bytes);
    }
    let hex = manifest["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let bytes = flat.remove(&hex).unwrap();
    let mut one = flat.clone();
    one.insert("manifest.json".into(), bytes.clone());
    let plan = docker(&read(&one), "amd64").unwrap();
    assert_eq!(plan.layers[0].member, "a".repeat(64));
    let mut all = flat;
    all.insert(format!("{hex}.manifest.json"), bytes);
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    all.insert("manifest.json".into(), serde_json::to_vec(&index).unwrap());
    assert_eq!(docker(&read(&all), "amd64").unwrap().config.cmd, ["sh"]);
}

/// Each level of indexes would multiply what is read, and what is passed over unread is none of it.
#[test]
fn what_indexes_lead_to_is_read_a_bounded_number_of_times() {
    let index_kind = "application/vnd.oci.image.index.v1+json";
    let mut members = BTreeMap::new();
    let mut inner = json!({"schemaVersion": 2, "manifests": []});
    for _ in 0..3 {
        let nested = put(&mut members, index_kind, &inner);
        inner = json!({"schemaVersion": 2, "manifests": vec![nested; 200]});
    }
    members.insert("index.json".into(), serde_json::to_vec(&inner).unwrap());
    let reads = std::cell::Cell::new(0);
    let counted = |name: &str| {
        reads.set(reads.get() + 1);
        read(&members)(name)
    };
    let fault = oci(&counted, "amd64").unwrap_err();
    assert!(fault.detail.contains("more than 64 manifests"), "{fault}");
    assert_eq!(reads.get(), 1 + MAX_MANIFESTS);
}

#[test]
fn any_number_of_signatures_lies_before_an_image() {
    let mut members = BTreeMap::new();
    let image = oci_image(&mut members, "amd64");
    let mut signature = image.clone();
    signature["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let other = json!({"mediaType": "application/vnd.x.signature", "digest": DIFF, "size": 3});
    let mut all = vec![signature; 100];
    all.extend(vec![other; 100]);
    all.push(image);
    index(&mut members, &all);
    assert_eq!(oci(&read(&members), "amd64").unwrap().config.cmd, ["sh"]);
}

#[test]
fn a_refusal_names_a_few_architectures() {
    let mut members = BTreeMap::new();
    let image = oci_image(&mut members, "amd64");
    let other = |n: usize| {
        let mut other = image.clone();
        other["platform"]["architecture"] = json!(format!("other{n}"));
        other
    };
    index(&mut members, &(0..1000).map(other).collect::<Vec<_>>());
    let fault = oci(&read(&members), "amd64").unwrap_err();
    assert!(fault.detail.len() < 1000 && fault.detail.contains("other0"), "{fault}");
}
