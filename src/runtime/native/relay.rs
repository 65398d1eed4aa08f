//! What `berth-monitor exec` does while the program runs: it carries the bytes between its own
//! terminal and the program's, which is one of the instance's, and waits for the end.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::fault::{OrFault, Result};

/// Most bytes that are typed and wait for the program to read them.
const TYPED: usize = 4096;

/// Gives a terminal the size of this process's own.
pub(super) fn copy_size(master: BorrowedFd<'_>) {
    // Without one of its own it keeps what it has.
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        let _ = tcsetwinsize(master, size);
    }
}

/// Waits for the program's end; gives its exit code, as a shell would.
pub(super) fn attend(pid: Pid, master: Option<OwnedFd>) -> Result<u8> {
    let Some(master) = master else {
        return loop {
            match waitpid(Some(pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => break Ok(code(status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => break Err(errno).or_fault("waiting for the program"),
            }
        };
    };
    let doing = "attending to the terminal";
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGWINCH);
    signals.add(Signal::SIGCHLD);
    signals.thread_block().or_fault(doing)?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let mut relay = Relay {
        signals: SignalFd::with_flags(&signals, flags).or_fault(doing)?,
        master: File::from(master),
        typed: Vec::new(),
    };
    make_raw(io::stdin().as_fd());
    let flags = fcntl_getfl(&relay.master).or_fault(doing)?;
    fcntl_setfl(&relay.master, flags | OFlags::NONBLOCK).or_fault(doing)?;
    copy_size(relay.master.as_fd());
    relay.run(pid)
}

struct Relay {
    signals: SignalFd,
    master: File,
    /// Typed, and not yet taken.
    typed: Vec<u8>,
}

impl Relay {
    fn run(&mut self, pid: Pid) -> Result<u8> {
        loop {
            let ended = waitpid(Some(pid), WaitOptions::NOHANG);
            if let Some((_, status)) = ended.or_fault("waiting for the program")? {
                // To the last byte.
                self.show();
                return Ok(code(status));
            }
            let (input, output) = self.wait()?;
            if output {
                self.show();
            }
            // Whoever typed has gone: the terminal's end tells the program.
            if input && !self.take() {
                return Ok(128 + libc::SIGHUP as u8);
            }
            self.pass_on();
            while let Ok(Some(signal)) = self.signals.read_signal() {
                if signal.ssi_signo == libc::SIGWINCH.cast_unsigned() {
                    copy_size(self.master.as_fd());
                }
            }
        }
    }

    /// Waits until there is something to do: whether there is input, and output.
    fn wait(&self) -> Result<(bool, bool)> {
        let stdin = io::stdin();
        let typed = !self.typed.is_empty();
        let wanted = if typed { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.master, wanted)];
        if !typed {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        // While no program has the other end open, a hang-up is all that the poll says.
        let hung_up = |fds: &[PollFd<'_>]| fds[1].revents() == PollFlags::HUP;
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).or_fault("waiting for the terminal"),
        }
        if hung_up(&fds) {
            let pause = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let _ = poll(&mut [PollFd::new(&self.signals, PollFlags::IN)], Some(&pause));
        }
        let ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        Ok((ready(2), ready(1)))
    }

    fn show(&mut self) {
        let mut buffer = [0; 32 << 10];
        while let Ok(count @ 1..) = self.master.read(&mut buffer) {
            let mut out = io::stdout();
            if out.write_all(&buffer[..count]).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    }

    /// Takes what was typed; `false` when nobody is there any more.
    fn take(&mut self) -> bool {
        let mut buffer = [0; TYPED];
        match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.typed.extend_from_slice(&buffer[..count]);
                true
            }
            Err(errno) => matches!(errno, rustix::io::Errno::INTR | rustix::io::Errno::AGAIN),
        }
    }

    fn pass_on(&mut self) {
        match self.master.write(&self.typed) {
            Ok(count) => drop(self.typed.drain(..count)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.typed.clear(),
        }
    }
}

/// Lets everything through as it is: the program's own terminal does the rest.
fn make_raw(terminal: BorrowedFd<'_>) {
    if let Ok(mut attributes) = tcgetattr(terminal) {
        attributes.make_raw();
        let _ = tcsetattr(terminal, OptionalActions::Now, &attributes);
    }
}

fn code(status: WaitStatus) -> u8 {
    let code = match status.terminating_signal() {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or(255),
    };
    u8::try_from(code & 255).unwrap_or(255)
}
