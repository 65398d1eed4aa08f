//! The command line against a service: the real program, as a person runs it.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use uuid::Uuid;

use crate::support::fake::{FakeBackend, IMAGE};
use crate::{Service, definition};

fn command(service: &Service, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.env("BERTH_SOCKET", &service.socket).args(arguments).stdin(Stdio::null());
    command
}

/// Runs the program to its end, off the test's own thread.
async fn berth(service: &Service, arguments: &[&str]) -> Output {
    let mut command = command(service, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn text(service: &Service, arguments: &[&str]) -> String {
    let output = berth(service, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn complaint(service: &Service, arguments: &[&str]) -> String {
    let output = berth(service, arguments).await;
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn an_instance_by_hand() {
    let service = Service::start();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(definition("web").to_string().as_bytes()).unwrap();
    let file = file.path().to_str().unwrap();
    let id = text(&service, &["create", file]).await.trim().to_owned();
    let other = Uuid::new_v4().to_string();
    text(&service, &["create", file, "--id", &other]).await;
    text(&service, &["start", &id[..8]]).await;

    let table = text(&service, &["list"]).await;
    assert!(table.starts_with("ID "), "{table}");
    let line = table.lines().find(|line| line.starts_with(&id)).unwrap();
    assert!(line.contains("web") && line.contains("RUNNING") && line.contains("64 MiB"), "{line}");
    let list: Value = serde_json::from_str(&text(&service, &["--json", "list"]).await).unwrap();
    assert_eq!(list["instances"].as_array().unwrap().len(), 2);

    let ambiguous = complaint(&service, &["show", "web"]).await;
    assert!(ambiguous.contains(&id) && ambiguous.contains(&other), "{ambiguous}");
    assert!(complaint(&service, &["show", "nothing"]).await.contains("none called \"nothing\""));
    text(&service, &["delete", &other]).await;

    for (action, state) in [
        ("pause", "PAUSED"),
        ("unpause", "RUNNING"),
        ("suspend", "SUSPENDED"),
        ("resume", "RUNNING"),
        ("reboot", "RUNNING"),
        ("stop", "SHUTDOWN"),
    ] {
        text(&service, &[action, "web"]).await;
        let shown = text(&service, &["show", "web"]).await;
        assert!(
            shown.lines().any(|l| l.starts_with("power state") && l.ends_with(state)),
            "{shown}"
        );
    }
    let refused = complaint(&service, &["pause", "web"]).await;
    assert!(refused.contains("not while it is SHUTDOWN"), "{refused}");
    text(&service, &["rescue", "web", &IMAGE.to_string()]).await;
    let shown = text(&service, &["show", "web"]).await;
    assert!(shown.lines().any(|l| l == format!("rescued with   image {IMAGE}")), "{shown}");
    text(&service, &["unrescue", "web"]).await;
    assert!(!text(&service, &["show", "web"]).await.contains("rescued"));
    text(&service, &["stop", "web"]).await;
    let spec = "--extra-spec=quota:cpu_shares=512";
    text(&service, &["resize", "web", "--memory", "128", "--vcpus", "2", spec]).await;
    let shown = text(&service, &["show", "web"]).await;
    assert!(shown.contains("128 MiB") && shown.contains("quota:cpu_shares = 512"), "{shown}");

    text(&service, &["resize", "web", "--memory", "256", "--keep", "--timeout", "5"]).await;
    let shown = text(&service, &["show", "web"]).await;
    let awaits = shown.lines().any(|l| l.starts_with("resize") && l.contains("awaits confirm"));
    assert!(awaits && shown.contains("256 MiB"), "{shown}");
    text(&service, &["resize-revert", "web"]).await;
    let shown = text(&service, &["show", "web"]).await;
    assert!(shown.contains("128 MiB") && !shown.contains("awaits"), "{shown}");
    text(&service, &["resize", "web", "--memory", "256", "--keep"]).await;
    text(&service, &["resize-confirm", "web"]).await;
    let shown = text(&service, &["show", "web"]).await;
    assert!(shown.contains("256 MiB") && !shown.contains("awaits"), "{shown}");
    text(&service, &["delete", "web"]).await;
    assert!(complaint(&service, &["show", &id]).await.contains("none called"));
}

#[tokio::test]
async fn images_by_hand() {
    let service = Service::start();
    let file = tempfile::NamedTempFile::with_suffix(".tar").unwrap();
    let path = file.path().to_str().unwrap();
    let id = text(&service, &["image", "import", path, "--name", "app"]).await;
    let table = text(&service, &["image", "list"]).await;
    assert!(table.lines().any(|l| l.starts_with(id.trim()) && l.contains("app")), "{table}");
    text(&service, &["image", "delete", "app"]).await;
    let found = text(&service, &["image", "inspect", path]).await;
    assert!(found.starts_with("format        rootfs-tar\naccepted      yes\n"), "{found}");
    let found: serde_json::Value =
        serde_json::from_str(&text(&service, &["image", "inspect", path, "--json"]).await).unwrap();
    assert_eq!(found["format"], "rootfs-tar");
    let fault = complaint(&service, &["image", "inspect", "/nowhere/at/all"]).await;
    assert!(fault.contains("there is no such file"), "{fault}");
    let fault = complaint(&service, &["image", "inspect", "glance"]).await;
    assert!(fault.contains("--id"), "{fault}");
    let fault = complaint(&service, &["image", "import", "/nowhere/at/all"]).await;
    assert!(fault.contains("there is no such file"), "{fault}");
    let id = IMAGE.to_string();
    let glance = complaint(&service, &["image", "import", "https://glance", "--id", &id]).await;
    assert!(glance.contains("OS_TOKEN"), "{glance}");
}

#[tokio::test]
async fn what_the_host_and_its_operations_are() {
    let service = Service::start();
    service.running_instance().await;
    assert!(text(&service, &["host"]).await.contains("overlayfs on idmapped layers"));
    assert!(text(&service, &["operations"]).await.contains("instance.start"));
    let top = text(&service, &["top", "--once", "--interval", "1"]).await;
    assert!(top.contains("CPU %") && top.contains("1.0 MiB / 64.0 MiB"), "{top}");
    let description = text(&service, &["openapi"]).await;
    assert_eq!(description, berth::api::document_json());
}

#[tokio::test]
async fn events_are_followed() {
    let service = Service::start();
    let before = service.backend.publish(berth::types::EventKind::Started);
    let mut command = command(&service, &["events", "--after", &(before - 1).to_string()]);
    let mut events = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = events.stdout.take().unwrap();
    let line = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        while !text.ends_with(b"\n") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    });
    let line = line.await.unwrap();
    events.kill().unwrap();
    events.wait().unwrap();
    assert!(line.starts_with(&before.to_string()) && line.contains("started"), "{line}");
}

#[tokio::test]
async fn a_command_gives_its_output_and_its_code() {
    let service = Service::with(FakeBackend::with_host_exec(), |_, _| {});
    let id = service.running_instance().await.to_string();
    let script = "cat; echo \"$A\" >&2; exit 7";
    let mut command =
        command(&service, &["exec", "-e", "A=b c", "-u", "0", &id, "--", "sh", "-c", script]);
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"from outside\xff").unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"from outside\xff");
    assert_eq!(output.stderr, b"b c\n");
    let missing = berth(&service, &["exec", &id, "--", "/no/such/program"]).await;
    assert_eq!(missing.status.code(), Some(125), "not a code of the command's own");
}

#[tokio::test]
async fn a_log_is_written_as_it_is() {
    let service = Service::start();
    let id = service.running_instance().await.to_string();
    let log = berth(&service, &["log", &id]).await;
    assert!(log.stdout.starts_with(b"booting \xff"));
    assert_eq!(berth(&service, &["log", "-n", "2", &id]).await.stdout, b"\r\n");
}

#[test]
fn without_a_service_the_complaint_says_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = |socket: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        let output = command.arg("--socket").arg(socket).arg("list").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let absent = dir.path().join("absent.sock");
    assert!(run(&absent).contains("berth serve"));
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(run(&dead).contains("does not run"));
}

