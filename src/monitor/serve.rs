//! The monitor's loop: one thread that waits for the console, for clients and
//! for the end of its children.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::console::{ConsoleFiles, ConsoleLog};
use crate::fault::{Fault, FaultKind, Result};
use crate::runtime::disks::Disk;
use crate::runtime::lxcfs;
use crate::store::atomic;
use crate::sys::process::{ChildSetup, Ended, ProcessId, reap};
use crate::types::ExitStatus;

use super::container::{self, Container, Idle};
use super::log::log;
use super::memory::Memory;
use super::network;
use super::peer::{Peer, Purpose};
use super::protocol::{
    Answer, ExitAction, ExitKind, ExitRecord, Message, MonitorStatus, Phase, Request, line,
};
use super::spec::MonitorSpec;
use super::throttle::{LOOK, Throttle};

/// Most that is read from the console before clients get their turn, bytes.
const TURN: usize = 256 * 1024;

/// Most that goes to the log and to clients in one piece, bytes.
const PIECE: usize = 16 * 1024;

/// A guest that reboots sooner than this after its start waits for the rest of it,
/// so that one that only reboots does not take a CPU of the host.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// How often the end is written down again when the disk is full.
const RETRY: Duration = Duration::from_secs(5);

/// How long clients may take to read their last lines.
const FAREWELL: Duration = Duration::from_secs(2);

/// A client beyond these is turned away.
const PEERS: usize = 64;

/// The monitor at work.
pub(super) struct Server {
    spec: MonitorSpec,
    own: ProcessId,
    setup: ChildSetup,
    signals: SignalFd,
    listener: UnixListener,
    container: Option<Container>,
    log: ConsoleLog,
    throttle: Throttle,
    peers: Vec<Peer>,
    phase: Phase,
    started: Instant,
    on_exit: ExitAction,
    guest_reboots: u32,
    exit: Option<ExitRecord>,
    /// The end is to be told, but could not be written yet.
    unwritten: bool,
}

impl Server {
    pub fn new(
        spec: MonitorSpec,
        own: ProcessId,
        setup: ChildSetup,
        signals: SignalFd,
        listener: UnixListener,
        container: Container,
    ) -> Result<Server> {
        let log = ConsoleLog::open(ConsoleFiles::of(&spec.layout()), spec.console_log_bytes)
            .inspect_err(|_| {
                let _ = container::delete(&spec);
            })?;
        Ok(Server {
            spec,
            own,
            setup,
            signals,
            listener,
            container: Some(container),
            log,
            throttle: Throttle::new(Instant::now()),
            peers: Vec::new(),
            phase: Phase::Created,
            started: Instant::now(),
            on_exit: ExitAction::Guest,
            guest_reboots: 0,
            exit: None,
            unwritten: false,
        })
    }

    /// How things are.
    pub fn status(&self) -> MonitorStatus {
        MonitorStatus {
            monitor: self.own,
            init: self.container.as_ref().map(|c| c.init),
            phase: self.phase,
            guest_reboots: self.guest_reboots,
            on_exit: self.on_exit,
            exit: self.exit.clone(),
        }
    }

    /// Serves until the instance has ended and that is written down.
    pub fn serve(&mut self) {
        while self.phase != Phase::Ended || self.unwritten {
            let ready = self.wait();
            if ready.children {
                self.reap();
            }
            if ready.console {
                self.pump(Some(TURN.min(self.throttle.left())));
            }
            if ready.idle {
                let lines = self.container.iter_mut().flat_map(|container| &mut container.idle);
                let drained = lines.map(Idle::drain).sum();
                self.throttle.took(drained);
            }
            if ready.memory {
                self.look_after_memory();
            }
            if ready.listener {
                self.accept();
            }
            self.serve_peers();
            if self.unwritten {
                self.write_exit();
            }
        }
        self.leave();
    }

