//! The durable record of an instance: what was asked for, and what an
//! operator of this host decided about it (ids, CPUs).
//!
//! The record's existence is the instance's existence. What no record owns is
//! rubbish and is removed at the next start of the service.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::moved::{Arrival, Departure};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::rootfs::{SealKey, WrittenFile};
use crate::runtime::disks::{self, Kind};
use crate::runtime::role::Role;
use crate::store::{atomic, layout::InstanceLayout};
use crate::sys::ids::IdBlock;
use crate::types::{
    Definition, ExitStatus, Flavor, ImageConfig, InjectedFile, InstanceCreate, Problem, Volume,
};
use crate::volume;

/// Version of the record's form. A record of another version is left alone:
/// the service starts without that instance and says so.
pub const SCHEMA: u32 = 1;

/// What Nova last asked of an instance's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It shall run.
    Running,
    /// It shall not, or it ended by itself.
    Stopped,
    /// It shall be gone: teardown is finished at the next start.
    Deleted,
}

/// How an instance was frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frozen {
    /// By pause.
    Paused,
    /// By suspend.
    Suspended,
}

/// A resize that can be undone: copies of the disks are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptResize {
    /// Flavor and sizes in the record hold, and what is kept of the disks is
    /// to be put back: a resize or a revert was begun.
    Undoing,
    /// It is done and awaits confirm or revert.
    Unconfirmed {
        /// The flavor that a revert brings back.
        flavor: Flavor,
        /// Bytes of the root disk that is kept.
        root_bytes: u64,
        /// Bytes of the ephemeral disk that is kept, 0 for none.
        ephemeral_bytes: u64,
        /// When it was done.
        since: DateTime<Utc>,
    },
}

/// That an instance is rescued: what it boots instead of its own root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescue {
    /// The rescue image.
    pub image_id: Uuid,
    /// Digests of its layers, lowest first.
    pub layers: Vec<String>,
    /// How it starts.
    pub image_config: ImageConfig,
    /// Bytes of the disk that takes its changes.
    pub disk_bytes: u64,
    /// Environment of its first process, over the image's.
    pub environment: BTreeMap<String, String>,
}

/// What an instance boots.
#[derive(Clone, Debug)]
pub struct Boot<'a> {
    /// Digests of the layers of its root file system, lowest first.
    pub layers: &'a [String],
    /// How the image starts.
    pub config: &'a ImageConfig,
    /// The definition, as far as it concerns this root file system.
    pub definition: Cow<'a, Definition>,
}

impl Boot<'_> {
    /// What it is.
    pub fn role(&self) -> Role {
        Role::of(self.config, self.definition.command.as_deref())
    }
}

/// The record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Grows with every change.
    pub generation: u64,
    /// Nova's id.
    pub id: Uuid,
    /// The seal of [`digest`] of the body that created it: the same body again is the same instance.
    pub request_digest: String,
    /// With which the digest and the written files are sealed.
    pub seal_key: SealKey,
    /// The definition, with later changes of flavor and interfaces.
    pub definition: Definition,
    /// What is remembered of the request's files, for a snapshot to leave out
    /// what of them is as it was.
    pub written_files: Vec<WrittenFile>,
    /// Its block of host ids.
    pub id_block: IdBlock,
    /// CPUs it is bound to (`hw:cpu_policy=dedicated`).
    pub pinned_cpus: Option<Vec<u32>>,
    /// Digests of the image's layers, lowest first: it boots from them even
    /// when the image's own record is gone.
    pub layers: Vec<String>,
    /// How the image starts.
    pub image_config: ImageConfig,
    /// Bytes of the root disk.
    pub root_bytes: u64,
    /// Bytes of the ephemeral disk, 0 for none.
    pub ephemeral_bytes: u64,
    /// What it boots instead, while it is rescued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue: Option<Rescue>,
    /// Its volumes, in the order in which they were attached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// What Nova last asked.
    pub desired: Desired,
    /// How it is frozen, while it is.
    pub frozen: Option<Frozen>,
    /// Whether its disks are frozen, so that what is on them is consistent.
    #[serde(default)]
    pub quiesced: bool,
    /// A resize that can be undone.
    #[serde(default)]
    pub resize: Option<KeptResize>,
    /// That it goes to another host, or has gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub departure: Option<Departure>,
    /// That it came from another host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival: Option<Arrival>,
    /// Whether it was ever started: host name, machine id and files are
    /// written once, before.
    pub seeded: bool,
    /// The host's boot in which it was last started.
    pub boot_id: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last started.
    pub started_at: Option<DateTime<Utc>>,
    /// How its first process last ended.
    pub exit: Option<ExitStatus>,
    /// Reboots from inside since it was last started.
    pub guest_reboots: u32,
    /// The fault of the last failed operation.
    pub fault: Option<Problem>,
}

