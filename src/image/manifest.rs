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
/// Most manifests for this host's platform, or for none, that are looked at.
const MAX_MANIFESTS: usize = 64;

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
#[serde(rename_all = "camelCase")]
struct Manifest {
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Reads the documents of a docker-archive, or of what skopeo calls `dir:`.
pub fn docker(read: Read<'_>, architecture: &str) -> Result<ImagePlan> {
    let bytes = read("manifest.json")?;
    if bytes.trim_ascii_start().starts_with(b"{") {
        let layout = Layout {
            read,
            blob: |digest| digest.hex().to_owned(),
            manifest: |digest| format!("{}.manifest.json", digest.hex()),
        };
        return match is_index(&bytes) {
            true => layout.choose("manifest.json", &bytes, architecture),
            false => layout.image("manifest.json", &bytes, architecture),
        };
    }
    let manifests: Vec<DockerManifest> = parse("manifest.json", &bytes)?;
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
    let layout = Layout { read, blob: blob_name, manifest: blob_name };
    layout.choose("index.json", &read("index.json")?, architecture)
}

/// Members that are named by their hashes.
struct Layout<'a> {
    read: Read<'a>,
    /// The member of a blob.
    blob: fn(&Digest) -> String,
    /// The member of a manifest or an index.
    manifest: fn(&Digest) -> String,
}

/// A manifest that an index leads to.
struct Candidate {
    descriptor: Descriptor,
    /// The name that it, or an index on the way to it, has.
    reference: Option<String>,
    member: String,
    bytes: Vec<u8>,
}

/// What indexes lead to.
#[derive(Default)]
struct Found {
    images: Vec<Candidate>,
    /// Architectures that images are for, this host's not among them.
    elsewhere: BTreeSet<String>,
    /// Manifests of something else.
    others: usize,
}

impl Layout<'_> {
    /// The one image for this host, out of an index.
    fn choose(&self, name: &str, bytes: &[u8], architecture: &str) -> Result<ImagePlan> {
        let mut found = Found::default();
        self.look(name, bytes, None, architecture, 0, &mut found)?;
        let Found { mut images, mut elsewhere, others } = found;
        if images.iter().any(|image| image.descriptor.platform.is_some()) {
            images.retain(|image| image.descriptor.platform.is_some());
        } else if digests(&images).len() > 1 {
            images.retain(|image| match self.architecture(image) {
                Some(other) if other != architecture => {
                    elsewhere.insert(excerpt(&other).to_string());
                    false
                }
                _ => true,
            });
        }
        let names: BTreeSet<_> = images.iter().filter_map(|i| i.reference.as_ref()).collect();
        let count = digests(&images).len();
        if names.len() > 1 && count > 1 {
            return Err(unacceptable(format!(
                "{name} names {count} images; save one image at a time"
            )));
        }
        // The plain variant runs on every machine of the architecture.
        images.sort_by_key(|i| i.descriptor.platform.as_ref().is_some_and(|p| !plain_variant(p)));
        match images.first() {
            Some(image) => self.image(&image.member, &image.bytes, architecture),
            None if elsewhere.is_empty() && others > 0 => Err(unacceptable(
                "it holds no image, only signatures, attestations or other documents; give the \
                 image that these are about",
            )),
            None => Err(unacceptable(format!(
                "it has no image for linux/{architecture}, only for {elsewhere:?}; take one for \
                 this host"
            ))),
        }
    }

    /// Looks through an index and those in it.
    fn look(
        &self,
        name: &str,
        bytes: &[u8],
        reference: Option<&str>,
        architecture: &str,
        depth: usize,
        found: &mut Found,
    ) -> Result<()> {
        if depth == MAX_INDEXES {
            return Err(unacceptable("its indexes lead to more indexes without end"));
        }
        let index: Index = parse(name, bytes)?;
        for descriptor in index.manifests.unwrap_or_default() {
            if !may_be_image(&descriptor) {
                found.others += 1;
                continue;
            }
            if let Some(platform) = &descriptor.platform
                && !fits(platform, architecture)
            {
                found.elsewhere.insert(excerpt(&platform.architecture).to_string());
                continue;
            }
            if found.images.len() + found.others >= MAX_MANIFESTS {
                return Err(unacceptable(format!("it has more than {MAX_MANIFESTS} manifests")));
            }
            let (member, bytes) = self.document(&descriptor, self.manifest)?;
            let reference = ref_name(&descriptor).or(reference).map(str::to_owned);
            if !is_manifest(&descriptor) && is_index(&bytes) {
                self.look(&member, &bytes, reference.as_deref(), architecture, depth + 1, found)?;
            } else if is_image(&bytes) {
                found.images.push(Candidate { descriptor, reference, member, bytes });
            } else {
                found.others += 1;
            }
        }
        Ok(())
    }

    /// What the config of an image says that it is for.
    fn architecture(&self, image: &Candidate) -> Option<String> {
        let manifest: Manifest = serde_json::from_slice(&image.bytes).ok()?;
        let (_, bytes) = self.document(&manifest.config, self.blob).ok()?;
        let document: ConfigDocument = serde_json::from_slice(&bytes).ok()?;
        Some(document.architecture).filter(|architecture| !architecture.is_empty())
    }

    /// The image that a manifest describes.
    fn image(&self, name: &str, bytes: &[u8], architecture: &str) -> Result<ImagePlan> {
        let manifest: Manifest = parse(name, bytes)?;
        let (config_name, config_bytes) = self.document(&manifest.config, self.blob)?;
        let (config, diff_ids) = config(&config_name, &config_bytes, architecture)?;
        let mut members = Vec::new();
        for layer in &manifest.layers {
            let kind = &layer.media_type;
            if kind.contains("encrypted") || !kind.contains(".tar") {
                return Err(unacceptable(format!("a layer is of the type {:?}", excerpt(kind))));
            }
            let digest = Digest::parse(&layer.digest)?;
            members.push(((self.blob)(&digest), Some((digest, layer.size))));
        }
        Ok(ImagePlan { config, layers: pair(diff_ids, members)? })
    }

    /// A document by its descriptor.
    fn document(
        &self,
        descriptor: &Descriptor,
        name: fn(&Digest) -> String,
    ) -> Result<(String, Vec<u8>)> {
        let digest = Digest::parse(&descriptor.digest)?;
        let name = name(&digest);
        let bytes = (self.read)(&name)?;
        if bytes.len() as u64 != descriptor.size {
            return Err(corrupt(format!("{name} is not as long as its descriptor says")));
        }
        check(&digest, &bytes, &name)?;
        Ok((name, bytes))
    }
}