    fn wait(&mut self) -> Ready {
        let pause = self.throttle.wait(Instant::now());
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        // A client from whom nothing is taken now is left out: the poll would
        // report its hang-up again and again.
        let flagged = self.peers.iter().map(|peer| (peer, peer_flags(peer)));
        let waited = flagged.filter(|(_, flags)| !flags.is_empty());
        fds.extend(waited.map(|(peer, flags)| PollFd::new(&peer.stream, flags)));
        let before_idle = fds.len();
        let console = self.console_flags(pause.is_none());
        // Held up with the console: a flood there would cost as much.
        let idle = self.container.iter().filter(|_| pause.is_none()).flat_map(|c| &c.idle);
        fds.extend(idle.map(|line| PollFd::from_borrowed_fd(line.as_fd(), PollFlags::IN)));
        let after_idle = fds.len();
        let polled = self.container.as_ref().filter(|_| !console.is_empty());
        fds.extend(polled.map(|c| PollFd::from_borrowed_fd(c.console.as_fd(), console)));
        let before_memory = fds.len();
        let memory = self.container.as_ref().map(|container| &container.memory);
        let look = memory.and_then(|memory| memory.next_look(Instant::now()));
        // While a look is due, what the kernel tells meanwhile waits for it.
        let watched = memory.filter(|_| look.is_none());
        fds.extend(watched.and_then(Memory::as_poll));
        let after_memory = fds.len();
        let retry = self.unwritten.then_some(RETRY);
        let timeout = retry.into_iter().chain(pause).chain(look).min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // An interrupted poll is a turn in which nothing is ready.
        let _ = poll(&mut fds, timeout.as_ref());
        let ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        Ready {
            children: ready(0),
            listener: ready(1),
            console: polled.is_some() && pause.is_none() && ready(before_memory - 1),
            idle: (before_idle..after_idle).any(ready),
            memory: look.is_some_and(|look| look.is_zero())
                || (before_memory..after_memory).any(ready),
        }
    }

