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
/// Most indexes and manifests for this host's platform, or for none, that are read.
const MAX_MANIFESTS: usize = 64;
/// Most architectures that a refusal names.
const MAX_ELSEWHERE: usize = 16;

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
    /// An object whose keys are the ports. Said for people alone, so that another form is no fault.
    exposed_ports: Option<serde_json::Value>,
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

impl Descriptor {
    /// Hash and size of what it describes.
    fn place(&self) -> Result<(Digest, u64)> {
        Ok((Digest::parse(&self.digest)?, self.size))
    }
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

/// A manifest that an index leads to. Small, whatever the index says: its document is read again.
struct Candidate {
    digest: Digest,
    size: u64,
    /// Of its platform, if that is told: whether it is for every machine of the architecture.
    plain: Option<bool>,
    /// Hash of the name that it, or an index on the way to it, has.
    reference: Option<String>,
}

/// What indexes lead to.
#[derive(Default)]
struct Found {
    images: Vec<Candidate>,
    /// Architectures that images are for, this host's not among them.
    elsewhere: BTreeSet<String>,
    /// Whether there are manifests of something else.
    others: bool,
    /// Documents that were read.
    read: usize,
}

impl Found {
    fn elsewhere(&mut self, architecture: &str) {
        if self.elsewhere.len() < MAX_ELSEWHERE {
            self.elsewhere.insert(excerpt(architecture).to_string());
        }
    }
}

impl Layout<'_> {
    /// The one image for this host, out of an index.
    fn choose(&self, name: &str, bytes: &[u8], architecture: &str) -> Result<ImagePlan> {
        let mut found = Found::default();
        self.look(name, bytes, None, architecture, 0, &mut found)?;
        let mut images = std::mem::take(&mut found.images);
        if images.iter().any(|image| image.plain.is_some()) {
            images.retain(|image| image.plain.is_some());
        } else if digests(&images).len() > 1 {
            images.retain(|image| match self.architecture(image) {
                Some(other) if other != architecture => {
                    found.elsewhere(&other);
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
        images.sort_by_key(|image| image.plain == Some(false));
        let Found { elsewhere, others, .. } = found;
        match images.first() {
            Some(image) => {
                let (member, bytes) = self.document(&image.digest, image.size, self.manifest)?;
                self.image(&member, &bytes, architecture)
            }
            None if elsewhere.is_empty() && others => Err(unacceptable(
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
                found.others = true;
                continue;
            }
            if let Some(platform) = &descriptor.platform
                && !fits(platform, architecture)
            {
                found.elsewhere(&platform.architecture);
                continue;
            }
            // Those that lead to indexes, too: each may name thousands.
            if found.read == MAX_MANIFESTS {
                return Err(unacceptable(format!(
                    "its indexes name more than {MAX_MANIFESTS} manifests for this host"
                )));
            }
            found.read += 1;
            let (digest, size) = descriptor.place()?;
            let (member, bytes) = self.document(&digest, size, self.manifest)?;
            let reference = ref_name(&descriptor).or(reference);
            if !is_manifest(&descriptor) && is_index(&bytes) {
                self.look(&member, &bytes, reference, architecture, depth + 1, found)?;
            } else if is_image(&bytes) {
                let hash = |name: &str| Digest::of(Algorithm::Sha256, name.as_bytes());
                let reference = reference.map(hash).transpose()?.map(|hash| hash.hex().to_owned());
                let plain = descriptor.platform.as_ref().map(plain_variant);
                found.images.push(Candidate { digest, size, plain, reference });
            } else {
                found.others = true;
            }
        }
        Ok(())
    }

    /// What the config of an image says that it is for.
    fn architecture(&self, image: &Candidate) -> Option<String> {
        let (_, bytes) = self.document(&image.digest, image.size, self.manifest).ok()?;
        let manifest: Manifest = serde_json::from_slice(&bytes).ok()?;
        let (digest, size) = manifest.config.place().ok()?;
        let (_, bytes) = self.document(&digest, size, self.blob).ok()?;
        let document: ConfigDocument = serde_json::from_slice(&bytes).ok()?;
        Some(document.architecture).filter(|architecture| !architecture.is_empty())
    }

    /// The image that a manifest describes.
    fn image(&self, name: &str, bytes: &[u8], architecture: &str) -> Result<ImagePlan> {
        let manifest: Manifest = parse(name, bytes)?;
        let (digest, size) = manifest.config.place()?;
        let (config_name, config_bytes) = self.document(&digest, size, self.blob)?;
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

    /// A document by its hash.
    fn document(
        &self,
        digest: &Digest,
        size: u64,
        name: fn(&Digest) -> String,
    ) -> Result<(String, Vec<u8>)> {
        let name = name(digest);
        let bytes = (self.read)(&name)?;
        if bytes.len() as u64 != size {
            return Err(corrupt(format!("{name} is not as long as its descriptor says")));
        }
        check(digest, &bytes, &name)?;
        Ok((name, bytes))
    }
}

fn digests(images: &[Candidate]) -> BTreeSet<&str> {
    images.iter().map(|image| image.digest.hex()).collect()
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
        exposed_ports: match part.exposed_ports {
            Some(serde_json::Value::Object(ports)) => ports.into_iter().map(|(p, _)| p).collect(),
            _ => Vec::new(),
        },
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
