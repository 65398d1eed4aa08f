//! Pseudo-terminals, seen from the master's side.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A new one: its master and its other end, of the host's own devpts. Close-on-exec
/// from the beginning: monitors are started at any moment.
pub fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let peer = open_peer(master.as_fd())?;
    Ok((master, peer))
}

/// A new one of the devpts in a directory that is an instance's `/dev`: its master, non-blocking,
/// its other end, and the path of that from there. It belongs to whom the thread acts as.
pub fn open_at(dev: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd, String)> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = openat2(dev, "pts/ptmx", flags, Mode::empty(), resolve)?;
    unlockpt(&master)?;
    let peer = open_peer(master.as_fd())?;
    let path = format!("pts/{}", number(master.as_fd())?);
    Ok((master, peer, path))
}

/// Sets the size; the kernel tells the foreground processes by SIGWINCH.
pub fn set_size(master: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}

/// Opens the other end, through the master itself: no path, so the instance's
/// own devpts does not matter. It never becomes the controlling terminal.
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    Ok(ioctl_tiocgptpeer(master, flags)?)
}

/// The number by which its devpts names the other end.
pub fn number(master: BorrowedFd<'_>) -> io::Result<u32> {
    let name = ptsname(master, Vec::new())?;
    let number = name.to_str().ok().and_then(|name| name.strip_prefix("/dev/pts/")?.parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Takes the terminal from the session that it controls, so that the next one
/// may have it. The caller leads a session without a terminal, blocks SIGHUP
/// and may administrate the host.
pub fn free(peer: BorrowedFd<'_>) -> io::Result<()> {
    let by_force: libc::c_int = 1;
    // SAFETY: TIOCSCTTY takes its argument by value, TIOCNOTTY has none; neither touches memory.
    let done = unsafe {
        libc::ioctl(peer.as_raw_fd(), libc::TIOCSCTTY, by_force) == 0
            && libc::ioctl(peer.as_raw_fd(), libc::TIOCNOTTY) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_peer() {
        let (master, peer) = open().unwrap();
        set_size(master.as_fd(), 132, 43).unwrap();
        let size = rustix::termios::tcgetwinsize(&peer).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(set_size(file.as_fd(), 1, 1).is_err());
        let named = format!("/dev/pts/{}", number(master.as_fd()).unwrap());
        assert_eq!(ptsname(&master, Vec::new()).unwrap().to_str().unwrap(), named);
        assert!(number(file.as_fd()).is_err());
    }
}