    /// What is wanted of the console; what is typed never waits for what it says.
    fn console_flags(&self, read: bool) -> PollFlags {
        let typed = self.peers.iter().any(|p| p.purpose == Purpose::Console && !p.input.is_empty());
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, read);
        flags.set(PollFlags::OUT, typed);
        flags
    }

    /// Moves console output to the log and to clients: what is there, at most `limit` bytes;
    /// without a limit all that still comes.
    fn pump(&mut self, limit: Option<usize>) {
        let mut buffer = [0; PIECE];
        let mut moved = 0;
        let mut more = true;
        while more && limit.is_none_or(|limit| moved < limit) {
            let most = limit.map_or(PIECE, |limit| PIECE.min(limit - moved));
            let mut filled = 0;
            while more
                && filled < most
                && let Some(n) =
                    self.container.as_mut().and_then(|c| c.console.read(&mut buffer[filled..most]))
            {
                filled += n;
                // Whatever trickles in meanwhile is the next look's: it would cost a call each.
                more = limit.is_none() || n as u64 >= LOOK;
            }
            if filled == 0 {
                break;
            }
            self.log.write(&buffer[..filled]);
            for peer in self.peers.iter_mut().filter(|p| p.purpose == Purpose::Console) {
                peer.send_console(&buffer[..filled]);
            }
            moved += filled;
        }
        self.throttle.took(moved);
        if self.spec.init.is_some()
            && let Some(container) = &self.container
        {
            container.console.free_from(container.init);
        }
    }

    /// The kernel looks for memory, or has found some.
    fn look_after_memory(&mut self) {
        let Some(container) = &mut self.container else { return };
        container.memory.spare(container.init);
        let now = Instant::now();
        container.memory.look(now);
        if container.memory.is_to_tell(now) {
            self.tell_of_kills();
        }
    }

    fn tell_of_kills(&mut self) {
        let Some(container) = &self.container else { return };
        let kills = container.memory.kills();
        let word = if kills == 1 { "process" } else { "processes" };
        let note = format!("\r\n[out of memory: {kills} {word} killed since the boot]\r\n");
        self.show(&note);
        self.tell(&Message::OutOfMemory { kills });
    }

    /// Writes to the console and its log what the instance did not.
    fn show(&mut self, note: &str) {
        self.log.write(note.as_bytes());
        for peer in self.peers.iter_mut().filter(|p| p.purpose == Purpose::Console) {
            peer.send_console(note.as_bytes());
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.peers.len() >= PEERS {
                log("a client was turned away: too many are connected");
            } else if let Ok(peer) = Peer::new(stream) {
                self.peers.push(peer);
            }
        }
    }

    fn serve_peers(&mut self) {
        for index in 0..self.peers.len() {
            self.peers[index].flush();
            self.peers[index].receive();
            while let Some(request) = self.peers[index].take_line() {
                let answer = self.answer(index, &request);
                self.peers[index].send_line(&line(&answer));
                self.take_purpose(index, &request);
            }
            self.type_input(index);
        }
        // What a client typed before it went is typed all the same.
        self.peers.retain(|peer| !peer.gone);
    }

    fn answer(&mut self, index: usize, request: &[u8]) -> Answer {
        match serde_json::from_slice(request) {
            Ok(request) => match self.handle(request) {
                Ok(()) => Answer::Done(self.status()),
                Err(fault) => Answer::from(fault),
            },
            Err(e) => {
                self.peers[index].gone = true;
                Answer::from(Fault::invalid("op", e.to_string()))
            }
        }
    }

    /// After its answer, not before, a connection becomes a stream.
    fn take_purpose(&mut self, index: usize, request: &[u8]) {
        let purpose = match serde_json::from_slice(request) {
            Ok(Request::Subscribe) => Purpose::Subscriber,
            Ok(Request::Attach { .. }) if self.container.is_some() => Purpose::Console,
            _ => return,
        };
        self.peers[index].purpose = purpose;
    }

    fn handle(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Status | Request::Subscribe => Ok(()),
            Request::Start => self.start(),
            Request::OnExit { action } => {
                self.on_exit = action;
                Ok(())
            }
            Request::Plan { plan } => {
                self.spec.plan = plan;
                Ok(())
            }
            Request::Disks { disks } => self.change_disks(disks),
            Request::Signal { signal } => self.signal(signal),
            Request::Note { text } => {
                self.show(&text);
                Ok(())
            }
            Request::Attach { columns, rows } if columns == 0 || rows == 0 => {
                self.container().map(drop)
            }
            Request::Attach { columns, rows } | Request::Resize { columns, rows } => {
                self.container()?.console.resize(columns, rows)
            }
            Request::Quit => {
                self.on_exit = ExitAction::End;
                if self.container.is_some() { self.signal(libc::SIGKILL) } else { Ok(()) }
            }
        }
    }

    fn change_disks(&mut self, disks: Vec<Disk>) -> Result<()> {
        let container = self.container.as_ref().ok_or_else(ended)?;
        container.change_disks(&self.spec, &disks)?;
        self.spec.disks = disks;
        Ok(())
    }

    fn container(&self) -> Result<&Container> {
        self.container.as_ref().ok_or_else(ended)
    }

    fn start(&mut self) -> Result<()> {
        match self.phase {
            Phase::Running => return Ok(()),
            Phase::Ended => return Err(ended()),
            Phase::Created => {}
        }
        let container = self.container.as_mut().ok_or_else(ended)?;
        container.start(&self.spec)?;
        let init = container.init;
        self.phase = Phase::Running;
        self.started = Instant::now();
        self.tell(&Message::Started { init });
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Fault::invalid("signal", "must be 1 to 64"));
        }
        let sent = self.container()?.init.signal(signal);
        sent.map(drop).map_err(|e| Fault::internal(format_args!("sending signal {signal}"), e))
    }

    fn type_input(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if peer.purpose != Purpose::Console || peer.input.is_empty() {
            return;
        }
        if let Some(container) = &mut self.container {
            match container.console.write(&peer.input) {
                Ok(count) => peer.typed(count),
                Err(_) => peer.input.clear(),
            }
        }
    }

    fn reap(&mut self) {
        // The descriptor only says that something ended; waiting says what.
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some((pid, how)) = reap() {
            if self.container.as_ref().is_some_and(|c| c.init.pid == pid) {
                self.ended(how);
            }
        }
    }

    /// The first process has ended, and with it every process of the instance.
    fn ended(&mut self, how: Ended) {
        if let Some(container) = &mut self.container {
            container.console.close_peer();
        }
        self.pump(None);
        if let Some(container) = &mut self.container {
            container.memory.look(Instant::now());
            if container.memory.is_untold() {
                self.tell_of_kills();
            }
        }
        let Some(container) = self.container.take() else { return };
        let oom_killed = container.memory.kills() > 0;
        drop(container);
        let guest = how == Ended::Killed(libc::SIGHUP);
        let again = match self.on_exit {
            ExitAction::Guest => guest,
            ExitAction::End => false,
            ExitAction::Restart => true,
        } && self.phase == Phase::Running;
        if again {
            let guest = self.on_exit == ExitAction::Guest;
            match self.restart(guest) {
                Ok(()) => return,
                Err(fault) => {
                    log(format_args!("the restart failed: {}", fault.in_full()));
                    return self.write_down(how, oom_killed, Some(fault.to_string()));
                }
            }
        }
        self.write_down(how, oom_killed, None);
    }

    fn restart(&mut self, guest: bool) -> Result<()> {
        if guest {
            std::thread::sleep(SHORTEST_LIFE.saturating_sub(self.started.elapsed()));
            self.guest_reboots += 1;
        }
        self.on_exit = ExitAction::Guest;
        network::boot_again(&self.spec.layout())?;
        if !self.spec.lxcfs.as_os_str().is_empty() {
            // What is refused at a start is not here: root inside has asked for a reboot, not for an end.
            lxcfs::offer_again(&self.spec.layout().bundle(), &self.spec.lxcfs)?;
        }
        let mut container = container::create(&self.spec, &self.setup)?;
        let init = container.init;
        if let Err(fault) = container.start(&self.spec) {
            drop(container);
            let _ = container::delete(&self.spec);
            return Err(fault);
        }
        self.container = Some(container);
        self.started = Instant::now();
        let guest_reboots = self.guest_reboots;
        self.tell(&Message::Restarted { init, guest, guest_reboots });
        Ok(())
    }

    fn write_down(&mut self, how: Ended, oom_killed: bool, error: Option<String>) {
        let ran = self.phase != Phase::Created;
        self.phase = Phase::Ended;
        if let Err(fault) = container::delete(&self.spec) {
            // The service's own clean-up tries again.
            log(fault.in_full());
        }
        if ran {
            self.exit = Some(ExitRecord {
                status: status_of(how, oom_killed),
                kind: if error.is_some() { ExitKind::RestartFailed } else { kind_of(how) },
                error,
                guest_reboots: self.guest_reboots,
                asked: self.on_exit == ExitAction::End,
            });
            self.unwritten = true;
            self.write_exit();
        }
        self.tell(&Message::Exited { exit: self.exit.clone() });
    }

    fn write_exit(&mut self) {
        match atomic::write_json(&self.spec.layout().exit(), &self.exit) {
            Ok(()) => self.unwritten = false,
            Err(fault) => log(fault.in_full()),
        }
    }

    fn tell(&mut self, message: &Message) {
        let line = line(message);
        for peer in self.peers.iter_mut().filter(|p| p.purpose == Purpose::Subscriber) {
            peer.send_line(&line);
        }
    }

    /// Takes the socket away, lets clients read what waits for them, and ends.
    fn leave(&mut self) {
        let layout = self.spec.layout();
        let _ = std::fs::remove_file(layout.monitor_socket());
        let _ = std::fs::remove_file(layout.monitor_pid());
        let deadline = Instant::now() + FAREWELL;
        loop {
            self.peers.retain(|peer| peer.has_output() && !peer.gone);
            let left = deadline.saturating_duration_since(Instant::now());
            if self.peers.is_empty() || left.is_zero() {
                return;
            }
            let mut fds: Vec<_> =
                self.peers.iter().map(|peer| PollFd::new(&peer.stream, PollFlags::OUT)).collect();
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
            self.peers.iter_mut().for_each(Peer::flush);
        }
    }
}

