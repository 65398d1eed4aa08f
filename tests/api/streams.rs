//! Event streams, consoles and commands.

use berth::api::{STDERR_TAG, STDOUT_TAG};
use berth::types::EventKind;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::Service;
use crate::support::fake::FakeBackend;

/// Reads an event stream's blocks.
struct Events {
    response: reqwest::Response,
    text: String,
}

impl Events {
    async fn open(service: &Service, query: &str, last: Option<u64>) -> Events {
        let mut request = service.request("GET", &format!("/v1/events{query}"));
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last.to_string());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { response, text: String::new() }
    }

    /// The next event's id, kind and data; `None` at the stream's end.
    async fn next(&mut self) -> Option<(u64, String, Value)> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    block.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned)
                };
                if let Some(id) = field("id: ") {
                    let data = serde_json::from_str(&field("data: ").unwrap()).unwrap();
                    return Some((id.parse().unwrap(), field("event: ").unwrap(), data));
                }
                assert!(block.starts_with(':'), "neither event nor comment: {block}");
            }
            let chunk = self.response.chunk().await.unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test]
async fn events_resume_after_a_break() {
    let service = Service::start();
    let first = service.backend.publish(EventKind::Started);
    let mut live = Events::open(&service, "", None).await;
    let id = service.running_instance().await;
    let (created, kind, data) = live.next().await.unwrap();
    assert_eq!((created, kind.as_str()), (first + 1, "created"), "the past is not sent unasked");
    assert_eq!(data["instance_id"], id.to_string());
    assert_eq!(data["sequence"], created);
    assert!(data["request_id"].as_str().unwrap().starts_with("req-"));
    assert_eq!(live.next().await.unwrap().1, "started");
    drop(live);

    let mut resumed = Events::open(&service, "", Some(first)).await;
    assert_eq!(resumed.next().await.unwrap().0, created);
    assert_eq!(resumed.next().await.unwrap().1, "started");
    service.backend.publish(EventKind::GuestRebooted);
    let (last, kind, _) = resumed.next().await.unwrap();
    assert_eq!((last, kind.as_str()), (first + 3, "guest_rebooted"));

    let query = format!("?after={}", first + 1);
    let mut after = Events::open(&service, &query, None).await;
    assert_eq!(after.next().await.unwrap().0, first + 2);
    let mut header_wins = Events::open(&service, &query, Some(first + 2)).await;
    assert_eq!(header_wins.next().await.unwrap().0, first + 3);
}

#[tokio::test]
async fn a_stop_ends_streams_at_once_and_waits_for_work() {
    let mut service = Service::start();
    let id = service.running_instance().await;
    let mut events = Events::open(&service, "", None).await;
    let mut console = connect(&service, &format!("/v1/instances/{id}/console")).await;
    assert_eq!(next_bytes(&mut console).await, b"hello\n");
    service.backend.hold();
    let stop = service.request("POST", &format!("/v1/instances/{id}/stop"));
    let stop = tokio::spawn(stop.send());
    while service.backend_unfinished() == 0 {
        tokio::task::yield_now().await;
    }
    service.stop();
    assert!(events.next().await.is_none(), "the stream ended");
    assert!(matches!(console.next().await, Some(Ok(Message::Close(_)))));
    service.backend.release();
    assert_eq!(stop.await.unwrap().unwrap().status(), 200, "work under way was answered");
    tokio::task::spawn_blocking(move || {
        service.join().unwrap();
        assert!(!service.socket.exists());
    })
    .await
    .unwrap();
}

impl Service {
    fn backend_unfinished(&self) -> usize {
        use berth::instance::backend::Backend;
        self.backend.unfinished_operations().len()
    }
}

type Socket = WebSocketStream<UnixStream>;

async fn connect(service: &Service, path: &str) -> Socket {
    let stream = UnixStream::connect(&service.socket).await.unwrap();
    let address = format!("ws://berth{path}");
    tokio_tungstenite::client_async(address, stream).await.unwrap().0
}

async fn next_bytes(socket: &mut Socket) -> Vec<u8> {
    match socket.next().await.unwrap().unwrap() {
        Message::Binary(bytes) => bytes.to_vec(),
        other => panic!("no bytes but {other:?}"),
    }
}

#[tokio::test]
async fn a_console_carries_bytes_and_sizes() {
    let service = Service::start();
    let id = service.running_instance().await;
    let mut console = connect(&service, &format!("/v1/instances/{id}/console")).await;
    assert_eq!(next_bytes(&mut console).await, b"hello\n");
    let resize = json!({"resize": {"cols": 132, "rows": 43}}).to_string();
    console.send(Message::text(resize)).await.unwrap();
    console.send(Message::binary(&b"\xff\x00echo"[..])).await.unwrap();
    assert_eq!(next_bytes(&mut console).await, b"\xff\x00echo");
    assert_eq!(service.backend.console_size(), Some((132, 43)));
    // The console's end closes the socket, with a reason.
    console.send(Message::binary(&b"\x04"[..])).await.unwrap();
    let closed = console.next().await.unwrap().unwrap();
    assert!(matches!(&closed, Message::Close(Some(f)) if f.reason.contains("ended")), "{closed:?}");
}

