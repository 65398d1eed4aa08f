//! The image archive: layers, config, manifest, compressed.

use std::io::{self, Write};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use zstd::Encoder;

use super::tree::Tree;
use super::tree_tar::{self, Files};
use crate::fault::{Fault, OrFault, Result};
use crate::image::digest::{Algorithm, Hasher};
use crate::image::recognise::host_architecture;
use crate::image::tar_writer::{Head, TarWriter};
use crate::types::{ImageConfig, SnapshotFormat};

/// zstd's own default: half the size of its fastest, at the speed of a disk.
const LEVEL: i32 = 3;

/// What an archive is made of.
pub struct Contents {
    /// The layers, lowest first.
    pub layers: Vec<Tree>,
    /// How the image starts.
    pub config: ImageConfig,
    /// When it was as it is.
    pub created: DateTime<Utc>,
}

/// Writes an image in this format, compressed with zstd. `progress` is told
/// the bytes that were packed and those there are.
pub fn write<W: Write>(
    format: SnapshotFormat,
    contents: &Contents,
    sink: &mut W,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    match format {
        SnapshotFormat::DockerArchive => write_docker(contents, sink, progress),
        SnapshotFormat::RootfsTar => write_rootfs(contents, sink, progress),
        SnapshotFormat::Qcow2 => Err(Fault::internal("writing an archive", "a disk is none")),
    }
}

/// The root file system as one archive, as the instance sees it.
fn write_rootfs<W: Write>(
    contents: &Contents,
    sink: &mut W,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    let doing = "writing the archive";
    let files = Files::Merged(&contents.layers);
    let total = tree_tar::size(files)?;
    let encoder = encoder(sink).or_fault(doing)?;
    let mut counted = Counted { sink: encoder, report: &|done| progress(done, total), done: 0 };
    tree_tar::write(files, &mut counted)?;
    counted.sink.finish().map(drop).or_fault(doing)
}

/// zstd with a thread for each CPU.
fn encoder<'a, W: Write>(sink: W) -> io::Result<Encoder<'a, W>> {
    let mut encoder = Encoder::new(sink, LEVEL)?;
    encoder.include_checksum(true)?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    encoder.multithread(u32::try_from(threads).unwrap_or(1))?;
    Ok(encoder)
}

/// What `docker save` writes.
fn write_docker<W: Write>(
    contents: &Contents,
    sink: &mut W,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    let doing = "writing the archive";
    let layer = |number: usize| Files::Layer(&contents.layers[..=number]);
    let numbers = 0..contents.layers.len();
    let sizes = numbers.map(|number| tree_tar::size(layer(number))).collect::<Result<Vec<_>>>()?;
    let total = sizes.iter().sum();
    let mut archive = TarWriter::new(encoder(sink).or_fault(doing)?);
    let (mut diff_ids, mut names) = (Vec::new(), Vec::new());
    let mut before = 0;
    for (number, size) in sizes.iter().enumerate() {
        let name = format!("layers/{number}.tar");
        archive.begin(&Head::file(&name, *size)).or_fault(doing)?;
        let mut hashed = Hashed {
            archive: &mut archive,
            hasher: Hasher::new(Algorithm::Sha256)?,
            report: &|done| progress(before + done, total),
            done: 0,
        };
        let written = tree_tar::write(layer(number), &mut hashed)?;
        let digest = hashed.hasher.finish()?;
        if written != *size {
            return Err(io::Error::other("a layer changed while it was read")).or_fault(doing);
        }
        archive.end().or_fault(doing)?;
        before += size;
        diff_ids.push(digest.to_string());
        names.push(name);
    }
    let config = to_bytes(&config(contents, &diff_ids))?;
    let mut hasher = Hasher::new(Algorithm::Sha256)?;
    hasher.update(&config)?;
    let name = format!("{}.json", hasher.finish()?.hex());
    let manifest = to_bytes(&json!([{"Config": name, "RepoTags": null, "Layers": names}]))?;
    for (name, data) in [(name.as_str(), &config), ("manifest.json", &manifest)] {
        archive.member(&Head::file(name, data.len() as u64), data).or_fault(doing)?;
    }
    let (encoder, _) = archive.finish().or_fault(doing)?;
    encoder.finish().map(drop).or_fault(doing)
}

fn config(contents: &Contents, diff_ids: &[String]) -> Value {
    let ImageConfig {
        architecture,
        entrypoint,
        cmd,
        env,
        user,
        working_dir,
        stop_signal,
        exposed_ports,
        ..
    } = &contents.config;
    let architecture = if architecture.is_empty() { host_architecture() } else { architecture };
    let mut config = json!({"Env": env, "User": user, "WorkingDir": working_dir});
    for (name, words) in [("Entrypoint", entrypoint), ("Cmd", cmd)] {
        if !words.is_empty() {
            config[name] = json!(words);
        }
    }
    if !stop_signal.is_empty() {
        config["StopSignal"] = json!(stop_signal);
    }
    for port in exposed_ports {
        config["ExposedPorts"][port] = json!({});
    }
    let created = contents.created.to_rfc3339();
    let history: Vec<Value> = diff_ids
        .iter()
        .map(|_| json!({"created": created, "created_by": "berth snapshot"}))
        .collect();
    json!({
        "architecture": architecture, "os": "linux", "created": created, "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
    })
}

fn to_bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).or_fault("writing the archive")
}

/// A member of the archive that is hashed on its way.
struct Hashed<'a, W> {
    archive: &'a mut TarWriter<W>,
    hasher: Hasher,
    report: &'a dyn Fn(u64),
    done: u64,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes).map_err(io::Error::other)?;
        self.archive.put(bytes)?;
        self.done += bytes.len() as u64;
        (self.report)(self.done);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that are counted on their way.
struct Counted<'a, W> {
    sink: W,
    report: &'a dyn Fn(u64),
    done: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(bytes)?;
        self.done += written as u64;
        (self.report)(self.done);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
