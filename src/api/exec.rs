//! Commands inside an instance, over a web socket.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, get, web};
use actix_ws::{CloseCode, Session};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tracing::Instrument;
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::blocking;
use super::console::{Size, TerminalMessage};
use super::extract::{Id, Query};
use super::shared::Api;
use super::socket::{self, Incoming, Message};
use crate::fault::FaultKind::*;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::backend::ExecRequest;
use crate::sys::process::children;
use crate::sys::pty;
use crate::telemetry;

/// First byte of a binary frame with standard output.
pub const STDOUT_TAG: u8 = 1;

/// First byte of a binary frame with standard error.
pub const STDERR_TAG: u8 = 2;

/// How long output may pause after the command's end: something that it left
/// behind may hold the pipe open for ever.
const LAST_WORDS: Duration = Duration::from_millis(250);

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config.service(exec);
}

/// What the service says in a text frame when the command has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecMessage {
    /// `{"exit":0}`: its exit code; 128 and the signal's number when one ended it.
    Exit(i32),
}

/// Runs a command inside a running instance, as a web socket. It ends with
/// the connection. Binary frames to the service are its standard input; the
/// text frame `{"eof":true}` ends that. With `tty`, binary frames from the
/// service are the terminal's bytes, and `{"resize":{"cols":80,"rows":24}}`
/// changes its size; without, their first byte is 1 for standard output and 2
/// for standard error. The last frame is the text `{"exit":CODE}`.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("command" = Vec<String>, Query, min_items = 1, style = Form, explode,
            description = "Program and arguments, one each"),
        ("tty" = Option<bool>, Query, description = "Whether it gets a terminal"),
        ("user" = Option<String>, Query,
            description = "`user`, `uid`, `user:group` or `uid:gid`; root when left out"),
        ("env" = Option<Vec<String>>, Query, style = Form, explode,
            description = "Environment, `NAME=value`, one each")
    ),
    responses((status = 101,
        description = "The command's input and output follow as a web socket")),
    extensions(("x-faults" = json!([
        InstanceNotFound, InstanceInvalidState, RuntimeFailed, HostUnsupported
    ])))
)]
#[get("/v1/instances/{id}/exec")]
async fn exec(
    api: web::Data<Api>,
    request: HttpRequest,
    payload: web::Payload,
    Id(id): Id,
    query: Query,
) -> Result<HttpResponse> {
    socket::require_upgrade(&request)?;
    let wanted = read_query(&query)?;
    let tty = wanted.tty;
    let command = blocking(&api, move |backend| backend.exec_command(id, wanted)).await?;
    let running = Running::start(command, tty)?;
    let (response, session, incoming) = socket::accept(&request, payload)?;
    let span = tracing::Span::current();
    actix_web::rt::spawn(
        async move {
            let _open = telemetry::metrics().stream_opened();
            running.attend(&api, incoming, session).await;
        }
        .instrument(span),
    );
    Ok(response)
}

fn read_query(query: &Query) -> Result<ExecRequest> {
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if command.first().is_none_or(String::is_empty) {
        return Err(Fault::invalid("command", "name the program to run: command=PROGRAM"));
    }
    let texts = query.all("command").chain(query.all("env")).chain(query.all("user"));
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(Fault::invalid("command", "no text may have a NUL in it"));
    }
    let mut env = BTreeMap::new();
    for entry in query.all("env") {
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                env.insert(name.to_owned(), value.to_owned())
            }
            _ => return Err(Fault::invalid("env", format!("{entry:?} is not NAME=value"))),
        };
    }
    let user = query.one::<String>("user", "a user")?;
    if user.as_deref() == Some("") {
        return Err(Fault::invalid("user", "is empty; leave it out for root"));
    }
    let tty = query.one("tty", "true or false")?.unwrap_or(false);
    Ok(ExecRequest { command, env, user, tty })
}

type Input = Box<dyn AsyncWrite + Unpin>;
type Output = Box<dyn AsyncRead + Unpin>;

/// A command under way.
struct Running {
    child: Child,
    input: Input,
    /// With the tag of its frames; a terminal's have none.
    outputs: Vec<(Option<u8>, Output)>,
    terminal: Option<OwnedFd>,
}

impl Running {
    fn start(command: std::process::Command, tty: bool) -> Result<Running> {
        let mut command = Command::from(command);
        // A group of its own: a signal to the service's group is not for it.
        command.kill_on_drop(true).process_group(0);
        if tty { Running::on_terminal(command) } else { Running::on_pipes(command) }
    }

