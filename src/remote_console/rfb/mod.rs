//! An RFB server (RFC 6143) whose screen is the console's text, as nova-novncproxy carries it.
//!
//! * [`handshake`] agrees on the version and the security type, which [`vencrypt`] may be.
//! * [`messages`] are what a client says, and how it wants its pixels.
//! * [`screen`] is the terminal that the console writes to, and what of it changed.
//! * [`glyphs`] are its characters as pixels.
//! * [`keys`] turns keys into what a terminal's keyboard sends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openssl::ssl::SslAcceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use self::keys::Keys;
use self::messages::{Message, Pixels};
use self::screen::{COLUMNS, ROWS, Screen};
use super::attached::attach;
use crate::instance::backend::Backend;

mod glyphs;
mod handshake;
mod keys;
mod messages;
mod pictures;
mod screen;
mod vencrypt;

/// How long a client may take to agree.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The least between two updates: 25 a second.
const BETWEEN_UPDATES: Duration = Duration::from_millis(40);
/// How often an instance that does not run is looked for.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);

/// Until the client ends. While the instance does not run, its last screen stays.
pub(super) async fn serve(
    backend: Arc<dyn Backend>,
    id: Uuid,
    mut client: TcpStream,
    acceptor: Option<SslAcceptor>,
) -> io::Result<()> {
    let name = backend.instance(id).map(|instance| instance.definition.name).unwrap_or_default();
    let Some(acceptor) = acceptor else {
        tokio::time::timeout(HANDSHAKE, handshake::agree(&mut client, &name)).await??;
        return Session::new(backend, id, client).run().await;
    };
    let agreed = handshake::agree_securely(client, &acceptor, &name);
    let client = tokio::time::timeout(HANDSHAKE, agreed).await??;
    Session::new(backend, id, client).run().await
}

/// One client.
struct Session<S> {
    backend: Arc<dyn Backend>,
    id: Uuid,
    client: WriteHalf<S>,
    messages: mpsc::Receiver<Message>,
    /// Reads messages, and ends with this.
    _reader: JoinSet<()>,
    console: Option<UnixStream>,
    next_attempt: Instant,
    screen: Screen,
    keys: Keys,
    pixels: Pixels,
    /// Whether it waits for an update.
    asked: bool,
    next_update: Instant,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> Session<S> {
    fn new(backend: Arc<dyn Backend>, id: Uuid, client: S) -> Session<S> {
        let (mut from_client, client) = tokio::io::split(client);
        // Read beside the rest: half a message must not be lost to something more urgent.
        let (tell, messages) = mpsc::channel(16);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            while let Ok(message) = Message::read(&mut from_client).await {
                if tell.send(message).await.is_err() {
                    return;
                }
            }
        });
        let now = Instant::now();
        Session {
            backend,
            id,
            client,
            messages,
            _reader: reader,
            console: None,
            next_attempt: now,
            screen: Screen::new(),
            keys: Keys::default(),
            pixels: Pixels::default(),
            asked: false,
            next_update: now,
        }
    }

    async fn run(mut self) -> io::Result<()> {
        let mut output = vec![0; 32 << 10];
        loop {
            let due = self.asked && self.screen.is_changed();
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(message) => self.hear(message),
                    None => return Ok(()),
                },
                count = read(self.console.as_mut(), &mut output) => match count {
                    Ok(count @ 1..) => {
                        let answer = self.screen.write(&output[..count]);
                        self.type_in(&answer);
                    }
                    _ => self.console = None,
                },
                () = tokio::time::sleep_until(self.next_attempt), if self.console.is_none() => {
                    self.attach().await?;
                }
                () = tokio::time::sleep_until(self.next_update), if due => self.update().await?,
            }
        }
    }

    async fn attach(&mut self) -> io::Result<()> {
        self.next_attempt = Instant::now() + BETWEEN_ATTEMPTS;
        match attach(self.backend.clone(), self.id).await? {
            Ok(attached) => {
                self.screen.replay(&attached.said);
                self.console = Some(attached.stream);
                let resized = tokio::task::spawn_blocking(move || (attached.resize)(COLUMNS, ROWS));
                let _ = resized.await;
            }
            Err((said, fault)) => {
                self.screen.replay(&said);
                self.screen.write(format!("\r\n[{}]\r\n", fault.detail).as_bytes());
            }
        }
        Ok(())
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::PixelFormat(format) => self.pixels.format = format,
            Message::Encodings(encodings) => self.pixels.choose(&encodings),
            Message::Update { incremental } => {
                self.asked = true;
                if !incremental {
                    self.screen.forget();
                }
            }
            Message::Key { down, keysym } => {
                let typed = self.keys.press(down, keysym, self.screen.application_cursor());
                self.type_in(&typed);
            }
            Message::Ignored => {}
        }
    }

    /// What the instance does not take, as nobody reads there, is lost, as on a real terminal.
    fn type_in(&mut self, bytes: &[u8]) {
        if let Some(console) = self.console.as_ref().filter(|_| !bytes.is_empty()) {
            let _ = console.try_write(bytes);
        }
    }

    async fn update(&mut self) -> io::Result<()> {
        let update = self.pixels.update(&self.screen.changes());
        self.asked = false;
        self.next_update = Instant::now() + BETWEEN_UPDATES;
        self.client.write_all(&update).await?;
        self.client.flush().await
    }
}

async fn read(console: Option<&mut UnixStream>, buffer: &mut [u8]) -> io::Result<usize> {
    match console {
        Some(console) => console.read(buffer).await,
        None => std::future::pending().await,
    }
}