fn digests(images: &[Candidate]) -> BTreeSet<&String> {
    images.iter().map(|image| &image.descriptor.digest).collect()
}

/// Whether a descriptor may lead to an image, as far as it says.
fn may_be_image(descriptor: &Descriptor) -> bool {
    let kind = descriptor.media_type.as_str();
    let known = kind.is_empty()
        || is_manifest(descriptor)
        || kind.contains(".index.")
        || kind.contains("manifest.list");
    let note = |key| descriptor.annotations.as_ref().is_some_and(|all| all.contains_key(key));
    known && !note("vnd.docker.reference.type")
}

/// Whether a manifest describes an image: signatures and the like have the same form. What
/// cannot be read may be one, for its fault says more.
fn is_image(bytes: &[u8]) -> bool {
    const CONFIGS: [&str; 3] = [
        "",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    ];
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else { return true };
    let layers = &manifest.layers;
    manifest.artifact_type.is_none()
        && CONFIGS.contains(&manifest.config.media_type.as_str())
        && (layers.is_empty() || layers.iter().any(|layer| layer.media_type.contains(".tar")))
}

fn fits(platform: &Platform, architecture: &str) -> bool {
    platform.architecture == architecture && (platform.os.is_empty() || platform.os == "linux")
}

fn ref_name(descriptor: &Descriptor) -> Option<&str> {
    let annotations = descriptor.annotations.as_ref()?;
    annotations.get("org.opencontainers.image.ref.name").map(String::as_str)
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
        // One without a value unsets what nothing has set.
        env: part.env.unwrap_or_default().into_iter().filter(|e| e.contains('=')).collect(),
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
    if config.env.iter().any(|entry| entry.starts_with('=')) {
        return Err(unacceptable("its config has an Env entry without a name"));
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
#[path = "manifest_tests.rs"]
mod tests;