/// A terminal: what the person's side of it is, and the program's.
fn terminal() -> (std::fs::File, std::fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let person = openpt(flags).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let program = ioctl_tiocgptpeer(&person, flags).unwrap();
    (person.into(), program.into())
}

fn read_until(person: &mut std::fs::File, wanted: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(wanted) {
        let mut buffer = [0; 4096];
        let count = person.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[tokio::test]
async fn a_console_takes_the_terminal_and_gives_it_back() {
    use rustix::termios::{LocalModes, tcgetattr};
    let service = Service::start();
    let id = service.running_instance().await.to_string();
    for end in ["key", "signal", "console"] {
        let (mut person, program) = terminal();
        let size = rustix::termios::Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&person, size).unwrap();
        let mut command = command(&service, &["console", "--detach-key", "ctrl-a", &id]);
        let side = || program.try_clone().unwrap();
        command.stdin(side()).stdout(side()).stderr(side());
        let before = tcgetattr(&program).unwrap();
        assert!(before.local_modes.contains(LocalModes::ECHO | LocalModes::ICANON));
        let mut console = command.spawn().unwrap();
        let watched = program.try_clone().unwrap();
        // A terminal whose person has left has no mode to look at.
        let _open = person.try_clone().unwrap();
        tokio::task::spawn_blocking(move || {
            read_until(&mut person, "hello");
            let raw = tcgetattr(&watched).unwrap();
            assert!(!raw.local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON));
            person.write_all(b"typed").unwrap();
            read_until(&mut person, "typed");
            match end {
                "key" => person.write_all(b"\x01").unwrap(),
                "console" => person.write_all(b"\x04").unwrap(),
                _ => {
                    let pid = rustix::process::Pid::from_child(&console);
                    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                }
            }
            let last =
                if end == "console" { "Closed: the console has ended." } else { "Detached." };
            read_until(&mut person, last);
            assert!(console.wait().unwrap().success(), "{end}");
        })
        .await
        .unwrap();
        let after = tcgetattr(&program).unwrap();
        assert_eq!(after.local_modes, before.local_modes, "{end}");
        assert_eq!(service.backend.console_size(), Some((101, 33)), "{end}");
    }
}
