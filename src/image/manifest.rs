//! What a docker-archive's or an OCI layout's own documents say.
//!
//! Pure, but for the closure that reads a member by name. Every document that
//! is named by its hash is checked against it. Names in the documents are
//! keys into the archive and never become paths.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::digest::{Algorithm, Digest, excerpt};
use super::refusal::unacceptable;
use crate::fault::{Fault, FaultKind, Result};
use crate::types::ImageConfig;

/// Most layers: as many as Docker takes.
const MAX_LAYERS: usize = 127;
/// Most levels of indexes in indexes.
const MAX_INDEXES: usize = 4;

/// How an image is made from the members of its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlan {
    /// How it starts; its init is not known yet.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<PlannedLayer>,
}

/// A layer and what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedLayer {
    /// The member that holds it, possibly compressed.
    pub member: String,
    /// Digest of its plain bytes.
    pub diff_id: Digest,
    /// Digest and size of the member, when the manifest tells.
    pub stored: Option<(Digest, u64)>,
}

/// Reads a small member by name.
pub type Read<'a> = &'a dyn Fn(&str) -> Result<Vec<u8>>;

#[derive(Deserialize)]
struct DockerManifest {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "Layers")]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<ConfigPart>,
    rootfs: RootfsPart,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigPart {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RootfsPart {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Reads the documents of a docker-archive.
pub fn docker(read: Read<'_>, architecture: &str) -> Result<ImagePlan> {
    let manifests: Vec<DockerManifest> = parse("manifest.json", &read("manifest.json")?)?;
    let [manifest] = manifests.as_slice() else {
        return Err(unacceptable(format!(
            "manifest.json names {} images; save one image at a time",
            manifests.len()
        )));
    };
    let bytes = read(&manifest.config)?;
    if let Some(digest) = named_digest(&manifest.config) {
        check(&digest, &bytes, &manifest.config)?;
    }
    let (config, diff_ids) = config(&manifest.config, &bytes, architecture)?;
    let members = manifest.layers.clone().unwrap_or_default();
    let layers = pair(diff_ids, members.into_iter().map(|member| (member, None)).collect())?;
    Ok(ImagePlan { config, layers })
}

/// Reads the documents of an OCI layout.
pub fn oci(read: Read<'_>, architecture: &str) -> Result<ImagePlan> {
    let mut name = "index.json".to_owned();
    let mut bytes = read(&name)?;
    for _ in 0..MAX_INDEXES {
        let index: Index = parse(&name, &bytes)?;
        let descriptor = choose(index.manifests.unwrap_or_default(), architecture)?;
        (name, bytes) = blob(read, &descriptor)?;
        if is_manifest(&descriptor) || !is_index(&bytes) {
            return manifest(read, &name, &bytes, architecture);
        }
    }
    Err(unacceptable("its indexes lead to more indexes without end"))
}

fn manifest(read: Read<'_>, name: &str, bytes: &[u8], architecture: &str) -> Result<ImagePlan> {
    let manifest: Manifest = parse(name, bytes)?;
    let (config_name, config_bytes) = blob(read, &manifest.config)?;
    let (config, diff_ids) = config(&config_name, &config_bytes, architecture)?;
    let mut members = Vec::new();
    for layer in &manifest.layers {
        let kind = &layer.media_type;
        if kind.contains("encrypted") || !kind.contains(".tar") {
            return Err(unacceptable(format!("a layer is of the type {:?}", excerpt(kind))));
        }
        let digest = Digest::parse(&layer.digest)?;
        members.push((blob_name(&digest), Some((digest, layer.size))));
    }
    Ok(ImagePlan { config, layers: pair(diff_ids, members)? })
}

/// The one manifest or index for this host.
fn choose(descriptors: Vec<Descriptor>, architecture: &str) -> Result<Descriptor> {
    let image = |d: &Descriptor| {
        let kind = d.media_type.as_str();
        let known = kind.is_empty()
            || is_manifest(d)
            || kind.contains(".index.")
            || kind.contains("manifest.list");
        let note = d.annotations.as_ref().and_then(|a| a.get("vnd.docker.reference.type"));
        known && note.is_none()
    };
    let images: Vec<_> = descriptors.into_iter().filter(image).collect();
    let fits = |platform: &Platform| {
        platform.architecture == architecture && (platform.os.is_empty() || platform.os == "linux")
    };
    let exact = images.iter().filter(|d| d.platform.as_ref().is_some_and(&fits));
    let vague = images.iter().filter(|d| d.platform.is_none());
    let mut chosen: Vec<_> = exact.collect();
    if chosen.is_empty() {
        chosen = vague.collect();
    }
    let names: BTreeSet<_> = chosen.iter().filter_map(|d| ref_name(d)).collect();
    let digests: BTreeSet<_> = chosen.iter().map(|d| &d.digest).collect();
    if names.len() > 1 && digests.len() > 1 {
        return Err(unacceptable(format!(
            "index.json names {} images; save one image at a time",
            digests.len()
        )));
    }
    // The plain variant runs on every machine of the architecture.
    chosen.sort_by_key(|d| d.platform.as_ref().is_some_and(|p| !plain_variant(p)));
    chosen.first().map(|d| (*d).clone()).ok_or_else(|| {
        let offered: BTreeSet<_> = images
            .iter()
            .filter_map(|d| Some(excerpt(&d.platform.as_ref()?.architecture)))
            .collect();
        unacceptable(format!(
            "it has no image for linux/{architecture}, only for {:?}; take one for this host",
            offered
        ))
    })
}

fn ref_name(descriptor: &Descriptor) -> Option<&String> {
    descriptor.annotations.as_ref()?.get("org.opencontainers.image.ref.name")
}

fn plain_variant(platform: &Platform) -> bool {
    matches!(platform.variant.as_deref(), None | Some("" | "v1" | "v8"))
}

fn is_manifest(descriptor: &Descriptor) -> bool {
    matches!(
        descriptor.media_type.as_str(),
        "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// Whether a document without a telling media type is an index.
fn is_index(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Index>(bytes).is_ok_and(|index| index.manifests.is_some())
}

fn blob(read: Read<'_>, descriptor: &Descriptor) -> Result<(String, Vec<u8>)> {
    let digest = Digest::parse(&descriptor.digest)?;
    let name = blob_name(&digest);
    let bytes = read(&name)?;
    if bytes.len() as u64 != descriptor.size {
        return Err(corrupt(format!("{name} is not as long as its descriptor says")));
    }
    check(&digest, &bytes, &name)?;
    Ok((name, bytes))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The digest in a docker-archive's name of a config: `HEX.json` or `blobs/sha256/HEX`.
fn named_digest(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    Digest::new("sha256", last.strip_suffix(".json").unwrap_or(last))
}

fn config(name: &str, bytes: &[u8], architecture: &str) -> Result<(ImageConfig, Vec<Digest>)> {
    let document: ConfigDocument = parse(name, bytes)?;
    if !document.os.is_empty() && document.os != "linux" {
        return Err(unacceptable(format!("it is for {}, not for linux", excerpt(&document.os))));
    }
    if !document.architecture.is_empty() && document.architecture != architecture {
        return Err(unacceptable(format!(
            "it is for {}, this host is {architecture}",
            excerpt(&document.architecture)
        )));
    }
    let part = document.config.unwrap_or_default();
    let config = ImageConfig {
        architecture: document.architecture,
        entrypoint: part.entrypoint.unwrap_or_default(),
        cmd: part.cmd.unwrap_or_default(),
        env: part.env.unwrap_or_default(),
        user: part.user.unwrap_or_default(),
        working_dir: part.working_dir.unwrap_or_default(),
        stop_signal: part.stop_signal.unwrap_or_default(),
        init: None,
        inits: Vec::new(),
    };
    check_config(&config)?;
    let diff_ids = document.rootfs.diff_ids.unwrap_or_default();
    let diff_ids = diff_ids.iter().map(|id| Digest::parse(id)).collect::<Result<Vec<_>>>()?;
    if diff_ids.iter().any(|id| id.algorithm() != Algorithm::Sha256) {
        return Err(unacceptable("its config names a layer by another hash than sha256"));
    }
    Ok((config, diff_ids))
}

fn check_config(config: &ImageConfig) -> Result<()> {
    let texts = config.entrypoint.iter().chain(&config.cmd).chain(&config.env).chain([
        &config.user,
        &config.working_dir,
        &config.stop_signal,
    ]);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(unacceptable("its config has a zero byte in a text"));
    }
    if config.env.iter().any(|entry| entry.find('=').is_none_or(|equals| equals == 0)) {
        return Err(unacceptable("its config has an Env entry that is not NAME=value"));
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(unacceptable("its config has a WorkingDir that is not absolute"));
    }
    Ok(())
}

fn pair(
    diff_ids: Vec<Digest>,
    members: Vec<(String, Option<(Digest, u64)>)>,
) -> Result<Vec<PlannedLayer>> {
    if diff_ids.len() != members.len() {
        return Err(unacceptable(format!(
            "its manifest has {} layers and its config {}",
            members.len(),
            diff_ids.len()
        )));
    }
    if diff_ids.is_empty() || diff_ids.len() > MAX_LAYERS {
        return Err(unacceptable(format!(
            "it has {} layers, not 1 to {MAX_LAYERS}",
            members.len()
        )));
    }
    let layers = diff_ids.into_iter().zip(members);
    Ok(layers.map(|(diff_id, (member, stored))| PlannedLayer { member, diff_id, stored }).collect())
}

fn check(digest: &Digest, bytes: &[u8], name: &str) -> Result<()> {
    if Digest::of(digest.algorithm(), bytes)? == *digest {
        Ok(())
    } else {
        Err(corrupt(format!("{} does not have its hash", excerpt(name))))
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        // The error may quote the document, which may be long.
        let error = error.to_string();
        unacceptable(format!("{} is not as it must be: {}", excerpt(name), excerpt(&error)))
    })
}

fn corrupt(why: impl Into<String>) -> Fault {
    Fault::new(FaultKind::ImageCorrupt, why)
}

#[cfg(test)]
mod tests {
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
        let descriptor =
            json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()});
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
        assert_eq!(
            (plan.config.user.as_str(), plan.config.stop_signal.as_str()),
            ("1:2", "SIGINT")
        );
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
        for name in
            members.keys().filter(|name| name.starts_with("blobs")).cloned().collect::<Vec<_>>()
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
            ("env", with("Env", json!(["novalue"]))),
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
}