#[tokio::test]
async fn a_console_refuses_what_it_does_not_understand() {
    let service = Service::start();
    let id = service.running_instance().await;
    for text in ["{", r#"{"resize":{"cols":0,"rows":1}}"#, r#"{"eof":true}"#] {
        let mut console = connect(&service, &format!("/v1/instances/{id}/console")).await;
        next_bytes(&mut console).await;
        console.send(Message::text(text)).await.unwrap();
        let closed = console.next().await.unwrap().unwrap();
        let Message::Close(Some(frame)) = closed else { panic!("{closed:?}") };
        assert!(frame.reason.contains("invalid-input"), "{}", frame.reason);
    }
}

/// Everything that a command's socket says: standard output, error, exit code.
async fn drain(mut socket: Socket) -> (Vec<u8>, Vec<u8>, Option<i64>) {
    let (mut out, mut err, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) if bytes[0] == STDOUT_TAG => out.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) if bytes[0] == STDERR_TAG => err.extend_from_slice(&bytes[1..]),
            Message::Text(text) => {
                exit = serde_json::from_str::<Value>(&text).unwrap()["exit"].as_i64();
            }
            _ => {}
        }
    }
    (out, err, exit)
}

#[tokio::test]
async fn a_command_has_input_output_and_an_exit_code() {
    let service = Service::with(FakeBackend::with_host_exec(), |_, _| {});
    let id = service.running_instance().await;
    let script = "cat%3B%20echo%20%24X%20%3E%262%3B%20exit%207"; // cat; echo $X >&2; exit 7
    let path =
        format!("/v1/instances/{id}/exec?command=sh&command=-c&command={script}&env=X=why&user=0");
    let mut socket = connect(&service, &path).await;
    let input = vec![b'x'; 300_000];
    for chunk in input.chunks(50_000) {
        socket.send(Message::binary(chunk.to_vec())).await.unwrap();
    }
    socket.send(Message::text(r#"{"eof":true}"#)).await.unwrap();
    let (out, err, exit) = drain(socket).await;
    assert_eq!(out.len(), input.len());
    assert_eq!((err.as_slice(), exit), (&b"why\n"[..], Some(7)));
    assert_eq!(service.backend.exec_request().unwrap().user.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_command_ended_by_a_signal_and_one_that_leaves_something_behind() {
    let service = Service::with(FakeBackend::with_host_exec(), |_, _| {});
    let id = service.running_instance().await;
    let run = async |script: &str| {
        let path = format!("/v1/instances/{id}/exec?command=sh&command=-c&command={script}");
        drain(connect(&service, &path).await).await
    };
    assert_eq!(run("kill%20-9%20%24%24").await.2, Some(137));
    // The pipe stays open in the sleeper's hands; the answer comes all the same.
    let (out, _, exit) = run("sleep%2030%20%26%20echo%20%24%21").await;
    assert_eq!(exit, Some(0));
    let sleeper: i32 = String::from_utf8(out).unwrap().trim().parse().unwrap();
    let sleeper = rustix::process::Pid::from_raw(sleeper).unwrap();
    rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_command_on_a_terminal_sees_its_size() {
    let service = Service::with(FakeBackend::with_host_exec(), |_, _| {});
    let id = service.running_instance().await;
    // read x; tty -s && stty size
    let script = "read%20x%3B%20tty%20-s%20%26%26%20stty%20size";
    let path = format!("/v1/instances/{id}/exec?tty=true&command=sh&command=-c&command={script}");
    let mut socket = connect(&service, &path).await;
    socket.send(Message::text(r#"{"resize":{"cols":101,"rows":33}}"#)).await.unwrap();
    socket.send(Message::binary(&b"go\n"[..])).await.unwrap();
    let (mut text, mut exit) = (Vec::new(), None);
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => text.extend_from_slice(&bytes),
            Message::Text(json) => exit = Some(json.to_string()),
            _ => {}
        }
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("33 101"), "{text:?}");
    assert_eq!(exit.as_deref(), Some(r#"{"exit":0}"#));
}

#[tokio::test]
async fn a_command_ends_with_its_client() {
    let service = Service::with(FakeBackend::with_host_exec(), |_, _| {});
    let id = service.running_instance().await;
    // The shell stands for the runtime program, its child for what runs inside.
    let script = "sleep%20600%20%26%20echo%20%24%21%3B%20wait";
    let path = format!("/v1/instances/{id}/exec?command=sh&command=-c&command={script}");
    let mut socket = connect(&service, &path).await;
    let bytes = next_bytes(&mut socket).await;
    let inside: i32 = String::from_utf8(bytes[1..].to_vec()).unwrap().trim().parse().unwrap();
    let alive = || std::path::Path::new(&format!("/proc/{inside}/exe")).exists();
    assert!(alive());
    drop(socket);
    while alive() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