impl Record {
    /// What is known of an instance before anything of it is made.
    pub fn new(
        id: Uuid,
        digest: &str,
        definition: Definition,
        id_block: IdBlock,
        pinned_cpus: Option<Vec<u32>>,
    ) -> Result<Record> {
        let seal_key = SealKey::random()?;
        Ok(Record {
            schema: SCHEMA,
            generation: 0,
            id,
            request_digest: seal_digest(&seal_key, digest)?,
            seal_key,
            definition,
            written_files: vec![],
            id_block,
            pinned_cpus,
            layers: vec![],
            image_config: ImageConfig::default(),
            root_bytes: 0,
            ephemeral_bytes: 0,
            rescue: None,
            volumes: vec![],
            desired: Desired::Stopped,
            frozen: None,
            quiesced: false,
            resize: None,
            departure: None,
            arrival: None,
            seeded: false,
            boot_id: None,
            created_at: Utc::now(),
            started_at: None,
            exit: None,
            guest_reboots: 0,
            fault: None,
        })
    }

    /// Reads an instance's record; `None` when there is none.
    pub fn load(layout: &InstanceLayout) -> Result<Option<Record>> {
        let path = layout.record();
        let Some(form) = atomic::read_json::<Form>(&path)? else { return Ok(None) };
        if form.schema != SCHEMA {
            return Err(Fault::new(
                FaultKind::Internal,
                format!(
                    "{} has schema {}, this version of berth reads {SCHEMA}: \
                     run the version that wrote it",
                    path.display(),
                    form.schema
                ),
            ));
        }
        if form.seal_key.is_some() {
            return atomic::read_json(&path);
        }
        let Some(mut record) = atomic::read_json(&path)? else { return Ok(None) };
        let doing = format!("taking the contents of files out of {}", path.display());
        take_contents_out(&mut record).map_err(|fault| fault.context(&doing))?;
        if let Err(fault) = atomic::write_json(&path, &record) {
            // A full disk keeps no instance from being taken up; its next change writes it.
            tracing::warn!(fault = %fault.in_full(), "{doing}");
        }
        serde_json::from_value(record).map(Some).or_fault(doing)
    }

    /// Whether a request with this [`digest`] made it.
    pub fn is_of_request(&self, digest: &str) -> Result<bool> {
        Ok(seal_digest(&self.seal_key, digest)? == self.request_digest)
    }

