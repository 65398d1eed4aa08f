//! Commands on the image store.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Subcommand;
use reqwest::Method;
use uuid::Uuid;

use super::client::Client;
use super::inspection;
use super::output::{self, Output, Table};
use crate::api::ImageList;
use crate::fault::{Fault, Result, harmless};
use crate::types::{
    Image, ImageFormat, ImageImport, ImageInspect, ImageInspection, ImageRefusal, ImageSource,
    Operation, OperationStatus,
};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the images
    List,
    /// Say what an image would become, and whether it would be refused; nothing is stored
    Inspect {
        /// As of import: a file on the service's host, Glance's address, or `glance`.
        source: String,
        /// Its id in Glance.
        #[arg(long)]
        id: Option<Uuid>,
    },
    /// Bring an image into the store
    Import {
        /// A file on the service's host, or Glance's address, e.g. https://cloud.example:9292;
        /// Glance's token is read from the variable OS_TOKEN. `glance`: with the service's
        /// own credentials, of images.keystone.
        source: String,
        /// Its id: Glance's; for a file without it, a new one.
        #[arg(long)]
        id: Option<Uuid>,
        /// Its name; for a file without it, the file's.
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove images on which no instance stands
    Delete {
        /// Their ids, unique beginnings of them, or their names.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<()> {
    match command {
        Command::List => list(client, output).await,
        Command::Inspect { source, id } => inspect(client, output, &source, id).await,
        Command::Import { source, id, name } => import(client, output, &source, id, name).await,
        Command::Delete { images } => {
            for image in images {
                let id = client.image(&image).await?;
                client.delete(&format!("/v1/images/{id}")).await?;
            }
            Ok(())
        }
    }
}

async fn list(client: &Client, output: Output) -> Result<()> {
    let list: ImageList = client.get("/v1/images").await?;
    output.show(&list, |list| {
        let mut table =
            Table::new(&["ID", "NAME", "FORMAT", "SIZE", "UNPACKED", "LAYERS", "USERS", "AGE"]);
        for image in &list.images {
            table.row([
                image.id.to_string(),
                image.name.clone(),
                format_name(image.format).to_owned(),
                output::bytes(image.size),
                output::bytes(image.unpacked_size),
                image.layers.len().to_string(),
                image.users.len().to_string(),
                output::since(image.created_at),
            ]);
        }
        table
    })
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::DockerArchive => "docker-archive",
        ImageFormat::OciArchive => "oci-archive",
        ImageFormat::RootfsTar => "rootfs-tar",
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
        ImageFormat::Vmdk => "vmdk",
        ImageFormat::Vhd => "vhd",
        ImageFormat::Vhdx => "vhdx",
        ImageFormat::Vdi => "vdi",
    }
}

async fn inspect(client: &Client, output: Output, source: &str, id: Option<Uuid>) -> Result<()> {
    let (_, ImageImport { source, .. }) = read_source(source, id, None)?;
    let request = ImageInspect { id, source, hash: None, size: None, verification: None };
    let found: ImageInspection =
        client.send_json(Method::POST, "/v1/images/inspect", &request).await?;
    if output.is_json() {
        output::json(&found)?;
    } else {
        output::write(inspection::render(&found).as_bytes())?;
    }
    // As an import would end.
    found.refusal.map_or(Ok(()), |ImageRefusal { code, detail }| Err(Fault::new(code, detail)))
}

async fn import(
    client: &Client,
    output: Output,
    source: &str,
    id: Option<Uuid>,
    name: Option<String>,
) -> Result<()> {
    let (id, request) = read_source(source, id, name)?;
    let path = format!("/v1/images/{id}");
    let mut operation = client.begin(&path, &request).await?;
    let watch = format!("/v1/operations/{}?wait=1", operation.id);
    let follow = std::io::stderr().is_terminal() && !output.is_json();
    while matches!(operation.status, OperationStatus::Queued | OperationStatus::Running) {
        operation = client.get(&watch).await?;
        if follow {
            eprint!("\r\x1b[K{}", harmless(&progress(&operation)));
        }
    }
    if follow {
        eprint!("\r\x1b[K");
    }
    if let Some(problem) = &operation.fault {
        return Err(Fault::from(problem));
    }
    if output.is_json() {
        let image: Image = client.get(&path).await?;
        return output::json(&image);
    }
    output::write(format!("{id}\n").as_bytes())
}

fn progress(operation: &Operation) -> String {
    let share = operation.progress.map(|percent| format!(" {percent} %")).unwrap_or_default();
    format!("{}{share}", if operation.stage.is_empty() { "waiting" } else { &operation.stage })
}

fn read_source(
    source: &str,
    id: Option<Uuid>,
    name: Option<String>,
) -> Result<(Uuid, ImageImport)> {
    let (id, name, source) = if source.starts_with("http://") || source.starts_with("https://") {
        let id = id.ok_or_else(|| Fault::invalid("--id", "name the image's id in Glance"))?;
        let token = std::env::var("OS_TOKEN").map_err(|_| {
            Fault::invalid("OS_TOKEN", "put a token into it: openstack token issue -f value -c id")
        })?;
        let (endpoint, token) = (Some(source.trim_end_matches('/').to_owned()), Some(token));
        (id, name.unwrap_or_default(), ImageSource::Glance { endpoint, token, service_token: None })
    } else if source == "glance" {
        let id = id.ok_or_else(|| Fault::invalid("--id", "name the image's id in Glance"))?;
        let own = ImageSource::Glance { endpoint: None, token: None, service_token: None };
        (id, name.unwrap_or_default(), own)
    } else {
        let path = std::path::absolute(PathBuf::from(source))
            .map_err(|e| Fault::invalid("SOURCE", e.to_string()))?;
        let stem = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.or(stem).unwrap_or_default();
        (id.unwrap_or_else(Uuid::new_v4), name, ImageSource::File { path })
    };
    Ok((id, ImageImport { name, source, hash: None, size: None, verification: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let (_, request) = read_source("some/app.tar", None, None).unwrap();
        assert_eq!(request.name, "app.tar");
        let ImageSource::File { path } = request.source else { panic!("no file") };
        assert!(path.is_absolute() && path.ends_with("some/app.tar"));
        for source in ["https://cloud:9292", "glance"] {
            let fault = read_source(source, None, None).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("--id"));
        }
        let (_, request) = read_source("glance", Some(Uuid::nil()), None).unwrap();
        assert!(matches!(request.source, ImageSource::Glance { token: None, .. }));
    }
}
