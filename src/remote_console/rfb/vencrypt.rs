//! VeNCrypt's X509None, version 0.2, as rfbproto describes it and nova-novncproxy speaks it: TLS
//! with certificates of both sides, and no password within.

use std::io;
use std::pin::Pin;

use openssl::ssl::{Ssl, SslAcceptor};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

const VERSION: [u8; 2] = [0, 2];
const X509_NONE: u32 = 260;

/// Goes on over TLS with a client that has chosen the security type.
pub(super) async fn secure(
    mut client: TcpStream,
    acceptor: &SslAcceptor,
) -> io::Result<SslStream<TcpStream>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    client.write_all(&VERSION).await?;
    let mut version = [0; 2];
    client.read_exact(&mut version).await?;
    if version != VERSION {
        client.write_u8(1).await?;
        return Err(invalid("another version of VeNCrypt than 0.2"));
    }
    client.write_all(&[0, 1]).await?;
    client.write_u32(X509_NONE).await?;
    if client.read_u32().await? != X509_NONE {
        client.write_u8(0).await?;
        return Err(invalid("another kind of VeNCrypt than X509None"));
    }
    client.write_u8(1).await?;
    let ssl = Ssl::new(acceptor.context()).map_err(io::Error::other)?;
    let mut client = SslStream::new(ssl, client).map_err(io::Error::other)?;
    Pin::new(&mut client).accept().await.map_err(io::Error::other)?;
    Ok(client)
}