    /// What it boots: its own, or the rescue image with the image's own command.
    pub fn boot(&self) -> Boot<'_> {
        match &self.rescue {
            None => Boot {
                layers: &self.layers,
                config: &self.image_config,
                definition: Cow::Borrowed(&self.definition),
            },
            Some(rescue) => Boot {
                layers: &rescue.layers,
                config: &rescue.image_config,
                definition: Cow::Owned(Definition {
                    command: None,
                    environment: rescue.environment.clone(),
                    ..self.definition.clone()
                }),
            },
        }
    }

    /// The kinds of its disks, in the order of their names inside.
    pub fn disk_kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        disks::kinds(self.rescue.is_some(), self.ephemeral_bytes > 0)
    }

    /// Its volumes with the names that they have inside as it boots now.
    pub fn volumes_inside(&self) -> Vec<Volume> {
        let names = volume::names(self.disk_kinds().count(), &self.volumes);
        let named = self.volumes.iter().zip(names);
        named.map(|(of, name)| Volume { device: format!("/dev/{name}"), ..of.clone() }).collect()
    }

    /// What it is when it is started, in this boot of the host.
    pub fn started(self, boot_id: &str) -> Record {
        Record {
            desired: Desired::Running,
            frozen: None,
            quiesced: false,
            exit: None,
            guest_reboots: 0,
            boot_id: Some(boot_id.to_owned()),
            started_at: Some(Utc::now()),
            ..self
        }
    }

    /// What it is once nothing of it runs: nothing is frozen either.
    pub fn powered_off(self) -> Record {
        Record { frozen: None, quiesced: false, ..self }
    }

    /// Writes it, with the next generation.
    pub fn save(&mut self, layout: &InstanceLayout) -> Result<()> {
        self.generation += 1;
        atomic::write_json(&layout.record(), self).inspect_err(|_| self.generation -= 1)
    }
}

/// What must be known of a record before it is read.
#[derive(Deserialize)]
struct Form {
    schema: u32,
    /// Absent in records of earlier versions, which have the files' contents in them.
    seal_key: Option<IgnoredAny>,
}

/// Brings a record of before to what it is now, all else in it as it was: the files were
/// written when it was made, so what is in them is needed no longer.
fn take_contents_out(record: &mut Value) -> Result<()> {
    let files = record["definition"].as_object_mut().and_then(|form| form.remove("files"));
    let files = files.map(serde_json::from_value::<Vec<InjectedFile>>).transpose();
    let key = SealKey::random()?;
    let written = WrittenFile::all(&files.or_fault("reading them")?.unwrap_or_default(), &key)?;
    let sealed = seal_digest(&key, record["request_digest"].as_str().unwrap_or_default())?;
    record["request_digest"] = sealed.into();
    record["written_files"] = serde_json::to_value(written).or_fault("writing it")?;
    record["seal_key"] = serde_json::to_value(key).or_fault("writing it")?;
    Ok(())
}

fn seal_digest(key: &SealKey, digest: &str) -> Result<String> {
    key.seal(digest.as_bytes()).or_fault("sealing the request's digest")
}

