//! The beginning of a connection (RFC 6143, 7.1 to 7.3).

use std::io;

use openssl::ssl::SslAcceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use super::messages::Format;
use super::pictures::{HEIGHT, WIDTH};
use super::vencrypt;

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// The security type without any: nova-novncproxy has asked Nova for the token.
const NONE: u8 = 1;
/// The security type of TLS.
const VENCRYPT: u8 = 19;

/// Agrees with a client on a version, on no security, and tells of the screen.
pub(super) async fn agree<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    name: &str,
) -> io::Result<()> {
    client.write_all(VERSION).await?;
    let mut version = [0; 12];
    client.read_exact(&mut version).await?;
    match &version {
        VERSION | b"RFB 003.007\n" => {
            client.write_all(&[1, NONE]).await?;
            if client.read_u8().await? != NONE {
                return refuse(client, "this server has the security type None alone").await;
            }
            // 3.7 has no result where there is no security.
            if &version == VERSION {
                client.write_u32(0).await?;
            }
        }
        b"RFB 003.003\n" => client.write_u32(NONE.into()).await?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no version of RFB")),
    }
    begin(client, name).await
}

/// The same with TLS, or not at all.
pub(super) async fn agree_securely(
    mut client: TcpStream,
    acceptor: &SslAcceptor,
    name: &str,
) -> io::Result<SslStream<TcpStream>> {
    client.write_all(VERSION).await?;
    let mut version = [0; 12];
    client.read_exact(&mut version).await?;
    if !matches!(&version, VERSION | b"RFB 003.007\n") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no version of RFB with VeNCrypt"));
    }
    client.write_all(&[1, VENCRYPT]).await?;
    if client.read_u8().await? != VENCRYPT {
        refuse(&mut client, "this server has the security type VeNCrypt alone").await?;
    }
    let mut client = vencrypt::secure(client, acceptor).await?;
    client.write_u32(0).await?;
    begin(&mut client, name).await?;
    client.flush().await?;
    Ok(client)
}

/// Tells a client that may look of the screen.
async fn begin<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S, name: &str) -> io::Result<()> {
    // Whether others may stay: they may.
    client.read_u8().await?;
    let mut init = Vec::new();
    init.extend(WIDTH.to_be_bytes());
    init.extend(HEIGHT.to_be_bytes());
    init.extend(Format::default().bytes());
    init.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
    init.extend(name.as_bytes());
    client.write_all(&init).await
}

async fn refuse<S: AsyncWrite + Unpin>(client: &mut S, why: &str) -> io::Result<()> {
    client.write_u32(1).await?;
    client.write_u32(u32::try_from(why.len()).unwrap_or(0)).await?;
    client.write_all(why.as_bytes()).await?;
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}
