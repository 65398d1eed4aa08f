//! Commands on instances' volumes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::client::Client;
use super::output::{self, Output, Table};
use crate::api::VolumeList;
use crate::fault::{Fault, Result};
use crate::types::{Volume, VolumeAttach, VolumeSource, VolumeStatus};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the volumes of an instance
    List {
        /// The instance: its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Give an instance a volume, also while it runs
    Attach(AttachOptions),
    /// Take a volume away from an instance; nothing inside can use it any more
    Detach {
        /// The instance: its id, a unique beginning of it, or its name.
        instance: String,
        /// The volume: its id or a unique beginning of it, or its name inside, as vdb.
        volume: String,
        /// Take it from programs that have it open, too: they are killed.
        #[arg(long)]
        force: bool,
    },
    /// Have a volume be as large as its file or block device has become
    Extend {
        /// The instance: its id, a unique beginning of it, or its name.
        instance: String,
        /// The volume: its id or a unique beginning of it, or its name inside, as vdb.
        volume: String,
    },
}

#[derive(Args)]
pub(super) struct AttachOptions {
    /// The instance: its id, a unique beginning of it, or its name.
    instance: String,
    /// A block device or a file on the service's host.
    source: PathBuf,
    /// The volume's id; without it, a new one.
    #[arg(long)]
    id: Option<Uuid>,
    /// Its name inside, as vdc; without it, the first that is free.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Its serial number; without it, its id.
    #[arg(long)]
    serial: Option<String>,
    /// The instance may only read it.
    #[arg(long)]
    read_only: bool,
    /// Other instances may have the same block device at the same time.
    #[arg(long)]
    multiattach: bool,
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<()> {
    match command {
        Command::List { instance } => {
            let path = path(client, &instance).await?;
            output.show(&client.get::<VolumeList>(&path).await?, table)
        }
        Command::Attach(options) => attach(client, output, options).await,
        Command::Detach { instance, volume, force } => {
            let path = path_of(client, &instance, &volume).await?;
            client.delete(&format!("{path}{}", if force { "?force=true" } else { "" })).await
        }
        Command::Extend { instance, volume } => {
            let path = path_of(client, &instance, &volume).await?;
            let path = format!("{path}/extend");
            let volume: Volume = client.send_json(Method::POST, &path, &json!({})).await?;
            if output.is_json() { output::json(&volume) } else { Ok(()) }
        }
    }
}

async fn path(client: &Client, instance: &str) -> Result<String> {
    Ok(format!("/v1/instances/{}/volumes", client.instance(instance).await?))
}

async fn path_of(client: &Client, instance: &str, wanted: &str) -> Result<String> {
    let path = path(client, instance).await?;
    let list: VolumeList = client.get(&path).await?;
    let fits = |volume: &&Volume| {
        volume.id.to_string().starts_with(wanted)
            || volume.device.strip_prefix("/dev/").is_some_and(|name| name == wanted)
            || volume.device == wanted
    };
    let mut found = list.volumes.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(volume), None) if !wanted.is_empty() => Ok(format!("{path}/{}", volume.id)),
        (None, _) => {
            Err(Fault::invalid("VOLUME", format!("the instance has no volume {wanted:?}")))
        }
        _ => Err(Fault::invalid("VOLUME", format!("several volumes begin with {wanted:?}"))),
    }
}

async fn attach(client: &Client, output: Output, options: AttachOptions) -> Result<()> {
    // The service is on this host, and knows nothing of this program's directory.
    let path = std::path::absolute(&options.source)
        .map_err(|e| Fault::invalid("SOURCE", format!("{}: {e}", options.source.display())))?;
    let block = std::fs::metadata(&path).is_ok_and(|found| {
        use std::os::unix::fs::FileTypeExt;
        found.file_type().is_block_device()
    });
    let source = if block { VolumeSource::Block { path } } else { VolumeSource::File { path } };
    let wanted = VolumeAttach {
        device: options.device,
        source,
        serial: options.serial,
        read_only: options.read_only,
        multiattach: options.multiattach,
    };
    let id = options.id.unwrap_or_else(Uuid::new_v4);
    let path = format!("{}/{id}", self::path(client, &options.instance).await?);
    let volume: Volume = client.send_json(Method::PUT, &path, &wanted).await?;
    if output.is_json() {
        output::json(&volume)
    } else {
        output::write(format!("{} {}\n", volume.id, volume.device).as_bytes())
    }
}

fn table(list: &VolumeList) -> Table {
    let mut table = Table::new(&["ID", "DEVICE", "SIZE", "MODE", "STATUS", "SOURCE"]);
    for volume in &list.volumes {
        table.row([
            volume.id.to_string(),
            volume.device.clone(),
            output::bytes(volume.bytes),
            mode(volume),
            match volume.status {
                VolumeStatus::Attached => "attached".to_owned(),
                VolumeStatus::Detaching => "detaching".to_owned(),
            },
            output::told(&volume.source.path().display().to_string()),
        ]);
    }
    table
}

fn mode(volume: &Volume) -> String {
    let access = if volume.read_only { "ro" } else { "rw" };
    let shared = if volume.multiattach { ",shared" } else { "" };
    format!("{access}{shared}")
}
