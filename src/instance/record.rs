//! The durable record of an instance: what was asked for, and what an
//! operator of this host decided about it (ids, CPUs).
//!
//! The record's existence is the instance's existence. What no record owns is
//! rubbish and is removed at the next start of the service.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::{atomic, layout::InstanceLayout};
use crate::sys::ids::IdBlock;
use crate::types::{ExitStatus, Flavor, ImageConfig, InstanceCreate, Problem};

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
    pub definition: Cow<'a, InstanceCreate>,
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
    /// SHA-256 of the body that created it: the same body again is the same instance.
    pub request_digest: String,
    /// The definition, with later changes of flavor and interfaces.
    pub definition: InstanceCreate,
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
        request_digest: String,
        definition: InstanceCreate,
        id_block: IdBlock,
        pinned_cpus: Option<Vec<u32>>,
    ) -> Record {
        Record {
            schema: SCHEMA,
            generation: 0,
            id,
            request_digest,
            definition,
            id_block,
            pinned_cpus,
            layers: vec![],
            image_config: ImageConfig::default(),
            root_bytes: 0,
            ephemeral_bytes: 0,
            rescue: None,
            desired: Desired::Stopped,
            frozen: None,
            quiesced: false,
            resize: None,
            seeded: false,
            boot_id: None,
            created_at: Utc::now(),
            started_at: None,
            exit: None,
            guest_reboots: 0,
            fault: None,
        }
    }

    /// Reads an instance's record; `None` when there is none.
    pub fn load(layout: &InstanceLayout) -> Result<Option<Record>> {
        let path = layout.record();
        let Some(record) = atomic::read_json::<Record>(&path)? else { return Ok(None) };
        if record.schema != SCHEMA {
            return Err(Fault::new(
                FaultKind::Internal,
                format!(
                    "{} has schema {}, this version of berth reads {SCHEMA}: \
                     run the version that wrote it",
                    path.display(),
                    record.schema
                ),
            ));
        }
        Ok(Some(record))
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
                definition: Cow::Owned(InstanceCreate {
                    command: None,
                    environment: rescue.environment.clone(),
                    ..self.definition.clone()
                }),
            },
        }
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
        let record = Record::new(Uuid::from_u128(1), digest, definition, block, None);
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