/// Digest of a create request, for idempotence.
pub fn digest(request: &InstanceCreate) -> Result<String> {
    let bytes = serde_json::to_vec(request).or_fault("serialising the request")?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn request() -> InstanceCreate {
        InstanceCreate {
            name: "instance-00000001".into(),
            hostname: None,
            image_id: Uuid::from_u128(7),
            flavor: Flavor {
                name: "m1.tiny".into(),
                vcpus: 1,
                memory_mb: 128,
                root_gb: 1,
                ephemeral_gb: 0,
                swap_mb: 0,
                extra_specs: Default::default(),
            },
            vifs: vec![],
            dns: None,
            environment: Default::default(),
            command: None,
            files: vec![],
            metadata: Default::default(),
        }
    }

    pub(crate) fn record() -> Record {
        let definition = request();
        let block = IdBlock { first: 1_879_048_192, size: 65_536 };
        let digest = digest(&definition).unwrap();
        let (definition, _) = definition.into_parts();
        let record = Record::new(Uuid::from_u128(1), &digest, definition, block, None).unwrap();
        Record { root_bytes: 1 << 30, ..record }
    }

    #[test]
    fn the_same_body_has_the_same_digest_and_another_has_not() {
        let mut other = request();
        assert_eq!(digest(&request()).unwrap(), digest(&other).unwrap());
        other.flavor.memory_mb += 1;
        assert_ne!(digest(&request()).unwrap(), digest(&other).unwrap());
    }

    #[test]
    fn a_record_survives_its_file_and_another_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout =
            crate::store::layout::Layout::new(dir.path(), dir.path()).instance(Uuid::nil());
        assert!(Record::load(&layout).unwrap().is_none());
        std::fs::create_dir_all(layout.state()).unwrap();
        let mut written = record();
        written.save(&layout).unwrap();
        let read = Record::load(&layout).unwrap().unwrap();
        assert_eq!((read.generation, read.definition), (1, written.definition.clone()));
        written.schema = 99;
        written.save(&layout).unwrap();
        assert!(Record::load(&layout).unwrap_err().detail.contains("99"));
    }

    #[test]
    fn a_record_of_before_loses_the_contents_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let layout =
            crate::store::layout::Layout::new(dir.path(), dir.path()).instance(Uuid::nil());
        std::fs::create_dir_all(layout.state()).unwrap();
        let content = "cGFzc3dvcmQ=";
        let file = InjectedFile { path: "/a".into(), content: content.into(), mode: 0o600 };
        let body = InstanceCreate { files: vec![file], ..request() };
        let body_digest = digest(&body).unwrap();
        let now = serde_json::to_value(record()).unwrap();
        let mut before = now.clone();
        let form = before.as_object_mut().unwrap();
        form.remove("seal_key");
        form.remove("written_files");
        form.insert("request_digest".into(), body_digest.clone().into());
        form.insert("definition".into(), serde_json::to_value(&body).unwrap());
        atomic::write_json(&layout.record(), &before).unwrap();

        let read = Record::load(&layout).unwrap().unwrap();
        let text = std::fs::read_to_string(layout.record()).unwrap();
        assert!(!text.contains(content) && !text.contains(&body_digest), "{text}");
        assert!(read.is_of_request(&body_digest).unwrap());
        assert!(!read.is_of_request(&digest(&request()).unwrap()).unwrap());
        let [written] = read.written_files.as_slice() else { panic!("{read:?}") };
        assert_eq!((written.path.as_str(), written.size), ("/a", 8));
        assert_eq!(written.seal, read.seal_key.seal(&b"password"[..]).unwrap());
        let mut after = serde_json::to_value(&read).unwrap();
        for name in ["seal_key", "written_files", "request_digest"] {
            after[name] = now[name].clone();
        }
        assert_eq!(after, now);
        // And that once.
        Record::load(&layout).unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(layout.record()).unwrap(), text);
    }

    #[test]
    fn a_rescued_instance_boots_the_rescue_image_and_forgets_nothing_of_its_own() {
        let mut record = record();
        record.layers = vec!["sha256:own".into()];
        record.definition.command = Some(vec!["own".into()]);
        record.definition.environment.insert("A".into(), "own".into());
        let own = record.boot();
        assert_eq!(own.layers, record.layers);
        assert_eq!(*own.definition, record.definition);
        record.rescue = Some(Rescue {
            image_id: Uuid::from_u128(8),
            layers: vec!["sha256:rescue".into()],
            image_config: ImageConfig { cmd: vec!["rescue".into()], ..Default::default() },
            disk_bytes: 1 << 30,
            environment: BTreeMap::from([("B".into(), "rescue".into())]),
        });
        let boot = record.boot();
        assert_eq!(boot.layers, ["sha256:rescue"]);
        assert_eq!(boot.config.cmd, ["rescue"]);
        assert_eq!(boot.definition.command, None);
        assert_eq!(boot.definition.environment.len(), 1);
        assert_eq!(boot.definition.flavor, record.definition.flavor);
        // As records of before have it.
        let mut text = serde_json::to_value(&record).unwrap();
        text.as_object_mut().unwrap().remove("rescue");
        let old: Record = serde_json::from_value(text).unwrap();
        assert_eq!(old.rescue, None);
    }
}