    fn on_pipes(mut command: Command) -> Result<Running> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let missing = || Fault::new(FaultKind::Internal, "the command has no pipes");
        let input = Box::new(child.stdin.take().ok_or_else(missing)?);
        let stdout: Output = Box::new(child.stdout.take().ok_or_else(missing)?);
        let stderr: Output = Box::new(child.stderr.take().ok_or_else(missing)?);
        let outputs = vec![(Some(STDOUT_TAG), stdout), (Some(STDERR_TAG), stderr)];
        Ok(Running { child, input, outputs, terminal: None })
    }

    fn on_terminal(mut command: Command) -> Result<Running> {
        let doing = "opening a terminal for the command";
        let (master, peer) = pty::open().or_fault(doing)?;
        command.stdin(peer.try_clone().or_fault(doing)?);
        command.stdout(peer.try_clone().or_fault(doing)?);
        command.stderr(peer);
        let child = spawn(&mut command)?;
        // The command holds the other end of the terminal: as long as it is
        // open here, reading would never end.
        drop(command);
        let flags = fcntl_getfl(&master).or_fault(doing)?;
        fcntl_setfl(&master, flags | OFlags::NONBLOCK).or_fault(doing)?;
        let read = master.try_clone().or_fault(doing)?;
        let write = master.try_clone().or_fault(doing)?;
        // "Pipe" only in name: both work on whatever epoll takes.
        let output = Box::new(pipe::Receiver::from_owned_fd_unchecked(read).or_fault(doing)?);
        let input = Box::new(pipe::Sender::from_owned_fd_unchecked(write).or_fault(doing)?);
        Ok(Running { child, input, outputs: vec![(None, output)], terminal: Some(master) })
    }

    /// Serves the command until it or the connection has ended.
    async fn attend(self, api: &Api, incoming: Incoming, mut session: Session) {
        let Running { mut child, input, outputs, terminal } = self;
        let pid = child.id();
        let (ended, has_ended) = tokio::sync::watch::channel(false);
        let running = async {
            let outputs = outputs
                .into_iter()
                .map(|(tag, output)| forward(output, tag, session.clone(), has_ended.clone()));
            let exit = async {
                let status = child.wait().await;
                ended.send_replace(true);
                status
            };
            tokio::join!(exit, futures_util::future::join_all(outputs)).0
        };
        let feeding = feed(incoming, input, terminal, pid);
        let outcome = tokio::select! {
            status = running => Ok(status),
            fault = feeding => Err(fault),
            _ = socket::keep_alive(session.clone()) => Err(None),
            () = api.stopped() => {
                Err(Some(Fault::new(FaultKind::ServiceUnavailable, "the service is stopping")))
            }
        };
        match outcome {
            Ok(status) => {
                let exit = ExecMessage::Exit(status.map_or(255, exit_code));
                let text = serde_json::to_string(&exit).unwrap_or_default();
                // The peer may be gone: then nobody asks for the code.
                let _ = session.text(text).await;
                socket::close(session, CloseCode::Normal, "the command has ended").await;
            }
            Err(fault) => {
                end(&mut child).await;
                let reason = fault.map_or_else(|| "detached".to_owned(), |f| f.to_string());
                socket::close(session, CloseCode::Away, &reason).await;
            }
        }
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().or_kind(FaultKind::RuntimeFailed, "running the container runtime")
}

/// The exit code as a shell would give it.
fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Sends output on until it ends; after the command's end, until it pauses.
async fn forward(
    mut output: Output,
    tag: Option<u8>,
    mut session: Session,
    mut ended: tokio::sync::watch::Receiver<bool>,
) {
    let head = usize::from(tag.is_some());
    let mut buffer = vec![tag.unwrap_or(0); 32 << 10];
    loop {
        let paused = async {
            // An error means that the command's owner is gone: also an end.
            let _ = ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let count = tokio::select! {
            biased;
            read = output.read(&mut buffer[head..]) => match read {
                Ok(count @ 1..) => count,
                // A terminal whose last user is gone reads as EIO: an end too.
                _ => return,
            },
            () = paused => return,
        };
        if session.binary(buffer[..head + count].to_vec()).await.is_err() {
            return;
        }
    }
}

/// Carries the peer's messages to the command. Ends when the peer does, with
/// the fault if it sent what it must not.
async fn feed(
    mut incoming: Incoming,
    input: Input,
    terminal: Option<OwnedFd>,
    pid: Option<u32>,
) -> Option<Fault> {
    let mut input = Some(input);
    while let Some(message) = incoming.next().await {
        match message {
            Message::Bytes(bytes) => {
                // A command that reads no more is not at fault, nor is the peer.
                if let Some(open) = &mut input
                    && open.write_all(&bytes).await.is_err()
                {
                    input = None;
                }
            }
            Message::Text(text) => match TerminalMessage::parse(&text) {
                Ok(TerminalMessage::Resize(size)) => resize(terminal.as_ref(), size, pid),
                Ok(TerminalMessage::Eof(_)) if terminal.is_none() => input = None,
                // On a terminal the end of input is a character, ^D.
                Ok(TerminalMessage::Eof(_)) => {}
                Err(fault) => return Some(fault),
            },
        }
    }
    None
}

/// Changes the terminal's size and tells the runtime program, which does not
/// have it as its controlling terminal and so gets no signal from the kernel.
fn resize(terminal: Option<&OwnedFd>, size: Size, pid: Option<u32>) {
    let Some(terminal) = terminal else { return };
    if let Err(e) = pty::set_size(terminal.as_fd(), size.cols, size.rows) {
        tracing::debug!(error = %e, "resizing a command's terminal");
    }
    if let Some(pid) = pid.and_then(to_pid) {
        // It may have ended: then nobody draws any more.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::WINCH);
    }
}

/// Ends a command whose client is gone: first what runs inside the instance,
/// the runtime program's children, then the runtime program itself.
async fn end(child: &mut Child) {
    for inside in child.id().map(children).unwrap_or_default() {
        // It may have ended.
        let _ = inside.signal(libc::SIGKILL);
    }
    // It ends by itself when its child has; if not, it is killed.
    if tokio::time::timeout(LAST_WORDS, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn to_pid(pid: u32) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let read = |text: &str| read_query(&Query::parse(text).unwrap());
        let request = read("command=ls&command=-l&command=&tty=true&env=A=b%3Dc&user=0:0").unwrap();
        assert_eq!(request.command, ["ls", "-l", ""]);
        assert_eq!(request.env["A"], "b=c");
        assert_eq!(request.user.as_deref(), Some("0:0"));
        assert!(request.tty);
        for (bad, field) in [
            ("", "command"),
            ("command=", "command"),
            ("command=ls%00", "command"),
            ("command=ls&env=A", "env"),
            ("command=ls&env==b", "env"),
            ("command=ls&tty=maybe", "tty"),
            ("command=ls&user=", "user"),
        ] {
            assert_eq!(read(bad).unwrap_err().field.as_deref(), Some(field), "{bad}");
        }
    }
}
