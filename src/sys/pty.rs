//! Pseudo-terminals, seen from the master's side.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Sets the size; the kernel tells the foreground processes by SIGWINCH.
pub fn set_size(master: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is a valid winsize for the whole call, which only reads it.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The size: columns, rows.
pub fn size(master: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is valid for the write of one winsize.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    if done == 0 { Ok((size.ws_col, size.ws_row)) } else { Err(io::Error::last_os_error()) }
}

/// Opens the other end, through the master itself: no path, so the instance's
/// own devpts does not matter. It never becomes the controlling terminal.
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes its flags by value and touches no memory.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
    use std::os::fd::AsFd;

    #[test]
    fn size_and_peer() {
        let pty = nix::pty::openpty(None, None).unwrap();
        set_size(pty.master.as_fd(), 132, 43).unwrap();
        let peer = open_peer(pty.master.as_fd()).unwrap();
        assert_eq!(size(peer.as_fd()).unwrap(), (132, 43));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(set_size(file.as_fd(), 1, 1).is_err());
    }
}
