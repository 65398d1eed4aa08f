//! The console's bytes as they are, as nova-serialproxy carries them.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncWriteExt as _, copy};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::attached::{Attached, attach};
use crate::instance::backend::Backend;

/// Until either side ends. A client that does not read holds up nobody: the monitor
/// leaves out what it would have to keep for it.
pub(super) async fn serve(
    backend: Arc<dyn Backend>,
    id: Uuid,
    mut client: TcpStream,
) -> io::Result<()> {
    let Attached { said, stream, .. } = match attach(backend, id).await? {
        Ok(attached) => attached,
        Err((said, fault)) => {
            client.write_all(&said).await?;
            client.write_all(format!("\r\n[{}]\r\n", fault.detail).as_bytes()).await?;
            return client.shutdown().await;
        }
    };
    client.write_all(&said).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_console, mut to_console) = stream.into_split();
    tokio::select! {
        ended = copy(&mut from_client, &mut to_console) => ended.map(drop),
        ended = copy(&mut from_console, &mut to_client) => ended.map(drop),
    }
}
