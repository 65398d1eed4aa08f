//! What of an instance goes to another host: its record, as far as it is not the host's, and
//! its files.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::moved::Arrival;
use super::record::Record;
use crate::console::ConsoleFiles;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::rootfs::{SealKey, WrittenFile};
use crate::store::layout::InstanceLayout;
use crate::sys::ids::IdBlock;
use crate::types::{Definition, ExitStatus, ImageConfig, IncomingFile};

/// Version of [`Export`], and of what two services say to each other.
pub const FORMAT: u32 = 1;

/// What of a record goes along. Ids, CPUs and the host's boot are the host's.
#[derive(Clone, Serialize, Deserialize)]
pub struct Export {
    definition: Definition,
    request_digest: String,
    seal_key: SealKey,
    written_files: Vec<WrittenFile>,
    layers: Vec<String>,
    image_config: ImageConfig,
    root_bytes: u64,
    ephemeral_bytes: u64,
    /// How many ids it has; an earlier version does not say.
    #[serde(default)]
    id_map_size: u32,
    seeded: bool,
    created_at: DateTime<Utc>,
    exit: Option<ExitStatus>,
}

impl Export {
    /// Of a record.
    pub fn of(record: &Record) -> Export {
        let record = record.clone();
        Export {
            definition: record.definition,
            request_digest: record.request_digest,
            seal_key: record.seal_key,
            written_files: record.written_files,
            layers: record.layers,
            image_config: record.image_config,
            root_bytes: record.root_bytes,
            ephemeral_bytes: record.ephemeral_bytes,
            id_map_size: record.id_block.size,
            seeded: record.seeded,
            created_at: record.created_at,
            exit: record.exit,
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).or_fault("describing an instance")
    }

    /// Reads what another service told.
    pub fn from_json(format: u32, value: serde_json::Value) -> Result<Export> {
        if format != FORMAT {
            return Err(Fault::invalid(
                "format",
                format!(
                    "this version of berth takes instances of format {FORMAT}, not {format}: \
                         have both hosts run the same version"
                ),
            ));
        }
        serde_json::from_value(value).map_err(|error| Fault::invalid("instance", error.to_string()))
    }

    /// What is kept of the request that made it.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Digests of its layers, lowest first.
    pub fn layers(&self) -> &[String] {
        &self.layers
    }

    /// Refuses a block in which files of its may have no owner.
    pub fn check_ids(&self, here: IdBlock) -> Result<()> {
        if self.id_map_size <= here.size {
            return Ok(());
        }
        Err(Fault::new(
            FaultKind::ResourcesExhausted,
            format!(
                "the instance has {} ids and would have {} here: set instances.id_map_size of this \
                 host to as many, or take another host",
                self.id_map_size, here.size
            ),
        ))
    }

    /// The record that it has here, all that is the host's as in `planned`.
    pub fn into_record(self, planned: Record, move_id: Uuid) -> Record {
        Record {
            definition: Definition { vifs: planned.definition.vifs, ..self.definition },
            request_digest: self.request_digest,
            seal_key: self.seal_key,
            written_files: self.written_files,
            layers: self.layers,
            image_config: self.image_config,
            root_bytes: self.root_bytes,
            ephemeral_bytes: self.ephemeral_bytes,
            seeded: self.seeded,
            created_at: self.created_at,
            exit: self.exit,
            arrival: Some(Arrival { move_id, at: Utc::now() }),
            ..planned
        }
    }
}

/// Where a file of an instance lies that is moved.
pub fn path_of(layout: &InstanceLayout, file: IncomingFile) -> PathBuf {
    let [first, latest, before] = ConsoleFiles::of(layout).into_paths();
    match file {
        IncomingFile::Root => layout.root_disk(),
        IncomingFile::Ephemeral => layout.ephemeral_disk(),
        IncomingFile::ImageDisk => layout.image_disk_coming(),
        IncomingFile::ConsoleFirst => first,
        IncomingFile::ConsoleLog => latest,
        IncomingFile::ConsoleBefore => before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::record::tests::record;

    #[test]
    fn what_is_the_hosts_stays_and_all_else_goes_along() {
        let source = Record { root_bytes: 7, seeded: true, ..record() };
        let value = Export::of(&source).to_json().unwrap();
        assert!(!value.to_string().contains("id_block") && !value.to_string().contains("boot_id"));
        let mut planned = record();
        planned.id_block.first += 65_536;
        planned.pinned_cpus = Some(vec![3]);
        let export = Export::from_json(FORMAT, value.clone()).unwrap();
        let there = export.into_record(planned.clone(), Uuid::from_u128(9));
        assert_eq!((there.id_block, &there.pinned_cpus), (planned.id_block, &planned.pinned_cpus));
        assert_eq!((there.root_bytes, there.seeded), (7, true));
        assert_eq!(there.request_digest, source.request_digest);
        assert_eq!(there.definition, source.definition);
        assert!(there.boot_id.is_none() && there.arrival.is_some());
        let fault = Export::from_json(FORMAT + 1, value).err().unwrap();
        assert_eq!(fault.field.as_deref(), Some("format"));
        assert!(Export::from_json(FORMAT, serde_json::json!({})).is_err());
    }
}