/// What the poll found.
struct Ready {
    children: bool,
    listener: bool,
    console: bool,
    idle: bool,
    memory: bool,
}

fn peer_flags(peer: &Peer) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, peer.wants_input());
    flags.set(PollFlags::OUT, peer.has_output());
    flags
}

fn ended() -> Fault {
    Fault::new(FaultKind::InstanceInvalidState, "the instance has ended")
}

fn status_of(how: Ended, oom_killed: bool) -> ExitStatus {
    let (code, signal) = match how {
        Ended::Exited(code) => (Some(code), None),
        Ended::Killed(signal) => (None, Some(signal)),
    };
    ExitStatus { code, signal, oom_killed, at: chrono::Utc::now() }
}

/// The kernel turns `reboot(2)` in a pid namespace into a signal that ends its
/// first process. Nobody else can: from outside it takes only SIGKILL and
/// SIGSTOP unless it handles a signal, and then that does not end it.
fn kind_of(how: Ended) -> ExitKind {
    match how {
        Ended::Killed(libc::SIGINT) => ExitKind::PowerOff,
        Ended::Killed(libc::SIGHUP) => ExitKind::Reboot,
        Ended::Killed(_) => ExitKind::Killed,
        Ended::Exited(_) => ExitKind::Exited,
    }
}
